"""Makes and configures the boto3 client.

Importing boto3 and making a client costs some 250 ms of work, so both happen in `connect`, which runs in a thread at
the first request.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from litereplica.storage.credentials import Credentials, static_credentials

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from litereplica.storage.url import ReplicaURL

MAX_CONNECTIONS = 32
"""Concurrent requests. At 20 ms a request that is 1,600 a second; more would only queue in the interpreter."""
CONNECT_TIMEOUT_S = 5.0
"""Long enough for a lost SYN and its second retransmission (after 3 s)."""
READ_TIMEOUT_S = 15.0
"""A connection without data for this long is closed: a reader must get its error within 30 s."""
DEFAULT_REGION = "us-east-1"
"""Used if neither the URL nor the environment names a region: AWS redirects, other stores mostly ignore it."""

CREDENTIAL_SERVICES = ("sts", "sso", "sso-oidc", "signin")
"""The services that boto's credential chain calls: assumed roles, web identities, single sign-on, login."""

_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")


def connect(url: ReplicaURL, credentials: Credentials | None = None) -> S3Client:
    """Make a client. Blocks for the import of boto3, and to find credentials if none are given."""
    import boto3.session
    import botocore.loaders
    import botocore.session
    from botocore.config import Config

    class S3Loader(botocore.loaders.Loader):
        """A loader that does not list the directories of all 400 services, which would take 50 ms."""

        def list_available_services(self, type_name: str) -> list[str]:
            return ["s3", *CREDENTIAL_SERVICES]

    keys = static_credentials(credentials)
    core = botocore.session.get_session()
    core.register_component("data_loader", S3Loader())
    session = boto3.session.Session(botocore_session=core)
    client: S3Client = session.client(
        "s3",
        endpoint_url=url.endpoint or None,
        region_name=named_region(url) or session.region_name or DEFAULT_REGION,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=MAX_CONNECTIONS,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
            s3={"addressing_style": "path" if url.force_path_style else "auto"},
        ),
        aws_access_key_id=None if keys is None else keys.access_key_id,
        aws_secret_access_key=None if keys is None else keys.secret_access_key,
        aws_session_token=None if keys is None else keys.session_token or None,
    )
    client.meta.events.register("before-call.s3.DeleteObjects", _use_content_md5)
    return client


def send_content_md5(client: S3Client) -> bool:
    """Let a client send Content-MD5 with each put, as buckets with Object Lock demand. False if it already does."""
    if client in _SENDING_MD5:
        return False
    _SENDING_MD5.add(client)
    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(f"before-call.s3.{operation}", _use_content_md5)
    return True


_SENDING_MD5: WeakSet[Any] = WeakSet()


def named_region(url: ReplicaURL) -> str:
    """The region that the URL or the environment names; empty if neither does."""
    return url.region or next((os.environ[name] for name in _REGION_VARIABLES if os.environ.get(name)), "")


def _use_content_md5(params: dict[str, Any], **_: Any) -> None:
    """Add Content-MD5, the only checksum that every S3-compatible store understands."""
    body = params["body"]
    if not isinstance(body, bytes):  # of a put: a file-like object
        body.seek(0)
        data = body.read()
        body.seek(0)
        body = data
    digest = hashlib.md5(body, usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()
    params["context"].pop("checksum", None)
