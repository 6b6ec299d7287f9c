"""An HTTP proxy on loopback, in front of a real S3 store, that misbehaves as a test says.

Requests are handed on as they came: clients sign for the proxy's address, which the store sees as they sent it. A plan
tells for each one whether, and how, it goes wrong; conditions can be left out, as stores do that ignore them. What
was stored under which name is written down.

Threads of the caller's own process; they end with it at the latest.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from litereplica.testing.seaweed import REGION, SeaweedServer
from litereplica.testing.server_thread import serving

HOST = "127.0.0.1"
CONDITIONS = ("if-none-match", "if-match")
DRIP_S = 0.05
"""Between bytes that drip."""
UPSTREAM_TIMEOUT_S = 30.0


class Trouble(StrEnum):
    """What a client sees instead of an answer."""

    RESET = "reset"
    SILENCE = "silence"  # for `seconds`, then a reset
    STATUS = "status"
    DRIP = "drip"  # the answer, a byte at a time
    LATE = "late"  # the request reaches the store after `seconds`, even if the client has gone


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """`effect`: the store gets the request nevertheless, before that; `action` is called in between."""

    trouble: Trouble
    effect: bool = False
    status: int = 503
    seconds: float = 3.0
    action: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request. `path` is without the query; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_conditional(self) -> bool:
        """True if the store is to look at its object first."""
        return any(name in self.headers for name in CONDITIONS)


Plan = Callable[[Exchange], Misbehaviour | None]


class S3Proxy:
    """What the proxy at `url(bucket)` does and has seen. `plan` may be replaced at any time."""

    def __init__(self, server: SeaweedServer) -> None:
        self.server = server
        self.plan: Plan = lambda exchange: None
        self.ignores_conditions = False
        self.stored: dict[str, list[str]] = defaultdict(list)  # path → digest of each put that the store has accepted
        self.sent: dict[str, set[str]] = defaultdict(set)  # path → digests of what was to be put there
        self.answers: dict[str, list[int]] = defaultdict(list)  # path → what the store has said to each put
        self.troubles: Counter[str] = Counter()
        self.port = 0
        self._lock = threading.Lock()

    def url(self, bucket: str, path: str = "app.db") -> str:
        """A replica URL that leads through the proxy."""
        return f"s3://{bucket}/{path}?endpoint=http://{HOST}:{self.port}&region={REGION}&forcePathStyle=true"

    def is_to_fail(self, exchange: Exchange) -> Misbehaviour | None:
        """Return what the plan says, and write down what the request is about."""
        with self._lock:
            misbehaviour = self.plan(exchange)
            if misbehaviour is not None:
                effect = "after its effect" if misbehaviour.effect else "before its effect"
                what = misbehaviour.status if misbehaviour.trouble is Trouble.STATUS else misbehaviour.trouble
                self.troubles[f"{what} {effect}"] += 1
            if exchange.method == "PUT":
                self.sent[exchange.path].add(hashlib.sha256(exchange.body).hexdigest())
            return misbehaviour

    def has_answered(self, exchange: Exchange, status: int) -> None:
        """Write down what the store has said to a put."""
        if exchange.method != "PUT":
            return
        with self._lock:
            self.answers[exchange.path].append(status)
            if status == http.client.OK:
                self.stored[exchange.path].append(hashlib.sha256(exchange.body).hexdigest())

    def headers_for_store(self, exchange: Exchange, raw: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the headers to hand on: those that came, unless the store is to ignore conditions."""
        if not (self.ignores_conditions and exchange.is_conditional):
            return raw
        return self._signed_anew(exchange)

    def _signed_anew(self, exchange: Exchange) -> list[tuple[str, str]]:
        """Without the conditions, which the signature covers."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        kept = {
            name: value
            for name, value in exchange.headers.items()
            if name.startswith("x-amz-meta") or name in ("content-length", "content-type", "content-md5")
        }
        target = f"http://{HOST}:{self.port}{exchange.path}" + (f"?{exchange.query}" if exchange.query else "")
        request: Any = AWSRequest(exchange.method, target, headers=kept, data=exchange.body)
        credentials = Credentials(self.server.access_key, self.server.secret_key)
        S3SigV4Auth(credentials, "s3", REGION).add_auth(request)
        return [("Host", f"{HOST}:{self.port}"), *request.headers.items()]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[S3Proxy]

    def setup(self) -> None:
        super().setup()
        upstream = urllib.parse.urlsplit(self.proxy.server.endpoint)
        assert upstream.hostname is not None
        self._store = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=UPSTREAM_TIMEOUT_S)

    def finish(self) -> None:
        self._store.close()
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at what the proxy has written down."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client has gone, as is its right
            super().handle()

    def _exchange(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urllib.parse.urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        exchange = Exchange(self.command, parts.path, parts.query, headers, body)
        misbehaviour = self.proxy.is_to_fail(exchange)
        if misbehaviour is None:
            self._answer(*self._ask_store(exchange))
            return
        answer = self._ask_store(exchange) if misbehaviour.effect else None
        if misbehaviour.action is not None:
            misbehaviour.action()
        self.close_connection = True
        match misbehaviour.trouble:
            case Trouble.STATUS:
                self._answer(misbehaviour.status, [("Content-Type", "application/xml")], b"<Error></Error>")
            case Trouble.DRIP:
                self._drip(*(answer or self._ask_store(exchange)))
            case Trouble.SILENCE:
                time.sleep(misbehaviour.seconds)
                self._reset()
            case Trouble.RESET:
                self._reset()
            case Trouble.LATE:
                time.sleep(misbehaviour.seconds)
                self._answer(*self._ask_store(exchange))

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _exchange

    def _ask_store(self, exchange: Exchange) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = self.proxy.headers_for_store(exchange, list(self.headers.items()))
        self._store.putrequest(exchange.method, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            if name.lower() not in ("expect", "connection"):
                self._store.putheader(name, value)
        self._store.endheaders(exchange.body)
        response = self._store.getresponse()
        data = response.read()
        self.proxy.has_answered(exchange, response.status)
        dropped = ("transfer-encoding", "connection", "content-length")
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in dropped]
        length = response.getheader("Content-Length") if exchange.method == "HEAD" else str(len(data))
        return response.status, [*kept, ("Content-Length", length or "0")], data

    def _head(self, status: int, headers: list[tuple[str, str]], data: bytes) -> bytes:
        if not any(name == "Content-Length" for name, _ in headers):
            headers = [*headers, ("Content-Length", str(len(data)))]
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.wfile.write(self._head(status, headers, data) + data)

    def _drip(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        for byte in self._head(status, headers, data) + data:
            self.connection.sendall(bytes([byte]))
            time.sleep(DRIP_S)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed, or gives up, is part of the tests."""


@contextmanager
def s3_proxy(server: SeaweedServer) -> Iterator[S3Proxy]:
    """A proxy that behaves until it gets a plan."""
    proxy = S3Proxy(server)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with serving(_Server((HOST, 0), handler)) as proxy.port:
        yield proxy
