"""Makes obstore's S3 client, finds its credentials, and replaces the client when the store refuses them or on demand.

Explicit key pairs and those in the environment are used directly, and neither boto3 nor botocore is imported. All other
credentials (profiles, web identity, assumed roles, single sign-on, metadata services) are found and renewed by
botocore's chain, which obstore calls through `_Provider`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

from litereplica.storage import s3_client
from litereplica.storage.credentials import Credentials, sse_customer_key, static_credentials
from litereplica.storage.pace import MIN_BYTES_PER_S

if TYPE_CHECKING:
    import botocore.session
    from obstore.store import ClientConfig, S3Config, S3Credential, S3Store

    from litereplica.storage.s3_options import S3Options
    from litereplica.storage.url import ReplicaURL

log = logging.getLogger(__name__)

C = TypeVar("C")

REQUEST_TIMEOUT_S = 600.0
"""Longest time limit of a request, for headers that arrive slowly."""
RENEW_INTERVAL_S = 10.0
"""Minimum interval between lookups of refused credentials: each one costs a request and reads some files."""
CREDENTIAL_LIFE = timedelta(minutes=5)
"""botocore is asked again after this time; it then renews credentials that are about to expire."""

_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
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
                except Exception as exc:  # botocore's and obstore's, and those of files
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


def request_timeout_s(size: int) -> float:
    """Return the time limit of a request of `size` bytes, headers included, in seconds."""
    return min(REQUEST_TIMEOUT_S, s3_client.READ_TIMEOUT_S + size / MIN_BYTES_PER_S)


def connect(
    url: ReplicaURL, credentials: Credentials | None = None, *, timeout_s: float = REQUEST_TIMEOUT_S
) -> S3Store:
    """Make a client whose requests take `timeout_s` seconds at most.

    Blocks; makes no request to the store. Raises botocore's errors about credentials.
    """
    from obstore.store import S3Store

    endpoint = s3_client.endpoint_of(url) or next(
        (os.environ[name] for name in _ENDPOINT_VARIABLES if os.environ.get(name)), ""
    )
    virtual_hosted = not s3_client.uses_path_style(url) and "." not in url.bucket
    config: S3Config = {"virtual_hosted_style_request": virtual_hosted, **_options(url.options, credentials)}
    if endpoint:
        config["endpoint"] = _with_bucket(endpoint, url.bucket) if virtual_hosted else endpoint
    keys = static_credentials(credentials)
    session = (
        None if keys is not None and (s3_client.named_region(url) or not _has_config_file()) else _botocore_session()
    )
    configured = None if session is None else session.get_config_variable("region")
    config["region"] = s3_client.named_region(url) or configured or s3_client.DEFAULT_REGION
    provider = None
    if keys is not None:
        config["access_key_id"], config["secret_access_key"] = keys.access_key_id, keys.secret_access_key
        if keys.session_token:
            config["session_token"] = keys.session_token
    else:
        assert session is not None
        provider = _Provider(session)
    return S3Store(
        url.bucket,
        prefix=url.path or None,
        config=config,
        client_options=_client_options(endpoint, timeout_s, skip_verify=url.options.skip_verify),
        retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
        credential_provider=provider,
    )


class _Provider:
    """Gets the credentials of a botocore session. obstore calls it again when they expire."""

    def __init__(self, session: botocore.session.Session) -> None:
        import botocore.exceptions

        found = session.get_credentials()
        if found is None:
            raise botocore.exceptions.NoCredentialsError
        self.config: S3Config = {}
        self._credentials: Any = found

    def __call__(self) -> S3Credential:
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + CREDENTIAL_LIFE,
        }


def _options(options: S3Options, credentials: Credentials | None) -> S3Config:
    """The settings of obstore for signing and encryption."""
    config: S3Config = {}
    if not options.sign_payload:
        config["unsigned_payload"] = True
    sse_key = sse_customer_key(credentials, options.sse_customer_key_path)
    if sse_key:
        config["server_side_encryption"], config["sse_customer_key_base64"] = "sse-c", sse_key
    elif options.sse_kms_key_id:
        config["server_side_encryption"], config["sse_kms_key_id"] = "aws:kms", options.sse_kms_key_id
    return config


def _client_options(endpoint: str, timeout_s: float, *, skip_verify: bool) -> ClientConfig:
    options: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=s3_client.CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=s3_client.READ_TIMEOUT_S),
        "timeout": timedelta(seconds=timeout_s),
    }
    authorities = os.environ.get("AWS_CA_BUNDLE")
    if skip_verify:
        options["allow_invalid_certificates"] = True
    elif authorities:
        options["root_certificate"] = Path(authorities).read_bytes()
    return options


def _with_bucket(endpoint: str, bucket: str) -> str:
    """The endpoint with the bucket in its host name, as obstore expects it for virtual-hosted requests."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()


def _has_config_file() -> bool:
    if os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE"):
        return True
    return Path(os.environ.get(_CONFIG_FILE) or "~/.aws/config").expanduser().exists()


def _botocore_session() -> botocore.session.Session:
    import botocore.session

    return botocore.session.get_session()
