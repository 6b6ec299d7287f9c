"""obstore's S3 client, its configuration and its credentials; and when a client is made anew.

Key pairs that are given, or stand in the environment, are used as they are, and neither boto3 nor botocore is
imported. For all others (profiles, web identity, assumed roles, single sign-on, metadata services) botocore's chain
finds them and renews them; obstore asks for them through `_Provider`.
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

from litereplica.storage import s3_client
from litereplica.storage.credentials import Credentials, static_credentials

if TYPE_CHECKING:
    import botocore.session
    from obstore.store import ClientConfig, S3Config, S3Credential, S3Store

    from litereplica.storage.url import ReplicaURL

log = logging.getLogger(__name__)

C = TypeVar("C")

REQUEST_TIMEOUT_S = 600.0
"""The whole of a request: bounds headers that drip. Bodies have a least rate, and listings have a deadline."""
RENEW_INTERVAL_S = 10.0
"""Credentials that are refused are looked up again at most this often: each time costs a request and some files."""
CREDENTIAL_LIFE = timedelta(minutes=5)
"""botocore is asked again after so long; it renews what is about to expire, and reads nothing else anew."""

_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_CONFIG_FILE = "AWS_CONFIG_FILE"


class Connection(Generic[C]):
    """The client of one store: made at the first request, and anew when the store refuses its credentials.

    Credentials change under a daemon that runs for weeks: files and tokens are replaced, keys are withdrawn. May be
    used from several threads.
    """

    def __init__(self, connect: Callable[[], C], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._connect = connect
        self._clock = clock
        self._lock = threading.Lock()
        self._client: C | None = None
        self._renewed_at = -RENEW_INTERVAL_S

    def client(self) -> C:
        """The client. Blocks while it is made; raises what `connect` raises."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def renew(self, refused: C) -> bool:
        """Discard `refused`, unless that was done moments ago; True if the next client may have newer credentials."""
        with self._lock:
            if self._client is not refused:
                return True
            now = self._clock()
            if now - self._renewed_at < RENEW_INTERVAL_S:
                return False
            self._renewed_at = now
            self._client = None
        log.info("the store refuses the credentials: looking them up again")
        return True

    def take(self) -> C | None:
        """The client, if there is one, which is forgotten here."""
        with self._lock:
            client, self._client = self._client, None
            return client


def connect(url: ReplicaURL, credentials: Credentials | None = None) -> S3Store:
    """Make a client. Blocks; no request is made. Raises botocore's errors of credentials."""
    from obstore.store import S3Store

    endpoint = url.endpoint or next((os.environ[name] for name in _ENDPOINT_VARIABLES if os.environ.get(name)), "")
    virtual_hosted = not url.force_path_style and "." not in url.bucket
    config: S3Config = {"virtual_hosted_style_request": virtual_hosted}
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
        client_options=_client_options(endpoint),
        retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
        credential_provider=provider,
    )


class _Provider:
    """Asks botocore for the credentials of a session. obstore calls it again when they expire."""

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


def _client_options(endpoint: str) -> ClientConfig:
    options: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=s3_client.CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=s3_client.READ_TIMEOUT_S),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
    }
    authorities = os.environ.get("AWS_CA_BUNDLE")
    if authorities:
        options["root_certificate"] = Path(authorities).read_bytes()
    return options


def _with_bucket(endpoint: str, bucket: str) -> str:
    """An endpoint as obstore wants it for virtual-hosted requests: with the bucket in the name of its host."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()


def _has_config_file() -> bool:
    if os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE"):
        return True
    return Path(os.environ.get(_CONFIG_FILE) or "~/.aws/config").expanduser().exists()


def _botocore_session() -> botocore.session.Session:
    import botocore.session

    return botocore.session.get_session()
