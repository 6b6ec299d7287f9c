"""Makes a client of `s3_requests.py`, finds its credentials, and replaces it when the store refuses them or on demand.

Explicit key pairs and those in the environment are used directly, and neither boto3 nor botocore is imported. All other
credentials (profiles, web identity, assumed roles, single sign-on, metadata services) are found and renewed by
botocore's chain, which is asked for each request.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

from litereplica.storage import s3_client
from litereplica.storage.credentials import Credentials, sse_customer_key, static_credentials
from litereplica.storage.s3_signature import KeyPair
from litereplica.storage.url import access_point_endpoint

if TYPE_CHECKING:
    import botocore.session

    from litereplica.storage.s3_requests import S3Requests
    from litereplica.storage.url import ReplicaURL

log = logging.getLogger(__name__)

C = TypeVar("C")

RENEW_INTERVAL_S = 10.0
"""Minimum interval between lookups of refused credentials: each one costs a request and reads some files."""

_CONFIG_FILE = "AWS_CONFIG_FILE"


class Connection(Generic[C]):
    """The client of one store: made at the first request, and again when the store refuses its credentials.

    Credentials change while a daemon runs for weeks: files and tokens are replaced, keys are revoked. Thread-safe, but
    for making one.
    """

    def __init__(self, connect: Callable[[], C], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._connect = connect
        self._clock = clock
        self._lock = threading.Lock()
        self._client: C | None = None
        self._renewed_at = -RENEW_INTERVAL_S
        self._is_outdated = False
        _CONNECTIONS.add(self)

    def client(self) -> C:
        """Return the client. Makes it if there is none, which blocks and raises the errors of `connect`.

        After `outdate` it is made anew; if that fails, the one at hand stays in use.
        """
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            elif self._is_outdated:
                try:
                    self._client = self._connect()
                except Exception as exc:  # botocore's, and those of files
                    log.warning("cannot look up the credentials again, those of before stay in use: %s", exc)
            self._is_outdated = False
            return self._client

    def outdate(self) -> None:
        """Let the next request make the client anew."""
        self._is_outdated = True

    def renew(self, refused: C) -> bool:
        """Discard the client `refused`, unless one was discarded moments ago.

        Returns True if the next client may have newer credentials.
        """
        with self._lock:
            if self._client is not refused:
                return True
            now = self._clock()
            if now - self._renewed_at < RENEW_INTERVAL_S:
                return False
            self._renewed_at = now
            self._client = None
        log.info("the store refused the credentials: looking them up again")
        return True

    def take(self) -> C | None:
        """Return the client, if there is one, and forget it."""
        with self._lock:
            client, self._client = self._client, None
            return client


_CONNECTIONS: WeakSet[Connection[Any]] = WeakSet()


def look_up_again() -> None:
    """Let every store of this process look up its credentials and certificates again, at its next request."""
    for connection in list(_CONNECTIONS):
        connection.outdate()


def connect(url: ReplicaURL, credentials: Credentials | None = None) -> S3Requests:
    """Make a client.

    Blocks; makes no request to the store. Raises botocore's errors about credentials, and `OSError` if the file of
    certificate authorities cannot be read.
    """
    from litereplica.storage.http_pool import HTTPPool, tls_context  # these import http.client, for which a store of
    from litereplica.storage.s3_requests import S3Requests  # files has no use

    keys = static_credentials(credentials)
    session = (
        None if keys is not None and (s3_client.named_region(url) or not _has_config_file()) else _botocore_session()
    )
    configured = None if session is None else session.get_config_variable("region")
    region = s3_client.named_region(url) or configured or s3_client.DEFAULT_REGION
    access_point = access_point_endpoint(url.bucket)
    named = s3_client.configured_endpoint(url, session)
    endpoint = access_point or named or f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
    virtual_hosted = access_point is None and not s3_client.uses_path_style(url, named) and "." not in url.bucket
    provider: Callable[[], KeyPair]
    if keys is not None:
        pair = KeyPair(keys.access_key_id, keys.secret_access_key, keys.session_token)
        provider = lambda: pair  # noqa: E731 - as simple as it is
    else:
        assert session is not None
        provider = _Provider(session)
    sse_key = sse_customer_key(credentials, url.options.sse_customer_key_path)
    context = None
    if endpoint.startswith("https:"):
        configured_ca = None if session is None else session.get_config_variable("ca_bundle")
        authorities = os.environ.get("AWS_CA_BUNDLE") or configured_ca or os.environ.get("REQUESTS_CA_BUNDLE", "")
        context = tls_context(authorities, skip_verify=url.options.skip_verify)
    return S3Requests(
        HTTPPool(_with_bucket(endpoint, url.bucket) if virtual_hosted else endpoint, context),
        base=_path(endpoint, "" if virtual_hosted or access_point else url.bucket),
        region=region,
        provider=provider,
        options=url.options,
        sse_key=sse_key,
    )


class _Provider:
    """Gets the credentials of a botocore session, which renews them before they expire."""

    def __init__(self, session: botocore.session.Session) -> None:
        import botocore.exceptions

        found = session.get_credentials()
        if found is None:
            raise botocore.exceptions.NoCredentialsError
        self._credentials: Any = found

    def __call__(self) -> KeyPair:
        frozen = self._credentials.get_frozen_credentials()
        return KeyPair(frozen.access_key, frozen.secret_key, frozen.token or "")


def _path(endpoint: str, bucket: str) -> str:
    """The path of the bucket on the server."""
    parts = [urlsplit(endpoint).path.strip("/"), bucket]
    return "".join(f"/{part}" for part in parts if part)


def _with_bucket(endpoint: str, bucket: str) -> str:
    """The endpoint with the bucket in its host name."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()


def _has_config_file() -> bool:
    if os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE"):
        return True
    return Path(os.environ.get(_CONFIG_FILE) or "~/.aws/config").expanduser().exists()


def _botocore_session() -> botocore.session.Session:
    import botocore.session

    return botocore.session.get_session()
