"""Secrets for S3 stores: key pairs, given or in the environment, and keys of SSE-C.

Botocore's chain finds all other credentials.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from litereplica.errors import UsageError

SSE_KEY_BYTES = 32
MAX_KEY_FILE_BYTES = 1024

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
        "LITEREPLICA_METRICS_TOKEN",
    }
)
"""The variables that hold credentials, or lead botocore to them, and the one with the token of metrics."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """An S3 key pair, possibly empty, and an SSE-C key as base64, possibly empty.

    They are never part of a URL, and neither `repr` nor `str` shows any of them.
    """

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    sse_customer_key: str = field(default="", repr=False)


def static_credentials(given: Credentials | None) -> Credentials | None:
    """The given key pair, else that of the AWS or the Litestream variables in the environment; else None.

    None means that botocore's chain must be used; also if half of a pair is set, since botocore's error says which half
    is missing.
    """
    if given is not None and given.access_key_id:
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
    secrets = {
        each
        for one in in_use
        for each in (one.access_key_id, one.secret_access_key, one.session_token, one.sse_customer_key)
    }
    return {
        name: value
        for name, value in environment.items()
        if name not in _VARIABLES and (not value or value.strip() not in secrets)
    }


def is_sse_key(text: str) -> bool:
    """True if `text` is the base64 text of an SSE-C key, which has 32 bytes."""
    try:
        return len(base64.b64decode(text, validate=True)) == SSE_KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def sse_customer_key(given: Credentials | None, path: str) -> str:
    """The SSE-C key as base64: the given one, else that in the file at `path`; empty if there is neither. Blocks.

    Raises:
        UsageError: the file cannot be read, or does not have a key.
    """
    if given is not None and given.sse_customer_key:
        return given.sse_customer_key
    if not path:
        return ""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_KEY_FILE_BYTES).decode("ascii", "replace").strip()
    except OSError as exc:
        raise UsageError(f"cannot read the SSE-C key {path}: {exc.strerror}", hint="name a readable file") from exc
    if not is_sse_key(text):
        raise UsageError(f"{path} has no SSE-C key", hint="write the base64 text of 32 bytes into it")
    return text
