"""AWS Signature Version 4, of requests to S3.

See https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html: a hash of the request in a canonical
form is signed with a key that is derived from the secret key, the day and the region. S3 encodes a path once only.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote

from litereplica.errors import UsageError

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An access key. `session_token` is empty for one that does not expire.

    Raises `UsageError` for values that no header can have; it does not repeat them.
    """

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for name in ("access_key_id", "secret_access_key", "session_token"):
            value = getattr(self, name)
            if not (value.isascii() and value.isprintable() and value == value.strip()):
                raise UsageError(
                    f"the S3 credential {name} has characters that no key has, or a space or line end around it",
                    hint=f"check AWS_{name.upper()}, or the file or configuration that it comes from",
                )


def encoded_query(parameters: Iterable[tuple[str, str]]) -> str:
    """Return the query of a URL in the canonical form: sorted, and percent-encoded but for letters, digits and -_.~."""
    return "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(parameters))


def signed(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    *,
    keys: KeyPair,
    region: str,
    payload_sha256: str,
    now: datetime,
) -> dict[str, str]:
    """Return the headers of a request, with those of its signature.

    `path` is percent-encoded, `query` is that of `encoded_query`. Names of `headers` are in lower case, and `host` is
    among them. `payload_sha256` is the hash of the body in hex, or `UNSIGNED_PAYLOAD`. `now` is in UTC.
    """
    time = now.strftime("%Y%m%dT%H%M%SZ")
    found = {**headers, "x-amz-content-sha256": payload_sha256, "x-amz-date": time}
    if keys.session_token:
        found["x-amz-security-token"] = keys.session_token
    names = sorted(found)
    listed = ";".join(names)
    lines = [f"{name}:{' '.join(found[name].split())}" for name in names]
    canonical = "\n".join([method, path, query, *lines, "", listed, payload_sha256])
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    text = "\n".join([_ALGORITHM, time, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    signature = hmac.digest(_signing_key(keys.secret_access_key, time[:8], region), text.encode(), "sha256").hex()
    credential = f"{keys.access_key_id}/{scope}"
    found["authorization"] = f"{_ALGORITHM} Credential={credential}, SignedHeaders={listed}, Signature={signature}"
    return found


@lru_cache(maxsize=64)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def utc_now() -> datetime:
    """The time of a signature."""
    return datetime.now(UTC)
