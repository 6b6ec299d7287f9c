"""Signatures, connections and pages of listings of the S3 client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import given
from hypothesis import strategies as st

from litereplica.errors import UsageError
from litereplica.storage import http_pool, s3_client, s3_connection
from litereplica.storage.base import ByteRange
from litereplica.storage.fresh_connection import WANTS_FRESH_CONNECTION
from litereplica.storage.http_pool import HTTPPool
from litereplica.storage.s3_direct import DirectS3Storage
from litereplica.storage.s3_listing import PAGE_KEYS, encoded_parameters, parse_page
from litereplica.storage.s3_signature import KeyPair, encoded_query, signed
from litereplica.storage.url import parse_url

NOW = datetime(2026, 11, 29, 12, 30, 1, tzinfo=UTC)
TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12)


@given(
    prefix=TEXT,
    after=TEXT,
    token=st.none() | TEXT,
    region=st.sampled_from(["us-east-1", "eu-central-1"]),
    session=st.sampled_from(["", "a/token+of=a session"]),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    body=st.binary(max_size=5),
)
def test_signature_is_that_of_botocore(
    prefix: str, after: str, token: str | None, region: str, session: str, value: str, body: bytes
) -> None:
    from hashlib import sha256
    from urllib.parse import quote

    query = encoded_query(encoded_parameters(prefix, delimiter="/", start_after=after, token=token))
    path = quote(f"/bucket/{prefix}/k")
    headers = {"host": "store.example:9000", "range": "bytes=0-5", "x-amz-meta-a": value}
    found = signed(
        "PUT",
        path,
        query,
        headers,
        keys=KeyPair("AKID", "secret", session),
        region=region,
        payload_sha256=sha256(body).hexdigest(),
        now=NOW,
    )
    request = AWSRequest("PUT", f"https://store.example:9000{path}?{query}", dict(headers), body)
    request.context["payload_signing_enabled"] = True
    with patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None), create=True):
        S3SigV4Auth(BotocoreCredentials("AKID", "secret", session or None), "s3", region).add_auth(request)
    assert found["authorization"] == request.headers["Authorization"]


@pytest.mark.parametrize("partition", ["aws", "aws-cn"])
def test_access_point_has_the_endpoint_and_path_of_botocore(partition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    region = "eu-west-1" if partition == "aws" else "cn-north-1"
    arn = f"arn:{partition}:s3:{region}:123456789012:accesspoint/my-point"
    url = parse_url(f"s3://{arn}/some/path")
    assert (url.bucket, url.path, url.region) == (arn, "some/path", region)
    assert parse_url(str(url)) == url
    with closing(s3_connection.connect(url)) as direct, closing(s3_client.connect(url)) as boto:
        expected = urlsplit(boto.generate_presigned_url("get_object", {"Bucket": url.bucket, "Key": "some/path/k"}))
        assert (direct.host, direct.path("some/path/k")) == (expected.netloc, expected.path)


# --- connections -----------------------------------------------------------------------------------------------------

Serve = Callable[[socket.socket, int], None]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: e\r\n\r\nok"


@contextmanager
def server(serve: Serve) -> Iterator[int]:
    """Gives each connection with its number to `serve`; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        number = 0
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(10)
                threading.Thread(target=one, args=(connection, number), daemon=True).start()
                number += 1

    def one(connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError):
            serve(connection, number)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def head_of(connection: socket.socket) -> bytes:
    """The head of the next request; empty if there is none."""
    data = b""
    while b"\r\n\r\n" not in data and (part := connection.recv(65536)):
        data += part
    return data


def test_connection_is_used_again_and_one_that_the_server_closed_is_not_noticed() -> None:
    served: list[int] = []

    def serve(connection: socket.socket, number: int) -> None:
        for _ in range(2):  # a third request finds the connection closed
            if head_of(connection):
                served.append(number)
                connection.sendall(ANSWER)

    with server(serve) as port, closing(HTTPPool(f"http://127.0.0.1:{port}", None)) as pool:
        for _ in range(5):
            answer, connection = pool.request("GET", "/k", {"host": "h"})
            assert answer.read1(10) == b"ok"
            pool.give_back(connection, answer)
    assert served == [0, 0, 1, 1, 2]


def test_request_that_a_kept_connection_resets_is_repeated_only_if_it_reads() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        head_of(connection)
        connection.sendall(ANSWER)
        head_of(connection)  # and closes without an answer, as a server whose idle timeout has just expired

    for method, is_repeated in (("GET", True), ("PUT", False)):
        with server(serve) as port, closing(HTTPPool(f"http://127.0.0.1:{port}", None)) as pool:
            answer, connection = pool.request("GET", "/k", {"host": "h"})
            answer.read1(10)
            pool.give_back(connection, answer)
            if is_repeated:
                answer, connection = pool.request(method, "/k", {"host": "h"})
                assert answer.status == 200
                pool.give_back(connection, answer)
            else:
                with pytest.raises(ConnectionError):
                    pool.request(method, "/k", {"host": "h"})


def test_answer_that_comes_before_the_body_was_sent_is_read() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    with server(serve) as port, closing(HTTPPool(f"http://127.0.0.1:{port}", None)) as pool:
        answer, connection = pool.request("PUT", "/k", {"host": "h"}, bytes(4 << 20))
        assert answer.status == 412
        pool.give_back(connection, answer)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_proxy_of_the_environment_is_used_unless_the_host_is_excepted(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-that-is-private")
    seen: list[bytes] = []

    def serve(connection: socket.socket, number: int) -> None:
        seen.append(head_of(connection))
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with server(serve) as port:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://us%40er:word@127.0.0.1:{port}")
        url = f"s3://b/x?endpoint={scheme}://store.example"
        with pytest.raises(Exception, match=r"403|Forbidden"):
            async with DirectS3Storage(parse_url(url)) as storage:
                await storage.get("k", ByteRange(0, 1))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(Exception, match="403"):
            async with DirectS3Storage(parse_url(f"s3://b/x?endpoint=http://127.0.0.1:{port}")) as storage:
                await storage.get("k", ByteRange(0, 1))
    through, past = seen
    first = through.split(b"\r\n", 1)[0]
    wanted = b"CONNECT store.example:443 " if scheme == "https" else b"GET http://store.example/b/x/k "
    assert first.startswith(wanted)
    assert b"Proxy-Authorization: Basic dXNAZXI6d29yZA==" in through
    assert past.startswith(b"GET /b/x/k ")
    assert b"private" not in through + past


# --- pages -----------------------------------------------------------------------------------------------------------


def page(content: str) -> bytes:
    return f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/">{content}</ListBucketResult>'.encode()


def test_page_has_keys_below_the_base_decoded_with_size_time_and_tag() -> None:
    found = parse_page(
        page(
            "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>n</NextContinuationToken>"
            "<Contents><Key>a/b+c%2Bd%01</Key><Size>5</Size><ETag>&quot;e&quot;</ETag>"
            "<LastModified>1970-01-01T00:00:01.500Z</LastModified><Owner><ID>7</ID></Owner></Contents>"
            "<Contents><Key>other</Key><Size>1</Size></Contents>"
            "<CommonPrefixes><Prefix>a/d/</Prefix></CommonPrefixes>"
        ),
        "a/",
    )
    (info,) = found.objects
    assert (info.key, info.size, info.modified_ms, info.etag) == ("b c+d\x01", 5, 1500, '"e"')
    assert (found.prefixes, found.token, len(found)) == (["d/"], "n", 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>busy</html>",
        b"<!DOCTYPE a><ListBucketResult/>",
        page("<Contents>"),
        page("<Contents><Key>a</Key><Size>-1</Size></Contents>"),
        page(f"<Contents><Key>a</Key><Size>{'9' * 19}</Size></Contents>"),
        page("<Contents><Key>a</Key><Size>1</Size><LastModified>2026-01-01T00:00:00</LastModified></Contents>"),
        page("<IsTruncated>true</IsTruncated>"),
        page("<Contents/>" * (PAGE_KEYS + 1)),
    ],
)
def test_what_is_no_page_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"listing|time|Invalid"):
        parse_page(data, "")


def test_connections_that_the_network_has_lost_are_left_at_once() -> None:
    """All that were used before are silent, as after a change of the network; new ones are answered."""
    lost: set[socket.socket] = set()
    taken: list[socket.socket] = []

    def serve(connection: socket.socket, _: int) -> None:
        taken.append(connection)
        while connection.recv(4096):
            if connection not in lost:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def read(pool: HTTPPool) -> bytes:
        answer, connection = pool.request("GET", "/", {"host": pool.host})
        body = answer.read1(10)
        pool.give_back(connection, answer)
        return body

    with server(serve) as port, closing(HTTPPool(f"http://127.0.0.1:{port}", None)) as pool:
        kept = [pool.request("GET", "/", {"host": pool.host}) for _ in range(5)]
        for answer, connection in kept:
            assert answer.read1(10) == b"ok"
            pool.give_back(connection, answer)
        lost.update(taken)
        token = WANTS_FRESH_CONNECTION.set(True)
        try:
            assert read(pool) == b"ok"
        finally:
            WANTS_FRESH_CONNECTION.reset(token)
        lost.update(taken)
        with patch.object(s3_client, "READ_TIMEOUT_S", 0.2):
            for _, connection in pool._idle:
                connection.sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                read(pool)
            assert read(pool) == b"ok", "the first one that is not answered says enough of the others"


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = 0

    def serve(connection: socket.socket, _: int) -> None:
        nonlocal connections
        connections += 1
        while connection.recv(4096):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with server(serve) as port, closing(HTTPPool(f"http://127.0.0.1:{port}", None)) as pool:
        for max_idle_s, expected in ((30.0, 1), (30.0, 1), (-1.0, 2)):
            monkeypatch.setattr(http_pool, "MAX_IDLE_S", max_idle_s)
            answer, connection = pool.request("GET", "/", {"host": pool.host})
            pool.give_back(connection, answer)
            assert connections == expected


@pytest.mark.parametrize("value", ["HIDDEN\n", " HIDDEN", "HIDD\u00e9N", "HIDD\0EN"])
@pytest.mark.parametrize("name", ["access_key_id", "secret_access_key", "session_token"])
def test_credentials_that_no_header_can_have_are_named_and_not_repeated(name: str, value: str) -> None:
    values = {"access_key_id": "id", "secret_access_key": "key", name: value}
    with pytest.raises(UsageError, match=name) as failed:
        KeyPair(**values)
    assert "HIDD" not in str(failed.value)
    assert f"AWS_{name.upper()}" in str(failed.value)


def test_a_listing_of_deep_elements_is_refused() -> None:
    with pytest.raises(ValueError, match="too deep"):
        parse_page(b"<ListBucketResult>" + b"<a>" * 500_000, "")


@pytest.mark.parametrize(
    ("variables", "config"),
    [
        pytest.param({"AWS_ENDPOINT_URL": "http://127.0.0.1:8333"}, "", id="variable"),
        pytest.param({"AWS_ENDPOINT_URL_S3": "http://minio.example"}, "", id="variable of S3"),
        pytest.param({}, "[default]\nendpoint_url = http://minio.example:9000\n", id="profile"),
        pytest.param(
            {}, "[default]\nservices = own\n[services own]\ns3 =\n  endpoint_url = http://own.example\n", id="services"
        ),
        pytest.param(
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "", id="ignored"
        ),
    ],
)
def test_both_clients_ask_the_same_server(
    variables: dict[str, str], config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    file.write_text(config)
    given = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_CONFIG_FILE": str(file)}
    for name, value in {**given, **variables}.items():
        monkeypatch.setenv(name, value)
    if not config:
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    url = parse_url("s3://bucket/some/path")
    with closing(s3_connection.connect(url)) as direct, closing(s3_client.connect(url)) as boto:
        expected = urlsplit(boto.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "some/path/k"}))
        assert direct.path("some/path/k") == expected.path
        assert direct.host.replace(".us-east-1", "") == expected.netloc.replace(".us-east-1", "")
