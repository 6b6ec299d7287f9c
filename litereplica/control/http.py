"""An HTTP server for daemons: h11 over trio, on Unix sockets, and on TCP (`tcp.py`).

    Route       a method, a path, and one function from `Request` to `Response`
    serve       answers requests on a listening socket by these functions, until cancelled

A connection may carry several requests, one after the other. Heads, bodies, times and the number of connections are
bounded. A handler refuses with `Refusal`; any other exception of it is answered as well, and the daemon goes on.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11
import trio

from litereplica.control.sockets import peer_uid
from litereplica.errors import ExitCode, LiteReplicaError
from litereplica.foreign_directory import parse_object

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 << 10
MAX_BODY_BYTES = 64 << 10
"""A request names a database and a URL."""
TRANSFER_LIMIT_S = 10.0
"""For a request to arrive, and for an answer to be taken: the 5 MB of 10,000 databases take a fraction of this."""
MAX_CONNECTIONS = 64
"""Connections served at a time, those that wait for a TXID included; more wait in the backlog."""
MAX_CONNECTIONS_EACH = 16
"""Connections of one address on TCP; more are closed, so that one host cannot keep the others out."""
ACCEPT_PAUSE_S = 1.0
"""After an accept that failed, for instance for want of descriptors."""

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"

_READ_BYTES = 64 << 10
_STATUS_OF = {
    ExitCode.USAGE: HTTPStatus.BAD_REQUEST,
    ExitCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ExitCode.CONFLICT: HTTPStatus.CONFLICT,
    ExitCode.NOT_REACHED: HTTPStatus.REQUEST_TIMEOUT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request: its path without the query, and parameters and headers, the last of each name.

    Names of headers are in lower case.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def fields(self) -> dict[str, Any]:
        """The JSON object in the body. Raises `Refusal`."""
        found = parse_object(self.body)
        if found is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "invalid request body", details="it must be a JSON object")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer."""

    status: int = HTTPStatus.OK
    content_type: str = JSON_TYPE
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()


class Refusal(Exception):
    """The answer to a request that cannot be served: a status, a message, and details or the next step."""

    def __init__(self, status: HTTPStatus, message: str, *, details: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = details


Handler = Callable[[Request], Awaitable[Response]]
Guard = Callable[[Request], Response | None]
"""Returns the answer to a request that is refused before its path is looked at; None lets it pass."""


@dataclass(frozen=True, slots=True)
class Route:
    """Requests with this method and path are answered by `handle`. A route for GET answers HEAD as well."""

    method: str
    path: str
    handle: Handler

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it answers."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


def json_response(value: object, status: int = HTTPStatus.OK) -> Response:
    """An answer with `value` as JSON."""
    return Response(status=status, body=json.dumps(value).encode() + b"\n")


def own_user(uid: int) -> bool:
    """True if a user may ask: the daemon's own, and root."""
    return uid in (0, os.geteuid())


def anybody(uid: int) -> bool:
    """True: whom the socket's permissions admit may ask."""
    return True


def no_guard(request: Request) -> Response | None:
    """Let every request pass."""
    return None


async def serve(
    listener: socket.socket,
    routes: Sequence[Route],
    *,
    may_ask: Callable[[int], bool] = own_user,
    guard: Guard = no_guard,
) -> None:
    """Answer requests on a listening socket until cancelled; on a Unix socket those of users (uid) who `may_ask`."""
    accepting = trio.socket.from_stdlib_socket(listener.dup())
    server = _Server(routes, may_ask, guard)
    async with trio.open_nursery() as nursery:
        with accepting:
            while True:
                async with server.limiter:
                    pass  # wait until another connection may be served
                try:
                    connection, address = await accepting.accept()
                except OSError as exc:
                    log.warning("cannot accept connections: %s", exc.strerror)
                    await trio.sleep(ACCEPT_PAUSE_S)
                    continue
                host = str(address[0]) if isinstance(address, tuple) else ""
                nursery.start_soon(server.admit, connection, host)


class _Server:
    """The connections of one listener; `host` is the address of a client on TCP, else empty."""

    def __init__(self, routes: Sequence[Route], may_ask: Callable[[int], bool], guard: Guard) -> None:
        self.limiter = trio.CapacityLimiter(MAX_CONNECTIONS)
        self._routes = routes
        self._may_ask = may_ask
        self._guard = guard
        self._connections: Counter[str] = Counter()

    async def admit(self, connection: trio.socket.SocketType, host: str) -> None:
        """Answer the requests of a connection, if it may ask."""
        with connection:
            if host and self._connections[host] >= MAX_CONNECTIONS_EACH:
                return
            self._connections[host] += 1
            try:
                async with self.limiter:
                    if host or self._is_admitted(connection):
                        await self._serve(connection)
            finally:
                self._connections[host] -= 1
                self._connections += Counter()  # forgets those without connections

    def _is_admitted(self, connection: trio.socket.SocketType) -> bool:
        uid = peer_uid(connection.getsockopt)
        if not self._may_ask(uid):
            log.warning("refused user %d on the control socket", uid)
            return False
        return True

    async def _serve(self, connection: trio.socket.SocketType) -> None:
        try:
            await _converse(trio.SocketStream(connection), self._respond)
        except (trio.BrokenResourceError, trio.TooSlowError):
            return  # the client has gone, or takes too long
        except Exception:  # a daemon goes on whatever it is sent
            log.exception("a connection failed")

    async def _respond(self, request: Request) -> Response:
        return self._guard(request) or await answer(request, self._routes)


async def _converse(stream: trio.SocketStream, respond: Handler) -> None:
    """Answer the requests of one connection, until either side ends it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    while True:
        try:
            with trio.fail_after(TRANSFER_LIMIT_S):
                request = await _receive(connection, stream)
            if request is None:
                return
            response = await respond(request)
        except h11.RemoteProtocolError as exc:
            response, request = _error(HTTPStatus(exc.error_status_hint), str(exc)), None
        except Refusal as refusal:
            response, request = _error(refusal.status, refusal.message), None
        with trio.fail_after(TRANSFER_LIMIT_S):
            await _send(connection, stream, response, with_body=request is None or request.method != "HEAD")
        if request is None or connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return
        connection.start_next_cycle()


async def _receive(connection: h11.Connection, stream: trio.SocketStream) -> Request | None:
    """The next request; None if the client has ended the connection."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        match event:
            case h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    await stream.send_all(
                        connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
                    )
                connection.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
            case h11.Request():
                head = event
            case h11.Data():
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large")
            case h11.EndOfMessage() if head is not None:
                return _parsed(head, bytes(body))
            case _:
                return None


def _parsed(head: h11.Request, body: bytes) -> Request:
    try:
        url = urlsplit(head.target.decode("ascii"))
        query = dict(parse_qsl(url.query, keep_blank_values=True, errors="surrogateescape"))
    except ValueError as exc:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"invalid request target: {exc}") from exc
    headers = {bytes(name).decode("ascii"): bytes(value).decode("latin-1") for name, value in head.headers}
    return Request(method=head.method.decode("ascii"), path=url.path, query=query, headers=headers, body=body)


async def answer(request: Request, routes: Sequence[Route]) -> Response:
    """The answer to a request; an error of a handler becomes one."""
    here = [route for route in routes if route.path == request.path]
    chosen = next((route for route in here if request.method in route.methods), None)
    if chosen is None and here:
        allowed = ", ".join(method for route in here for method in route.methods)
        return _text(HTTPStatus.METHOD_NOT_ALLOWED, "Method Not Allowed\n", headers=[("Allow", allowed)])
    if chosen is None:
        return _text(HTTPStatus.NOT_FOUND, "404 page not found\n")
    try:
        return await chosen.handle(request)
    except Refusal as refusal:
        return _error(refusal.status, refusal.message, refusal.details)
    except LiteReplicaError as exc:
        status = _STATUS_OF.get(exc.exit_code, HTTPStatus.INTERNAL_SERVER_ERROR)
        return _error(status, exc.message, exc.hint)
    except Exception as exc:  # the third boundary: a daemon goes on whatever it is asked
        log.exception("%s %s failed", request.method, request.path)
        return _error(HTTPStatus.INTERNAL_SERVER_ERROR, f"internal error: {type(exc).__name__}", "see the daemon's log")


def _error(status: HTTPStatus, message: str, details: str | None = None) -> Response:
    return json_response({"error": message, **({"details": details} if details else {})}, status)


def _text(status: HTTPStatus, text: str, *, headers: Sequence[tuple[str, str]] = ()) -> Response:
    return Response(status=status, content_type=TEXT_TYPE, body=text.encode(), headers=headers)


async def _send(connection: h11.Connection, stream: trio.SocketStream, response: Response, *, with_body: bool) -> None:
    headers = [
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        ("X-Content-Type-Options", "nosniff"),
        *response.headers,
    ]
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    head = h11.Response(
        status_code=response.status, headers=headers, reason=HTTPStatus(response.status).phrase.encode()
    )
    data = connection.send(head) or b""
    if with_body and response.body:
        data += connection.send(h11.Data(data=response.body)) or b""
    await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))
