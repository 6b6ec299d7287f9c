"""An S3 endpoint that serves the replica of a `Publisher`, and attacks its clients when a test says so."""

from __future__ import annotations

import socket
import socketserver
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from xml.sax.saxutils import escape

from litereplica.testing import server_thread

HOST = "127.0.0.1"
BUCKET = "bucket"
DRIP_S = 0.02
HEADERS = 'ETag: "{}"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {}\r\n'
FLOOD_BYTES = 8 << 30
CHUNK = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Request:
    """A request: its method, key (empty for a listing), query, and headers with names in lower case."""

    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def is_listing(self) -> bool:
        return "list-type" in self.query


Attack: TypeAlias = Callable[[socket.socket, Request], bool]
"""Answers a request, and returns True; or returns False for one that gets the usual answer."""


class Endpoint:
    """The server. `attack` may be set at any time; `requests` counts those that came."""

    def __init__(self, replica: Path) -> None:
        self._replica = replica
        self.attack: Attack | None = None
        self.requests = 0
        self.sent = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/app.db?endpoint=http://{HOST}:{self.port}&region=us-east-1&forcePathStyle=true"

    def handle(self, connection: socket.socket) -> None:
        connection.settimeout(60)
        with suppress(OSError):
            while (request := read_request(connection)) is not None:
                self.requests += 1
                if self.attack is not None and self.attack(connection, request):
                    return
                connection.sendall(self._answer(request))

    def objects(self) -> dict[str, Path]:
        """The files of the replica by their keys."""
        found = {}
        for path in sorted(self._replica.glob("ltx/*/*.ltx")):
            found[f"app.db/{int(path.parent.name):04x}/{path.name}"] = path
        return found

    def _answer(self, request: Request) -> bytes:
        objects = self.objects()
        if request.is_listing:
            prefix, after = request.query.get("prefix", ""), request.query.get("start-after", "")
            keys = [key for key in objects if key.startswith(prefix) and key > after]
            sizes = {key: objects[key].stat().st_size for key in keys}
            return answer(listing(keys, prefix=prefix, sizes=sizes).encode())
        path = objects.get(request.key)
        if path is None:
            return answer(b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>", status="404 Not Found")
        return part(path.read_bytes(), request)


def listing(keys: list[str], *, prefix: str = "", token: str = "", sizes: Mapping[str, int] | None = None) -> str:
    """The XML of a page of a listing; with a token, it is not the last one."""
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f'<ETag>"e"</ETag><Size>{(sizes or {}).get(key, 300)}</Size></Contents>'
        for key in keys
    )
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return (
        f'<?xml version="1.0"?><ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix>'
        f"<KeyCount>{len(keys)}</KeyCount>{more or '<IsTruncated>false</IsTruncated>'}{entries}</ListBucketResult>"
    )


def answer(body: bytes, *, status: str = "200 OK", length: int | None = None) -> bytes:
    """A whole answer; `length` is what it claims."""
    head = HEADERS.format("e", len(body) if length is None else length)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def part(data: bytes, request: Request) -> bytes:
    """The answer to a request with a range."""
    wanted = request.headers.get("range", "").removeprefix("bytes=")
    first, _, last = wanted.partition("-")
    if not wanted:
        return answer(data)
    start = len(data) - min(int(last), len(data)) if not first else int(first)
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= len(data):
        return answer(b"<Error><Code>InvalidRange</Code></Error>", status="416 Range Not Satisfiable")
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{stop - 1}/{len(data)}\r\n"
    return (head + HEADERS.format(len(data), stop - start) + "\r\n").encode() + data[start:stop]


def drip(data: bytes) -> Attack:
    """Send something a byte at a time, and then go on for ever."""

    def attack(connection: socket.socket, request: Request) -> bool:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(DRIP_S)
        while True:
            connection.sendall(b"x")
            time.sleep(DRIP_S)

    return attack


def flood(head: bytes) -> Attack:
    """Send a head, and then gigabytes."""

    def attack(connection: socket.socket, request: Request) -> bool:
        connection.sendall(head)
        for _ in range(FLOOD_BYTES // len(CHUNK)):
            connection.sendall(CHUNK)
        return True

    return attack


@contextmanager
def serving(replica: Path) -> Iterator[Endpoint]:
    """An endpoint that behaves until `attack` is set."""
    endpoint = Endpoint(replica)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            endpoint.handle(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True
        block_on_close = False

    with server_thread.serving(Server((HOST, 0), Handler)) as endpoint.port:
        yield endpoint


def read_request(connection: socket.socket) -> Request | None:
    """The next request on a connection; None if the client has closed it."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(65536)
        if not data:
            return None
        head += data
    first, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    split = urllib.parse.urlsplit(target)
    query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method, urllib.parse.unquote(split.path).removeprefix(f"/{BUCKET}").lstrip("/"), query, headers)
