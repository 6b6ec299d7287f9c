"""Key pairs for S3 stores: an explicit one, or one in the environment. Botocore's chain finds all others."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

_VARIABLES = frozenset(
    {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_CONFIG_FILE",
        "AWS_ROLE_ARN",
        "AWS_ROLE_SESSION_NAME",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "LITESTREAM_ACCESS_KEY_ID",
        "LITESTREAM_SECRET_ACCESS_KEY",
    }
)
"""The variables that hold credentials, or lead botocore to them."""


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


def without_credentials(environment: Mapping[str, str], in_use: Collection[Credentials]) -> dict[str, str]:
    """Return an environment without the variables of credentials, and without those that hold one that is in use."""
    secrets = {each for pair in in_use for each in (pair.access_key_id, pair.secret_access_key, pair.session_token)}
    return {
        name: value
        for name, value in environment.items()
        if name not in _VARIABLES and (not value or value.strip() not in secrets)
    }
