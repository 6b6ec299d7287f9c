"""The listener on TCP of a daemon, and its routes: read-only, and made from the records of the control socket.

A daemon whose address is in use, or does not exist yet, goes on without metrics and tries again.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, Generic, Protocol, TypeVar

import trio

from litereplica.control.address import Listen
from litereplica.control.health import MAX_LAG_S, alive, sickness
from litereplica.control.http import TEXT_TYPE, Refusal, Request, Response, Route, anybody, json_response, serve
from litereplica.control.tcp import Guard, listen
from litereplica.errors import EnvironmentProblem
from litereplica.printable import printable
from litereplica.times import DURATION_HINT, format_time, parse_duration_ms, with_unit
from litereplica.web import page
from litereplica.web.lag_history import INTERVAL_S, LagHistory, LastLines
from litereplica.web.metrics import CONTENT_TYPE, exposition
from litereplica.web.points import Points
from litereplica.web.tasks import task_tree

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""Until the next attempt to listen."""
SHARED_S = 1.0
"""For how long what was made for one client is given to others."""
METRICS_LIMIT_S = 10.0
"""Time limit of making metrics: the sizes of files may be on a file system that hangs."""
MAX_REASONS = 20
"""Databases that an unhealthy answer names; the others are counted."""

T = TypeVar("T")


class Source(Protocol):
    """What a daemon is asked; see `fuse/control.py` and `writer/fleet/control.py`."""

    def document(self, wanted: str | None = None) -> dict[str, Any]:
        """Return the document of `GET /status`."""

    async def points(self, path: str) -> Sequence[Mapping[str, Any]]:
        """Return points in time of the database with a `db_path`, ascending: `txid`, `timestamp` and maybe `path`."""


@asynccontextmanager
async def serving_tcp(address: Listen, source: Source) -> AsyncIterator[None]:
    """Serve at an address during the block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, address, source)
        yield
        nursery.cancel_scope.cancel()


async def _serve(address: Listen, source: Source) -> None:
    site = Site(source)
    routes = site.routes()
    guard = Guard(address, (socket.gethostname(),))
    with ExitStack() as stack:
        stack.enter_context(site.lines.attached())
        sockets = [stack.enter_context(each) for each in await _listening(address)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.sample)
            for each in sockets:
                nursery.start_soon(partial(serve, each, routes, may_ask=anybody, guard=guard))
            host = address.address.host or socket.gethostname()
            shown = f"[{host}]" if ":" in host else host
            log.info("metrics are at http://%s:%d/metrics", shown, sockets[0].getsockname()[1])


async def _listening(address: Listen) -> list[socket.socket]:
    if not address.address.is_loopback and not address.token:
        log.warning(
            "metrics at %s are for everybody who reaches this machine: give them a token, or write localhost:%d",
            address.address,
            address.address.port,
        )
    told = ""
    while True:
        try:
            return await trio.to_thread.run_sync(listen, address.address, abandon_on_cancel=True)
        except EnvironmentProblem as exc:
            if str(exc) != told:
                told = str(exc)
                log.warning("there are no metrics yet: %s; trying again every %.0f s", told, RETRY_S)
            await trio.sleep(RETRY_S)


class Shared(Generic[T]):
    """A value that is made by one task at a time, and given to all who ask within `keep_s` seconds."""

    def __init__(self, make: Callable[[], Awaitable[T]], *, keep_s: float = SHARED_S) -> None:
        self._make = make
        self._keep_s = keep_s
        self._lock = trio.Lock()
        self._made: tuple[float, T] | None = None

    async def get(self) -> T:
        """Return the value. Raises what making it raises."""
        async with self._lock:
            if self._made is None or trio.current_time() - self._made[0] >= self._keep_s:
                self._made = trio.current_time(), await self._make()
            return self._made[1]


class Site:
    """The routes on TCP. `lines` keeps the end of the log."""

    def __init__(self, source: Source) -> None:
        self.lines = LastLines()
        self._source = source
        self._history = LagHistory()
        self._points = Points(source.points)
        self._metrics = Shared(self._exposition)
        self._thread = trio.CapacityLimiter(1)  # of its own: one that hangs must not take those of the daemon
        self._document = Shared(self._read_document)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("GET", "/", self._page),
            Route("GET", "/databases", self._databases),
            Route("GET", "/points", self._serve_points),
            Route("GET", "/metrics", self._serve_metrics),
            Route("GET", "/health", self._health),
            Route("GET", "/status", self._status),
            Route("GET", "/debug/log", self._log),
            Route("GET", "/debug/tasks", self._tasks),
        ]

    async def sample(self) -> None:
        """Record the lag of all databases at intervals."""
        while True:
            self._history.sample(alive(self._source.document()["databases"]))
            await trio.sleep(INTERVAL_S)

    async def _read_document(self) -> dict[str, Any]:
        return self._source.document()

    async def _page(self, request: Request) -> Response:
        return page.document()

    async def _databases(self, request: Request) -> Response:
        document = await self._document.get()
        return json_response(page.view(document, self._history, list(self.lines.lines), request.query))

    async def _serve_points(self, request: Request) -> Response:
        return await self._points.answer(await self._document.get(), request)

    async def _log(self, request: Request) -> Response:
        lines = (f"{format_time(line.time_ms)} {line.level} {printable(line.text)}\n" for line in self.lines.lines)
        return Response(content_type=TEXT_TYPE, body="".join(lines).encode("utf-8", "backslashreplace"))

    async def _tasks(self, request: Request) -> Response:
        return Response(content_type=TEXT_TYPE, body=task_tree().encode("utf-8", "backslashreplace"))

    async def _exposition(self) -> bytes:
        return await trio.to_thread.run_sync(
            exposition, self._source.document(), abandon_on_cancel=True, limiter=self._thread
        )

    async def _serve_metrics(self, request: Request) -> Response:
        with trio.move_on_after(METRICS_LIMIT_S):
            return Response(content_type=CONTENT_TYPE, body=await self._metrics.get())
        raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, "making the metrics takes too long", details="do its files hang?")

    async def _status(self, request: Request) -> Response:
        path = request.query.get("path")
        document = self._source.document(path)
        if path is not None and not document["databases"]:
            raise Refusal(HTTPStatus.NOT_FOUND, "database not found")
        return json_response(document)

    async def _health(self, request: Request) -> Response:
        return health(self._source.document(), request.query.get("max-lag"))


def health(document: Mapping[str, Any], max_lag: str | None) -> Response:
    """Return the answer to `GET /health`. Raises `Refusal` if the option `--max-lag` would refuse `max_lag`."""
    limit_ms = MAX_LAG_S * 1000 if max_lag is None else parse_duration_ms(with_unit(max_lag))
    if not limit_ms:
        raise Refusal(HTTPStatus.BAD_REQUEST, "max-lag is not a duration above zero", details=DURATION_HINT)
    databases = alive(document["databases"])
    sick = [text for record in databases if (text := sickness(record, limit_ms / 1000))]
    about = {"databases": len(databases), "unhealthy": len(sick)}
    if sick:
        reasons = {"reasons": sick[:MAX_REASONS]}
        return json_response({"status": "unhealthy", **about, **reasons}, HTTPStatus.SERVICE_UNAVAILABLE)
    return json_response({"status": "healthy", **about})
