"""What a writer answers on its control socket; docs/design/control.md has the protocol."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import trio

from litereplica.control.http import Refusal, Request, Response, Route, json_response
from litereplica.control.protocol import About, text_field, time_or_none, timeout_field, wait_fields
from litereplica.errors import NotReached, UsageError
from litereplica.format.names import format_txid
from litereplica.ltxstore.lease_record import Lease
from litereplica.storage.prices import S3_PRICES_USD, is_priced, price_usd
from litereplica.storage.url import parse_url
from litereplica.storage.wrappers import StorageStatistics
from litereplica.times import format_time, wall_clock_ms
from litereplica.types import TXID
from litereplica.writer.fleet.managed_database import ManagedDatabase
from litereplica.writer.fleet.statistics import DatabaseStatistics, FleetStatistics, State
from litereplica.writer.fleet.supervisor import Supervisor
from litereplica.writer.fleet.sync import sync, until_published
from litereplica.writer.settings import DatabaseTarget, WriterSettings

_LITESTREAM_STATUS = {
    State.STARTING: "replicating",
    State.ACTIVE: "replicating",
    State.DORMANT: "replicating",
    State.WAITING: "waiting",
    State.FAILED: "failed",
    State.STOPPED: "stopped",
}
"""What `GET /list` says of a database; Litestream knows the first and the last."""

_T = TypeVar("_T")


class WriterControl:
    """The routes of a writer. `fleet` returns None until there is one; `starting` are the databases until then."""

    def __init__(
        self,
        about: About,
        *,
        fleet: Callable[[], Supervisor | None],
        starting: Callable[[], Sequence[DatabaseStatistics]],
        settings: WriterSettings,
    ) -> None:
        self._about = about
        self._fleet = fleet
        self._starting = starting
        self._settings = settings

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("GET", "/info", self._info),
            Route("GET", "/list", self._list),
            Route("GET", "/txid", self._txid),
            Route("GET", "/status", self._status),
            Route("POST", "/sync", self._sync),
            Route("POST", "/start", self._start),
            Route("POST", "/stop", self._stop),
            Route("POST", "/register", self._register),
            Route("POST", "/unregister", self._unregister),
            Route("POST", "/wait", self._wait),
        ]

    def statistics(self) -> FleetStatistics:
        """Return the state of every database, also before the fleet is open."""
        fleet = self._fleet()
        return FleetStatistics(tuple(self._starting()), {}) if fleet is None else fleet.statistics()

    # --- what is

    async def _info(self, request: Request) -> Response:
        present = [each for each in self.statistics().databases if each.state is not State.GONE]
        return json_response(self._about.info(databases=len(present)))

    async def _list(self, request: Request) -> Response:
        found = []
        for each in self.statistics().databases:
            if each.state is not State.GONE:
                last = {"last_sync_at": format_time(each.published_ms)} if each.published_ms else {}
                found.append({"path": str(each.path), "status": _LITESTREAM_STATUS[each.state], **last})
        return json_response({"databases": found})

    async def _txid(self, request: Request) -> Response:
        path = Path(text_field(request.query, "path"))
        for each in self.statistics().databases:
            if each.path == path and each.state is not State.GONE:
                return json_response({"txid": each.txid})
        raise Refusal(HTTPStatus.NOT_FOUND, "database not found")

    async def _status(self, request: Request) -> Response:
        return json_response(self.document(request.query.get("path")))

    def document(self, wanted: str | None = None) -> dict[str, object]:
        """Return the whole state, with the records of all databases, or of those at or below the path `wanted`."""
        statistics = self.statistics()
        chosen = [each for each in statistics.databases if wanted is None or _is_below(each.path, wanted)]
        records = [database_record(each, statistics) for each in chosen]
        replicas = [replica_record(url, each) for url, each in statistics.requests.items()]
        return {**self._about.status(records), "replicas": replicas}

    # --- what is to be done

    async def _sync(self, request: Request) -> Response:
        fields = request.fields()
        path, timeout_s = Path(text_field(fields, "path")), timeout_field(fields)
        fleet, member = self._member(path)
        before = member.statistics()
        if not fields.get("wait"):
            due = before.unpublished_bytes > 0
            member.syncs.add()
            status = "synced_local" if due else "no_change"
            return json_response(_synced(status, path, before.txid + due, replicated=before.txid))
        txid = await within(timeout_s, sync(fleet, member), lambda: _lacks(member, "not everything is published"))
        return json_response(_synced("synced" if txid > before.txid else "no_change", path, txid, replicated=txid))

    async def _start(self, request: Request) -> Response:
        fields = request.fields()
        fleet, path = self._open_fleet(), Path(text_field(fields, "path"))
        is_stopped = fleet.find(path) is None
        member = await within(timeout_field(fields), fleet.start_database(path), lambda: f"{path} is not started")
        status = "started" if is_stopped else "already_running"
        return json_response(_done(status, path, member.statistics().txid))

    async def _stop(self, request: Request) -> Response:
        fields = request.fields()
        fleet, path = self._open_fleet(), Path(text_field(fields, "path"))
        is_stopped = fleet.find(path) is None
        last = await within(timeout_field(fields), fleet.stop_database(path), lambda: f"{path} is not stopped yet")
        return json_response(_done("already_stopped" if is_stopped else "stopped", path, last.txid))

    async def _register(self, request: Request) -> Response:
        fields = request.fields()
        path, url = Path(text_field(fields, "path")), text_field(fields, "replica_url")
        if not path.is_absolute():
            raise Refusal(HTTPStatus.BAD_REQUEST, "path must be absolute")
        try:
            target = DatabaseTarget(path, str(parse_url(url)), self._settings)
        except UsageError as exc:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"invalid replica url: {exc.message}", details=exc.hint) from exc
        is_new = await self._open_fleet().register(target)
        return json_response({"status": "registered" if is_new else "already_registered", "path": str(path)})

    async def _unregister(self, request: Request) -> Response:
        fields = request.fields()
        path = Path(text_field(fields, "path"))
        ending = self._open_fleet().unregister(path)
        last = await within(timeout_field(fields), ending, lambda: f"{path} is not published to its end yet")
        if last is None:
            return json_response(_done("already_unregistered", path, 0))
        return json_response(_done("unregistered", path, last.txid))

    async def _wait(self, request: Request) -> Response:
        fields = request.fields()
        path, wanted = Path(text_field(fields, "path")), wait_fields(fields)
        fleet, member = self._member(path)

        async def reach() -> TXID:
            if wanted.txid is not None:
                return await until_published(fleet, member, wanted.txid)
            if wanted.time_ms is not None:
                await trio.sleep(max(0, wanted.time_ms - wall_clock_ms()) / 1000)
            return await sync(fleet, member)

        txid = await within(wanted.timeout_s, reach(), lambda: _lacks(member, "it is not published"))
        return json_response({"path": str(path), "txid": format_txid(txid)})

    def _open_fleet(self) -> Supervisor:
        fleet = self._fleet()
        if fleet is None:
            raise Refusal(HTTPStatus.CONFLICT, "the writer is starting", details="try again")
        return fleet

    def _member(self, path: Path) -> tuple[Supervisor, ManagedDatabase]:
        fleet = self._open_fleet()
        member = fleet.find(path)
        if member is None:
            raise Refusal(HTTPStatus.CONFLICT, f"database not open: {path}", details="start it first")
        return fleet, member


async def within(limit_s: float, work: Awaitable[_T], lacks: Callable[[], str]) -> _T:
    """Return the result of `work`. Raises `NotReached` with the text of `lacks` after `limit_s` seconds."""
    with trio.move_on_after(limit_s):
        return await work
    raise NotReached(f"{lacks()} after {limit_s:g} s", hint="see its state with 'litereplica status'")


def _lacks(member: ManagedDatabase, what: str) -> str:
    error = member.statistics().error
    return what if error is None else f"{what} ({error})"


def _synced(status: str, path: Path, txid: TXID, *, replicated: TXID) -> dict[str, object]:
    return {**_done(status, path, txid), "replicated_txid": replicated}


def _done(status: str, path: Path, txid: TXID) -> dict[str, object]:
    return {"status": status, "path": str(path), "txid": txid}


def _is_below(path: Path, wanted: str) -> bool:
    return path.is_relative_to(wanted) or Path(os.path.realpath(path)).is_relative_to(wanted)


def database_record(database: DatabaseStatistics, fleet: FleetStatistics) -> dict[str, object]:
    """The JSON object of one database; its lease may be that of the root above it."""
    root = max((url for url in fleet.leases if _covers(url, database.url)), key=len, default=None)
    lease = database.lease or (fleet.leases[root] if root is not None and database.state is not State.GONE else None)
    return {
        "db_path": str(database.path.absolute()),  # the client may have another working directory
        "url": database.url,
        "state": database.state.value,
        "txid": format_txid(database.txid),
        "published_at": time_or_none(database.published_ms),
        "lag_ms": round(database.behind_s * 1000),
        "unpublished_bytes": database.unpublished_bytes,
        "wal_frames": database.wal_frames,
        "published_files": database.files,
        "published_pages": database.pages,
        "published_bytes": database.bytes,
        "checkpoints": database.checkpoints,
        "syncs": database.syncs,
        "sync_errors": database.sync_errors,
        "sync_ms": round(database.sync_s * 1000),
        "error": database.error,
        "lease": None if lease is None else lease_record(lease),
    }


def replica_record(url: str, statistics: StorageStatistics) -> dict[str, object]:
    """The JSON object of a replica root: the requests that this process made there, and their price, if any."""
    priced = is_priced(url)
    made = {operation: each for operation, each in statistics.by_operation.items() if each.requests}
    requests = [
        {
            "operation": operation.value,
            "requests": each.requests,
            "errors": sum(each.failures.values()),
            "error_codes": dict(each.failures),
            "received_bytes": each.bytes_received,
            "sent_bytes": each.bytes_sent,
            "usd": S3_PRICES_USD[operation] * each.requests if priced else None,
        }
        for operation, each in made.items()
    ]
    return {"url": url, "requests": requests, "usd": price_usd(statistics) if priced else None, "is_priced": priced}


def _covers(root: str, url: str) -> bool:
    return url == root or url.partition("?")[0].startswith(root.partition("?")[0].rstrip("/") + "/")


def lease_record(lease: Lease) -> dict[str, object]:
    """The JSON object of a lease."""
    return {"owner": lease.owner, "generation": lease.generation, "expires_at": format_time(lease.expires_ms)}
