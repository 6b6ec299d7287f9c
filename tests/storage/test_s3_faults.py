"""Servers and networks that misbehave, and what each S3 error becomes."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import trio

from litereplica.errors import (
    AccessDenied,
    BucketNotFound,
    NotFound,
    NotSupported,
    PreconditionFailed,
    StorageError,
    TransientStorageError,
)
from litereplica.storage.base import ByteRange, Storage
from litereplica.storage.s3 import S3Storage
from litereplica.storage.s3_direct import DirectS3Storage
from litereplica.storage.s3_errors import Failure, of_code
from litereplica.storage.url import parse_url
from tests.helpers.tcp_store import Backend, answer, headers, tcp_server
from tests.helpers.waiting import wait_until

SILENCE_S = 20.0
"""A server that says nothing says it for longer than a busy machine takes to make a client."""

FAILURE = Failure("read 0000/k", key="0000/k", url="s3://bucket/path")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-that-is-private")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("NoSuchKey", 404, NotFound),
        ("404", 404, NotFound),
        ("NoSuchBucket", 404, BucketNotFound),
        ("NoSuchUpload", 404, TransientStorageError),
        ("AccessDenied", 403, AccessDenied),
        ("403", 403, AccessDenied),
        ("InvalidAccessKeyId", 403, AccessDenied),
        ("SignatureDoesNotMatch", 403, AccessDenied),
        ("ExpiredToken", 400, AccessDenied),
        ("RequestTimeTooSkewed", 403, AccessDenied),
        ("PreconditionFailed", 412, PreconditionFailed),
        ("ConditionalRequestConflict", 409, TransientStorageError),
        ("SlowDown", 503, TransientStorageError),
        ("InternalError", 500, TransientStorageError),
        ("", 502, TransientStorageError),
        ("504", 504, TransientStorageError),
        ("TooManyRequests", 429, TransientStorageError),
        ("RequestTimeout", 400, TransientStorageError),
        ("", 408, TransientStorageError),
        ("NotImplemented", 501, NotSupported),
        ("PermanentRedirect", 301, StorageError),
        ("InvalidBucketName", 400, StorageError),
        ("AccessDenied", 0, AccessDenied),
        ("InternalError", 0, TransientStorageError),
    ],
)
def test_each_code_of_s3_has_its_error(code: str, status: int, kind: type[StorageError]) -> None:
    error = of_code(code, status, "a message\nof two lines " + "x" * 1000, FAILURE)
    assert type(error) is kind
    assert error.key == "0000/k"
    assert error.hint or kind in (NotFound, PreconditionFailed)
    assert "\n" not in str(error)
    assert len(str(error)) < 600


@pytest.fixture(params=[S3Storage, DirectS3Storage], ids=["boto3", "direct"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the two clients."""
    chosen: Backend = request.param
    return chosen


async def error_of_get(storage: Storage) -> StorageError:
    with pytest.raises(StorageError) as caught:
        await storage.get("0000/k")
    await storage.aclose()
    assert "\n" not in str(caught.value)
    assert "private" not in str(caught.value)
    return caught.value


async def test_a_connection_that_is_refused_is_transient_and_the_endpoint_is_named(backend: Backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = await error_of_get(backend(parse_url(f"s3://bucket/path?endpoint=127.0.0.1:{port}")))
    assert isinstance(error, TransientStorageError)
    assert str(port) in str(error)
    assert "endpoint" in (error.hint or "")


async def test_a_connection_that_is_closed_without_an_answer_is_transient(backend: Backend) -> None:
    with tcp_server(backend, lambda connection, _: None) as (storage, requests):
        assert isinstance(await error_of_get(storage), TransientStorageError)
        assert len(requests) == 1, "boto must not try again by itself"


async def test_a_reset_is_transient(backend: Backend) -> None:
    def reset(connection: socket.socket, _: bytes) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with tcp_server(backend, reset) as (storage, _):
        assert isinstance(await error_of_get(storage), TransientStorageError)


async def test_a_body_that_ends_early_is_transient(backend: Backend) -> None:
    with tcp_server(backend, lambda connection, _: connection.sendall(answer(b"12345", length=10))) as (storage, _):
        assert isinstance(await error_of_get(storage), TransientStorageError)


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Slow Down", "429 Too Many Requests"])
async def test_a_busy_server_is_transient_and_asked_once(backend: Backend, status: str) -> None:
    reply = answer(b"<html>busy</html>", status=status)
    with tcp_server(backend, lambda connection, _: connection.sendall(reply)) as (storage, requests):
        assert isinstance(await error_of_get(storage), TransientStorageError)
        assert len(requests) == 1


async def test_silence_is_transient(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litereplica.storage.s3_client.READ_TIMEOUT_S", 0.3)

    def silent(connection: socket.socket, _: bytes) -> None:
        connection.recv(1)  # until the client gives up

    with tcp_server(backend, silent) as (storage, _):
        assert isinstance(await error_of_get(storage), TransientStorageError)


async def test_a_body_that_drips_is_given_up(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litereplica.storage.s3_client.READ_TIMEOUT_S", 0.3)

    def drip(connection: socket.socket, _: bytes) -> None:
        connection.sendall(answer(b"", length=1000))
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    with tcp_server(backend, drip) as (storage, _):
        started = time.monotonic()
        error = await error_of_get(storage)
        assert isinstance(error, TransientStorageError)
        assert "at less than" in str(error)
        assert time.monotonic() - started < 5


async def test_a_cancelled_read_returns_while_the_server_is_silent(backend: Backend) -> None:
    release = threading.Event()

    def silent(_: socket.socket, __: bytes) -> None:
        release.wait(SILENCE_S)

    with tcp_server(backend, silent) as (storage, requests):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.get, "0000/k")
            await wait_until(lambda: len(requests) == 1, within_s=SILENCE_S)
            nursery.cancel_scope.cancel()
            cancelled_at = trio.current_time()
        assert trio.current_time() - cancelled_at < SILENCE_S
        release.set()


async def test_a_store_that_ignores_ranges_still_gives_the_part(backend: Backend) -> None:
    with tcp_server(backend, lambda connection, _: connection.sendall(answer(b"0123456789"))) as (storage, requests):
        blob = await storage.get("0000/k", ByteRange(2, 4))
        await storage.aclose()
    assert (blob.data, blob.size) == (b"23", 10)
    assert b"bytes=2-3" in requests[0]


async def test_something_that_is_not_s3_is_a_final_error(backend: Backend) -> None:
    page = answer(b"<html><body>Welcome</body>", status="400 Bad Request")
    with tcp_server(backend, lambda connection, _: connection.sendall(page)) as (storage, _):
        with pytest.raises(StorageError) as caught:
            await storage.list("0000/")
        await storage.aclose()
    assert type(caught.value) is StorageError
    assert "endpoint" in (caught.value.hint or "")


async def test_a_batch_deletion_reports_the_keys_that_failed(backend: Backend) -> None:
    error = b"<Error><Key>path/0000/b</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    failed = b"<DeleteResult>" + error + b"</DeleteResult>"
    with tcp_server(backend, lambda connection, _: connection.sendall(answer(failed))) as (storage, requests):
        with pytest.raises(AccessDenied) as caught:
            await storage.delete(["0000/a", "0000/b"])
        await storage.aclose()
    assert caught.value.key == "0000/b"
    head = requests[0].lower()
    assert b"content-md5:" in head
    assert b"x-amz-checksum" not in head
    assert b"aws-chunked" not in head


async def test_a_put_carries_no_checksum_trailer(backend: Backend) -> None:
    with tcp_server(backend, lambda connection, _: connection.sendall(answer(b""))) as (storage, requests):
        assert await storage.put_if_absent("0000/k", b"x") == '"e"'
        await storage.aclose()
    head = requests[0].lower()
    assert b"if-none-match: *" in head
    assert b"x-amz-checksum" not in head
    assert b"aws-chunked" not in head
    assert b"x-amz-trailer" not in head


# Answers of another shape than S3's


TIME = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT"
CHUNKED = b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        headers(TIME, "Content-Length: 10"),
        headers('ETag: "e"', "Content-Length: 10"),
        headers('etag: "e"', "last-modified: Thu, 01 Jan 2026 00:00:00 GMT", "content-length: 10"),
        headers('ETag: "e"', TIME, "Transfer-Encoding: chunked", body=CHUNKED),
        headers('ETag: "e"', TIME),
        headers('ETag: "e"', TIME, "Content-Length: 10", "Content-Range: bytes 0-9/*", status="206 Partial Content"),
    ],
    ids=["no etag", "no time", "lower case", "chunked", "no length", "unknown size"],
)
async def test_an_answer_of_another_shape_is_read(backend: Backend, reply: bytes) -> None:
    with tcp_server(backend, lambda connection, _: connection.sendall(reply)) as (storage, _):
        blob = await storage.get("0000/k", ByteRange(0, 10))
        await storage.aclose()
    assert (blob.data, blob.size) == (b"0123456789", 10)


@pytest.mark.parametrize("partial", [False, True], ids=["whole object", "longer part"])
async def test_a_body_that_is_longer_than_the_range_is_not_read_to_its_end(backend: Backend, partial: bool) -> None:
    sent = 0
    length = 1 << 33
    kind = [f"Content-Range: bytes 0-{length - 1}/{length}"] if partial else []
    status = "206 Partial Content" if partial else "200 OK"

    def flood(connection: socket.socket, _: bytes) -> None:
        nonlocal sent
        announced = f"Content-Length: {length}"
        connection.sendall(headers('ETag: "e"', TIME, announced, *kind, body=b"", status=status))
        while sent < length:
            connection.sendall(bytes(1 << 20))
            sent += 1 << 20

    with tcp_server(backend, flood) as (storage, _):
        if partial:
            with pytest.raises(StorageError):
                await storage.get("0000/k", ByteRange(0, 100))
        else:
            assert (await storage.get("0000/k", ByteRange(0, 100))).data == bytes(100)
        await storage.aclose()
    assert sent < 100 << 20


# What some stores lack, or want


def refusal(status: str, code: str, message: str) -> bytes:
    return answer(f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode(), status=status)


async def test_objects_are_deleted_one_by_one_where_the_store_lacks_batch_deletion(backend: Backend) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        lacking = head.startswith(b"POST")
        connection.sendall(refusal("501 Not Implemented", "NotImplemented", "no") if lacking else answer(b""))

    with tcp_server(backend, serve) as (storage, requests):
        await storage.delete(["0000/a", "0000/b"])
        await storage.delete(["0000/c"])
        await storage.aclose()
    deleted = [head.split()[1] for head in requests if head.startswith(b"DELETE")]
    assert deleted == [b"/bucket/path/0000/a", b"/bucket/path/0000/b", b"/bucket/path/0000/c"]


async def test_content_md5_is_sent_to_a_store_that_wants_it(backend: Backend) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        if b"content-md5:" in head.lower():
            connection.sendall(answer(b""))
        else:
            message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock"
            connection.sendall(refusal("400 Bad Request", "InvalidRequest", message))

    with tcp_server(backend, serve) as (storage, requests):
        assert await storage.put_if_absent("0000/k", b"x") == '"e"'
        asked = len(requests)
        assert await storage.put("0000/l", b"y") == '"e"'
        await storage.aclose()
    assert len(requests) == asked + 1, "it is known from then on"


@pytest.mark.parametrize(
    ("code", "status", "conditional", "hint"),
    [
        ("NotImplemented", 501, True, "no-lease"),
        ("NotImplemented", 501, False, "does not offer"),
        ("QuotaExceeded", 403, False, "specific to the store"),
        ("AccessDenied", 403, False, "credentials"),
    ],
)
def test_a_hint_names_the_cause(code: str, status: int, conditional: bool, hint: str) -> None:
    failure = Failure("write 0000/k", key="0000/k", url="s3://bucket/path", conditional=conditional)
    error = of_code(code, status, "the message", failure)
    assert hint in (error.hint or "")
    assert "the message" in str(error)
