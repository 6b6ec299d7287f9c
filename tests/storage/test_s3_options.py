"""Options of a replica's URL and of the configuration file reach the store, through both clients."""

from __future__ import annotations

import base64
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from litereplica.errors import StorageError, UsageError
from litereplica.storage.base import ByteRange
from litereplica.storage.credentials import Credentials
from litereplica.storage.open import CLIENT_VARIABLE, open_storage
from litereplica.storage.s3 import S3Storage
from litereplica.storage.s3_client import ENDPOINT_VARIABLE
from litereplica.storage.s3_direct import DirectS3Storage
from litereplica.storage.url import ReplicaURL, parse_url
from litereplica.testing.s3_proxy import Exchange, s3_proxy
from litereplica.testing.seaweed import SeaweedServer
from litereplica.testing.server_thread import serving
from tests.helpers.tcp_store import Backend

BACKENDS = [S3Storage, DirectS3Storage]
KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(32)).decode()
DATA = b"0123456789" * 1000


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)


@contextmanager
def recording(context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[tuple[str, dict[str, str]]]]]:
    """A server that takes every object and has DATA under every key. Yields its port and the requests, with headers."""
    requests: list[tuple[str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            requests.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = DATA if self.command == "GET" else b""
            self.send_response(200)
            for name, value in (("ETag", '"e"'), ("Last-Modified", "Mon, 02 Mar 2026 09:00:00 GMT")):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = handle_one

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with serving(server) as port:
        yield port, requests


@pytest.mark.parametrize("backend", BACKENDS)
async def test_storage_class_key_of_encryption_and_signing_are_sent_with_a_put(backend: Backend) -> None:
    with recording() as (port, requests):
        query = "storageClass=STANDARD_IA&sseKmsKeyId=alias/k"
        async with backend(parse_url(f"s3://b/x?endpoint=http://127.0.0.1:{port}&{query}")) as storage:
            await storage.put("a", DATA)
            assert (await storage.get("a")).data == DATA
        put, got = requests[0][1], requests[1][1]
        assert put["x-amz-storage-class"] == "STANDARD_IA"
        assert put["x-amz-server-side-encryption"] == "aws:kms"
        assert put["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/k"
        assert not any(name.startswith("x-amz-server-side") for name in got), "a store decrypts by itself"
        async with backend(parse_url(f"s3://b/x?endpoint=http://127.0.0.1:{port}")) as storage:
            await storage.put("a", DATA)
        assert not any("storage-class" in name or "encryption" in name for name in requests[2][1])


@pytest.fixture(scope="module")
def untrusted(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's context with a certificate that no authority has signed."""
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ),
            *("-subj", "/CN=elsewhere.example", "-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


@pytest.mark.logs("the server's certificate is not checked, because of skip-verify")
@pytest.mark.parametrize("client", ["direct", "boto3"])
async def test_certificate_is_checked_unless_that_is_skipped_and_content_is_signed_unless_not(
    client: str, untrusted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CLIENT_VARIABLE, client)
    with recording(untrusted) as (port, requests):
        url = f"s3://b/x?endpoint=https://127.0.0.1:{port}"
        async with open_storage(url) as storage:
            with pytest.raises(StorageError, match="certificate is not trusted"):
                await storage.get("a")
        assert not requests
        async with open_storage(f"{url}&skipVerify=true&signPayload=false") as storage:
            await storage.put("a", DATA)
            assert (await storage.get("a")).data == DATA
        assert requests[0][1]["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_key_in_a_file_is_read_with_the_first_request_and_must_be_one(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "key"
    url = f"s3://b/x?endpoint=http://127.0.0.1:1&sseCustomerKeyPath={path}"
    for text, error in ((None, "cannot read the SSE-C key"), ("short", "has no SSE-C key")):
        if text is not None:
            path.write_text(text)
        async with backend(parse_url(url)) as storage:
            with pytest.raises(UsageError, match=error):
                await storage.get("a")


@pytest.mark.parametrize("backend", BACKENDS)
async def test_object_with_a_customers_key_is_read_with_that_key_only(
    backend: Backend, seaweed: SeaweedServer, bucket: str, credentials: None, fresh_path: str, tmp_path: Path
) -> None:
    url = parse_url(seaweed.url(bucket, fresh_path))
    (tmp_path / "key").write_text(f"{KEY}\n")
    by_path = replace(url, options=replace(url.options, sse_customer_key_path=str(tmp_path / "key")))
    async with backend(url, Credentials("", "", sse_customer_key=KEY)) as storage:
        await storage.put_if_absent("a", DATA, modified_ms=5000)
        assert (await storage.head("a")).modified_ms == 5000
    for reader in BACKENDS:
        async with reader(by_path) as storage:
            assert (await storage.get("a")).data == DATA
            assert (await storage.get("a", ByteRange(5, 25))).data == DATA[5:25]
        for wrong in (None, Credentials("", "", sse_customer_key=OTHER_KEY)):
            async with reader(url, wrong) as storage:
                with pytest.raises(StorageError):
                    await storage.get("a")


async def test_upload_in_parts_has_their_configured_size_and_number(
    seaweed: SeaweedServer, bucket: str, credentials: None, tmp_path: Path
) -> None:
    """With an SSE-C key, which every part needs."""
    body = tmp_path / "body"
    body.write_bytes(bytes(range(256)) * (68 << 10))  # 17 MiB
    seen: list[Exchange] = []
    with s3_proxy(seaweed) as proxy:
        proxy.plan = lambda exchange: seen.append(exchange)
        url = parse_url(f"{proxy.url(bucket, 'parts')}&partSize=5MiB&concurrency=1")
        async with DirectS3Storage(url, Credentials("", "", sse_customer_key=KEY)) as storage:
            await storage.put("a", body)
            assert (await storage.get("a")).data == body.read_bytes()
    parts = [exchange for exchange in seen if "partNumber=" in exchange.query]
    assert [len(exchange.body) >> 20 for exchange in parts] == [5, 5, 5, 2]
    assert ["partNumber=1" in parts[0].query, "partNumber=4" in parts[3].query] == [True, True], "one after the other"


@pytest.mark.parametrize("backend", BACKENDS)
async def test_litestreams_variable_names_the_endpoint_of_a_url_without_one(
    backend: Backend, seaweed: SeaweedServer, bucket: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT_VARIABLE, seaweed.endpoint.removeprefix("http://"))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    async with backend(ReplicaURL("s3", f"endpoint/{backend.__name__}", bucket=bucket)) as storage:
        await storage.put("a", DATA)
        assert (await storage.get("a")).data == DATA
    async with backend(parse_url("s3://b/x?endpoint=http://127.0.0.1:1")) as storage:
        with pytest.raises(StorageError):
            await storage.get("a")
