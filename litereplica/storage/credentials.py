"""The key pair of one store, for those that are not to be found in the environment."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credentials:
    """An S3 key pair. It is never part of a URL, and neither `repr` nor `str` shows any of it."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
