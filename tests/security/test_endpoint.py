"""A hostile endpoint, or a network that nobody vouches for: no part of an answer takes time or memory without limit."""

from __future__ import annotations

import itertools
import os
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from litereplica.errors import ExitCode, StorageError, TransientStorageError
from litereplica.storage.base import ByteRange, Storage, Suffix
from litereplica.storage.s3 import S3Storage
from litereplica.storage.s3_direct import DirectS3Storage
from litereplica.storage.url import parse_url
from litereplica.testing.mounts import MountedReplica
from tests.helpers.publisher import Publisher
from tests.helpers.tcp_store import Backend
from tests.security.endpoint import (
    FLOOD_BYTES,
    Attack,
    Endpoint,
    Request,
    answer,
    drip,
    flood,
    listing,
    part,
    serving,
)
from tests.security.limited import RESIDENT_KIB, limited, require_orderly, resident_kib

PATIENCE_S = 0.4
FAST = 1 << 30
"""A least rate that leaves nothing but the patience."""

MOST_MESSAGE_KIB = 200 << 10
"""Memory for a message that has no end."""

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret-that-is-private"}


@pytest.fixture(params=[S3Storage, DirectS3Storage], ids=["boto3", "direct"])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("litereplica.storage.s3_client.READ_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr("litereplica.storage.pace.LIST_PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr("litereplica.storage.pace.MIN_KEYS_PER_S", FAST)
    monkeypatch.setattr("litereplica.storage.pace.MIN_BYTES_PER_S", FAST)


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    with Publisher(tmp_path, setup="CREATE TABLE t(x); INSERT INTO t VALUES (1)") as made:
        made.transaction("INSERT INTO t VALUES (2)")
        yield made


@pytest.fixture
def endpoint(publisher: Publisher) -> Iterator[Endpoint]:
    with serving(publisher.replica) as made:
        yield made


def storage_of(backend: Backend, endpoint: Endpoint) -> Storage:
    return backend(parse_url(endpoint.url))


HEAD = b"HTTP/1.1 200 OK\r\n"
PAGE = listing([f"app.db/0000/{i:016x}-{i:016x}.ltx" for i in range(1, 9)], prefix="app.db/0000/").encode()


def endless_pages(connection: socket.socket, request: Request) -> bool:
    """Each page of a listing names another one, and has no keys."""
    if not request.is_listing:
        return False
    token = int(request.query.get("continuation-token", "0")) + 1
    connection.sendall(answer(listing([], prefix=request.query.get("prefix", ""), token=str(token)).encode()))
    return True


def same_token(connection: socket.socket, request: Request) -> bool:
    """Each page of a listing names the same one."""
    if not request.is_listing:
        return False
    connection.sendall(answer(listing([], token="again").encode()))
    return True


SLOW: dict[str, Attack] = {
    "status": drip(b"HTTP/1.1 2"),
    "headers": drip(HEAD + b"x-a: "),
    "many headers": drip(HEAD + b"a: b\r\n" * 50),
    "informational answers": drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
    "body": drip(answer(PAGE, length=1 << 20)),
    "error": drip(answer(b"<Error>", status="500 Oops", length=1 << 20)),
}


OPERATIONS = ("get", "head", "list", "put", "put file", "delete")
BODILESS = {("head", "body"), ("head", "error")}
"""An answer to HEAD has no body."""


@pytest.mark.parametrize(("operation", "slow"), sorted({*itertools.product(OPERATIONS, SLOW)} - BODILESS))
@pytest.mark.slow
async def test_answer_that_drips_is_given_up(
    impatient: None, backend: Backend, endpoint: Endpoint, operation: str, slow: str, tmp_path: Path
) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"x" * 100_000)
    endpoint.attack = SLOW[slow]
    async with storage_of(backend, endpoint) as storage:
        requests: dict[str, Callable[[], Awaitable[object]]] = {
            "list": lambda: storage.list("0000/"),
            "head": lambda: storage.head("0000/k"),
            "get": lambda: storage.get("0000/k", ByteRange(0, 100_000)),
            "put": lambda: storage.put_if_absent("0000/k", b"x"),
            "put file": lambda: storage.put("0000/k", file),
            "delete": lambda: storage.delete(["0000/k", "0000/l"]),
        }
        with pytest.raises(TransientStorageError) as caught:
            await requests[operation]()
    assert "private" not in str(caught.value)


@pytest.mark.parametrize("attack", [endless_pages, same_token])
async def test_listing_without_end_is_given_up(
    impatient: None, backend: Backend, endpoint: Endpoint, attack: Attack
) -> None:
    endpoint.attack = attack
    async with storage_of(backend, endpoint) as storage:
        with pytest.raises(StorageError):
            await storage.list("0000/")


async def test_listing_with_more_keys_than_fit_is_refused(
    impatient: None, backend: Backend, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("litereplica.storage.pace.MEMORY_PER_KEY", 1 << 60)
    async with storage_of(backend, endpoint) as storage:
        with pytest.raises(StorageError, match="too many for this machine's memory") as caught:
            await storage.list("")
    assert not isinstance(caught.value, TransientStorageError)
    assert caught.value.hint


@pytest.mark.parametrize(
    "head",
    [
        answer(b"", length=1 << 40),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n",
        HEAD + b"\r\n",
        answer(b"<Error>", length=1 << 40, status="503 Slow Down"),
        answer(b"<Error>", length=1 << 40, status="404 Not Found"),
    ],
    ids=["length", "chunked", "until closed", "error", "missing"],
)
async def test_message_without_end_is_given_up(
    impatient: None, backend: Backend, endpoint: Endpoint, head: bytes
) -> None:
    endpoint.attack = flood(head)
    before = resident_kib(os.getpid())
    async with storage_of(backend, endpoint) as storage:
        for request in (storage.list, storage.list_directory):
            with pytest.raises(StorageError):
                await request("0000/")
        with suppress(StorageError):  # no error: a body is left where the range ends
            await storage.get("0000/k", ByteRange(0, 100))
    assert resident_kib(os.getpid()) - before < MOST_MESSAGE_KIB


HOSTILE_HEADERS: dict[str, bytes] = {
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "length of 5,000 digits": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 100\r\n\r\nx",
    "range of 5,000 digits": b"HTTP/1.1 206 P\r\nContent-Length: 1\r\nContent-Range: bytes 0-0/"
    + b"9" * 5000
    + b"\r\n\r\nx",
    "other range": b"HTTP/1.1 206 P\r\nContent-Length: 1\r\nContent-Range: bytes 7-7/9\r\n\r\nx",
    "backward range": b"HTTP/1.1 206 P\r\nContent-Length: 1\r\nContent-Range: bytes 9-2/9\r\n\r\nx",
    "no status": b"hello\r\n\r\n",
    "status of 5,000 digits": b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n",
    "control characters": HEAD + b"ETag: \x1b[2J\x07\r\nContent-Length: 0\r\n\r\n",
    "header without end": HEAD + b"a: " + b"x" * 200_000,
    "1,000 headers": HEAD + b"a: b\r\n" * 1000 + b"\r\n",
    "time of nobody": HEAD + b"Last-Modified: yesterday\r\nContent-Length: 1\r\n\r\nx",
    "compressed": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nxyz",
    "redirected to itself": b"HTTP/1.1 307 T\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    "redirected to a file": b"HTTP/1.1 307 T\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # urllib3 leaves a socket to the collector
@pytest.mark.parametrize("reply", HOSTILE_HEADERS)
@pytest.mark.parametrize("span", [ByteRange(0, 3), Suffix(3)], ids=["range", "suffix"])
async def test_hostile_answer_to_a_read_is_an_error_of_storage_or_the_bytes_asked_for(
    impatient: None, backend: Backend, endpoint: Endpoint, reply: str, span: ByteRange | Suffix
) -> None:
    def attack(connection: socket.socket, request: Request) -> bool:
        connection.sendall(HOSTILE_HEADERS[reply])
        return True

    endpoint.attack = attack
    async with storage_of(backend, endpoint) as storage:
        try:
            blob = await storage.get("0000/k", span)
        except StorageError as exc:
            assert "private" not in str(exc)  # noqa: PT017 - either is right
        else:
            assert len(blob.data) <= 3


ENTRY = "<Contents><Key>app.db/0000/k</Key>{}</Contents>"
HOSTILE_PAGES = {
    "size of 5,000 digits": ENTRY.format(f"<Size>{'9' * 5000}</Size>"),
    "negative size": ENTRY.format("<Size>-5</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>"),
    "no size": ENTRY.format("<LastModified>2026-01-01T00:00:00.000Z</LastModified>"),
    "year 99999": ENTRY.format("<Size>1</Size><LastModified>99999-01-01T00:00:00.000Z</LastModified>"),
    "entities": '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    + ENTRY.format("<Size>1</Size>"),
    "external entity": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + ENTRY.format("<Size>&x;</Size>"),
    "nested": "<a>" * 20_000,
    "not XML": "\x00\x01\x02",
    "another prefix": "<Contents><Key>other/0000/k</Key><Size>1</Size></Contents>",
    "leading up": "<Contents><Key>app.db/../../etc/passwd</Key><Size>1</Size></Contents>",
}


@pytest.mark.parametrize("page", HOSTILE_PAGES)
async def test_hostile_page_of_a_listing_is_an_error_of_storage_or_names_keys_below_the_prefix(
    impatient: None, backend: Backend, endpoint: Endpoint, page: str
) -> None:
    def attack(connection: socket.socket, request: Request) -> bool:
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{HOSTILE_PAGES[page]}</ListBucketResult>"
        connection.sendall(answer(body.encode()))
        return True

    endpoint.attack = attack
    async with storage_of(backend, endpoint) as storage:
        try:
            found = await storage.list("0000/")
        except StorageError as exc:
            assert "root:" not in str(exc)  # noqa: PT017 - either is right
        else:
            assert all(info.key.startswith("0000/") and ".." not in info.key for info in found)


# --- a running mount -------------------------------------------------------------------------------------------------

PROBLEMS = [
    "polling fails",
    "no progress since",
    "is not used",
    "read: ",
]


def longer_body(connection: socket.socket, request: Request) -> bool:
    """Sends gigabytes for a range."""
    if request.is_listing:
        return False
    return flood(HEAD + b'ETag: "e"\r\nContent-Length: 8589934592\r\n\r\n')(connection, request)


def page_without_end(connection: socket.socket, request: Request) -> bool:
    """Answers a listing with a page of gigabytes."""
    return request.is_listing and flood(answer(PAGE, length=FLOOD_BYTES))(connection, request)


def error_without_end(connection: socket.socket, request: Request) -> bool:
    """Refuses everything, with a message of gigabytes."""
    head = answer(b"<Error><Code>", length=FLOOD_BYTES, status="403 Forbidden")
    return flood(head)(connection, request)


def other_bytes(connection: socket.socket, request: Request) -> bool:
    """Says that the object is huge, and sends zeroes."""
    if request.is_listing:
        return False
    connection.sendall(part(bytes(1 << 20), request))
    return True


def reset(connection: socket.socket, request: Request) -> bool:
    """Closes the connection without an answer."""
    connection.close()
    return True


def refusal(connection: socket.socket, request: Request) -> bool:
    """Denies access."""
    connection.sendall(answer(b"", status="403 Forbidden"))
    return True


ON_A_MOUNT: dict[str, Attack] = {
    "headers drip": SLOW["headers"],
    "bodies drip": SLOW["body"],
    "pages without end": endless_pages,
    "longer bodies": longer_body,
    "errors without end": error_without_end,
    "other bytes": other_bytes,
    "resets": reset,
    "refusals": refusal,
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ON_A_MOUNT)
@pytest.mark.parametrize("client", ["direct", "boto3"])
def test_running_mount_serves_on_while_the_endpoint_attacks_and_recovers_afterwards(
    publisher: Publisher,
    endpoint: Endpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    client: str,
    attack: str,
) -> None:
    for name, value in {**ENVIRONMENT, "LITEREPLICA_S3_CLIENT": client}.items():
        monkeypatch.setenv(name, value)
    with MountedReplica(endpoint.url, tmp_path / "mount", expected_problems=PROBLEMS) as mount:
        mount.wait_until(lambda: mount.status()["replica"]["hydration"]["state"] == "complete", what="hydration")
        endpoint.attack = ON_A_MOUNT[attack]
        asked = endpoint.requests
        mount.wait_until(lambda: endpoint.requests >= asked + 2, what="two requests")
        with closing(sqlite3.connect(mount.path)) as reader:
            assert reader.execute("SELECT x FROM t ORDER BY x").fetchall() == [(1,), (2,)]
        endpoint.attack = None
        mount.wait_for(publisher.transaction("INSERT INTO t VALUES (3)"), within_s=60)
        assert resident_kib(mount.pid) < RESIDENT_KIB
        assert "secret" not in mount.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "attack"),
    [
        *itertools.product(
            ["restore", "verify", "ltx", "history", "mount"], ["longer bodies", "other bytes", "resets", "refusals"]
        ),
        ("ltx", "page without end"),
        ("mount", "page without end"),
        ("restore", "errors without end"),
    ],
)
def test_command_ends_in_bounds_at_a_hostile_endpoint(
    publisher: Publisher,
    endpoint: Endpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attack: str,
    command: str,
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    endpoint.attack = (ON_A_MOUNT | {"page without end": page_without_end})[attack]
    (tmp_path / "mnt").mkdir()
    outputs = {"restore": ["-o", str(tmp_path / "restored.db")], "mount": []}
    arguments = [
        command,
        *outputs.get(command, []),
        endpoint.url,
        *([str(tmp_path / "mnt")] if command == "mount" else []),
    ]
    ended = limited(*arguments, deadline_s=120)
    listing_only = [ExitCode.OK] if command in ("ltx", "history") else []
    require_orderly(ended, ExitCode.STORE, ExitCode.DAMAGED, ExitCode.NOT_FOUND, *listing_only)
    assert "secret" not in ended.stderr
    assert not (tmp_path / "restored.db").exists()
