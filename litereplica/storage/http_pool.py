"""Connections to one HTTP server that are kept for later requests, with TLS and proxies as the environment says.

An answer is a `PacedResponse`: it arrives in time, or fails. Thread-safe: a connection belongs to one thread from
`request` to `give_back`.
"""

from __future__ import annotations

import base64
import http.client
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from litereplica.errors import UsageError
from litereplica.storage import s3_client
from litereplica.storage.fresh_connection import WANTS_FRESH_CONNECTION
from litereplica.storage.pace import Pace
from litereplica.storage.paced_response import Paced, PacedResponse

BLOCK_BYTES = 64 << 10
"""A body is sent in blocks, since the time limit of a socket counts for one call that sends."""

MAX_IDLE_S = 30.0
"""An older connection is not used again: firewalls and load balancers forget idle ones after a minute or more, and what
is sent on a forgotten one is never answered."""

_REPEATABLE = ("GET", "HEAD")
_SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(s3_client.READ_TIMEOUT_S * 1000)),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class _HTTPConnection(Paced, http.client.HTTPConnection):
    """A connection without TLS."""


class _HTTPSConnection(Paced, http.client.HTTPSConnection):
    """A connection with TLS."""


class HTTPPool:
    """The connections to the server at `endpoint`, a URL whose path is not used. `context` is for TLS."""

    def __init__(self, endpoint: str, context: ssl.SSLContext | None) -> None:
        self._server = urlsplit(endpoint)
        self._context = context
        self._idle: deque[tuple[float, http.client.HTTPConnection]] = deque()  # with the time of their last use
        self._proxy = _proxy_of(self._server)

    @property
    def host(self) -> str:
        """The Host header."""
        return self._server.netloc

    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[PacedResponse, http.client.HTTPConnection]:
        """Send a request, and return the answer with its headers read, and the connection, to be given back.

        Raises `OSError` (as `ConnectionError`, `TimeoutError` and the errors of TLS), `http.client.HTTPException`.
        """
        while True:
            connection, is_kept = self._take()
            try:
                return self._send(connection, method, target, headers, body), connection
            except (BrokenPipeError, ConnectionResetError):
                connection.close()
                if not is_kept or method not in _REPEATABLE:  # a kept connection may have been closed meanwhile
                    raise
            except TimeoutError:
                connection.close()
                if is_kept:
                    self.close()  # the network may have lost all of them
                raise
            except BaseException:
                connection.close()
                raise

    def give_back(self, connection: http.client.HTTPConnection, answer: PacedResponse) -> None:
        """Keep a connection whose answer was read to its end; close another."""
        if answer.length == 0:
            answer.close()
        if answer.isclosed() and not answer.will_close:
            self._idle.append((time.monotonic(), connection))
        else:
            answer.close()
            connection.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            with suppress(IndexError):  # another thread was faster
                self._idle.pop()[1].close()

    def __del__(self) -> None:
        """Close what requests gave back after `close`: a cancelled one continues in its thread."""
        self.close()

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        while self._idle and not WANTS_FRESH_CONNECTION.get():
            try:
                used_at, connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if time.monotonic() - used_at <= MAX_IDLE_S and not _has_news(connection):
                return connection, True
            connection.close()
        return self._connected(), False

    def _connected(self) -> http.client.HTTPConnection:
        via = self._proxy or self._server
        host, port = via.hostname or "", via.port
        made: http.client.HTTPConnection
        if self._server.scheme == "https":
            port = port or (http.client.HTTPS_PORT if self._proxy is None else http.client.HTTP_PORT)
            made = _HTTPSConnection(host, port, timeout=s3_client.CONNECT_TIMEOUT_S, context=self._context)
            if self._proxy is not None:
                made.set_tunnel(
                    self._server.hostname or "",
                    self._server.port or http.client.HTTPS_PORT,
                    _proxy_headers(self._proxy),
                )
        else:
            made = _HTTPConnection(host, port or http.client.HTTP_PORT, timeout=s3_client.CONNECT_TIMEOUT_S)
        try:
            made.connect()
        except BaseException:
            made.close()
            raise
        for option in _SOCKET_OPTIONS:
            made.sock.setsockopt(*option)
        made.sock.settimeout(s3_client.READ_TIMEOUT_S)
        return made

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> PacedResponse:
        if self._proxy is not None and self._server.scheme == "http":
            target = f"http://{self.host}{target}"
            headers = {**headers, **_proxy_headers(self._proxy)}
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body or method == "PUT":
            connection.putheader("content-length", str(len(body)))
        with suppress(BrokenPipeError, ConnectionResetError):  # the answer may say why the server did not wait
            connection.endheaders(_blocks(body) if body else None)
        answer = connection.getresponse()
        assert isinstance(answer, PacedResponse)
        return answer


def tls_context(authorities: str, *, skip_verify: bool) -> ssl.SSLContext:
    """Return the settings of TLS: the system's certificate authorities, and those in the file `authorities`, if any.

    Raises `OSError` if the file cannot be read.
    """
    context = ssl.create_default_context()
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authorities:
        context.load_verify_locations(cafile=authorities)
    elif not any(ssl.get_default_verify_paths()[:2]):  # a container without certificates
        botocore = find_spec("botocore")
        if botocore is not None and botocore.origin is not None:
            context.load_verify_locations(cafile=str(Path(botocore.origin).with_name("cacert.pem")))
    return context


def _blocks(body: bytes) -> Iterator[bytes]:
    """The body in blocks. Raises `ConnectionAbortedError` if they are sent too slowly."""
    pace = Pace(s3_client.READ_TIMEOUT_S)
    view = memoryview(body)
    for start in range(0, len(body), BLOCK_BYTES):
        block = view[start : start + BLOCK_BYTES]
        yield bytes(block)
        pace.received(len(block))


def _has_news(connection: http.client.HTTPConnection) -> bool:
    """True if an idle connection was closed by the server, or has data that nobody asked for."""
    if connection.sock is None:
        return True
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _proxy_of(server: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for a server, as curl reads it. Raises `UsageError` for another kind."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    proxy = proxies.get(server.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(server.hostname or ""):
        return None
    found = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if found.scheme != "http":
        hint = "name one that is spoken to over HTTP, or set LITEREPLICA_S3_CLIENT=boto3"
        raise UsageError(f"the proxy of the environment is of the kind {found.scheme}", hint=hint)
    return found


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
