"""Makes and configures the boto3 client.

Importing boto3 and making a client costs some 250 ms of work, so both happen in `connect`, which runs in a thread at
the first request.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from litereplica.storage.credentials import Credentials, sse_customer_key, static_credentials
from litereplica.storage.s3_options import ALGORITHM, S3Options
from litereplica.storage.url import endpoint_url
from litereplica.times import parse_time_ms

if TYPE_CHECKING:
    import botocore.session
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

ENDPOINT_VARIABLE = "LITESTREAM_S3_ENDPOINT"
"""The endpoint of replicas whose URL names none. The bucket is then part of the path, as with an endpoint in a URL."""

_AWS_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
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
    options = url.options
    if options.skip_verify:
        import urllib3

        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    core = botocore.session.get_session()
    core.register_component("data_loader", S3Loader())
    session = boto3.session.Session(botocore_session=core)
    endpoint = configured_endpoint(url, core)
    client: S3Client = session.client(
        "s3",
        endpoint_url=endpoint or None,
        verify=False if options.skip_verify else None,
        region_name=named_region(url) or session.region_name or DEFAULT_REGION,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=MAX_CONNECTIONS,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
            s3={
                "addressing_style": "path" if uses_path_style(url, endpoint) else "auto",
                **({} if options.sign_payload else {"payload_signing_enabled": False}),
            },
        ),
        aws_access_key_id=None if keys is None else keys.access_key_id,
        aws_secret_access_key=None if keys is None else keys.secret_access_key,
        aws_session_token=None if keys is None else keys.session_token or None,
    )
    client.meta.events.register("before-call.s3.DeleteObjects", _use_content_md5)
    for operation, parameters in _parameters(options, sse_customer_key(credentials, options.sse_customer_key_path)):
        add: Any = partial(_with_parameters, parameters)  # the stubs know no handler that returns something
        client.meta.events.register(f"provide-client-params.s3.{operation}", add)
    return client


def _parameters(options: S3Options, sse_key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parameters that each operation has beside those of its call: storage class and encryption."""
    customer = {"SSECustomerAlgorithm": ALGORITHM, "SSECustomerKey": base64.b64decode(sse_key)} if sse_key else {}
    made: dict[str, Any] = dict(customer)
    if options.storage_class:
        made["StorageClass"] = options.storage_class
    if options.sse_kms_key_id:
        made |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": options.sse_kms_key_id}
    yield from ((operation, made) for operation in ("PutObject", "CreateMultipartUpload") if made)
    others = ("GetObject", "HeadObject", "UploadPart", "CompleteMultipartUpload")
    yield from ((operation, customer) for operation in others if customer)


def _with_parameters(added: dict[str, Any], params: dict[str, Any], **_: Any) -> dict[str, Any]:
    return params | added


def configured_endpoint(url: ReplicaURL, session: botocore.session.Session | None) -> str:
    """The endpoint that the URL or Litestream's variable names, else that of AWS's variables or configuration file.

    Empty if none is named. `session` is None if there is no configuration file.
    """
    endpoint = url.endpoint or endpoint_url(os.environ.get(ENDPOINT_VARIABLE, ""))
    if endpoint or os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return endpoint
    scoped = {} if session is None else session.get_scoped_config()
    services = {} if session is None else session.full_config.get("services", {}).get(scoped.get("services", ""), {})
    named = (*(os.environ.get(name) for name in _AWS_ENDPOINT_VARIABLES), services.get("s3", {}).get("endpoint_url"))
    return next((each for each in (*named, scoped.get("endpoint_url")) if each), "")


def uses_path_style(url: ReplicaURL, endpoint: str) -> bool:
    """True if the bucket is part of the path of a request, not of the host: so with every `endpoint` but a URL's."""
    return url.force_path_style or bool(endpoint and not url.endpoint)


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


def given_time_ms(text: str) -> int | None:
    """The time in milliseconds that Litestream or litereplica put into an object's metadata; None if it is invalid."""
    try:
        return parse_time_ms(text)
    except ValueError:
        return None
