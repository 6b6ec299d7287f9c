"""Key pairs for S3 stores: an explicit one, or one in the environment. Botocore's chain finds all others."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credentials:
    """An S3 key pair. It is never part of a URL, and neither `repr` nor `str` shows any of it."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def static_credentials(given: Credentials | None) -> Credentials | None:
    """The given key pair, else that of the AWS or the Litestream variables in the environment; else None.

    None means that botocore's chain must be used; also if half of a pair is set, since botocore's error says which half
    is missing.
    """
    if given is not None:
        return given
    for prefix in ("AWS", "LITESTREAM"):
        key_id, secret = (os.environ.get(f"{prefix}_{name}", "") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
        if key_id and secret:
            return Credentials(key_id, secret, os.environ.get("AWS_SESSION_TOKEN", "") if prefix == "AWS" else "")
        if key_id or secret:
            return None
    return None
