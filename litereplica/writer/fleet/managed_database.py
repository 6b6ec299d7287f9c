"""One database of a fleet: its state, and the task that replicates it while it is open.

An open database has a task, `ManagedDatabase.run`, which ends when the database is parked or gone. A parked database
has no open file; `parking.py` watches it, and the supervisor starts another task when it has changed.

An error is logged once, and the database is tried again with back-off. A conflict with another writer is final: the
database is not replicated until the process is started again. A database that was replaced, or written to by something
else than SQLite, is opened again once nobody writes to the file any more: what differs is published then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from litereplica.errors import (
    AlreadyReplicated,
    ConflictError,
    LeaseConflict,
    LiteReplicaError,
    SourceReplaced,
    Unpublished,
    UsageError,
)
from litereplica.types import FileInfo
from litereplica.writer.backoff import retry_delay_s
from litereplica.writer.database.parked import Parked, may_exist, until_written
from litereplica.writer.database.state_directory import Lineage, StateDirectory, state_path
from litereplica.writer.fleet.directory_scan import printable
from litereplica.writer.fleet.limits import FleetContext
from litereplica.writer.fleet.replica_root import ReplicaRoot
from litereplica.writer.fleet.statistics import NOTHING_DONE, DatabaseStatistics, State, accumulated
from litereplica.writer.maintenance import Maintenance, enforce_retention
from litereplica.writer.publish.lease_keeper import LeaseKeeper
from litereplica.writer.replicator import Replicator, open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from litereplica.writer.settings import WriterSettings
from litereplica.writer.statistics import Statistics
from litereplica.writer.sync_requests import SyncRequests

log = logging.getLogger(__name__)


class ManagedDatabase:
    """The database at `path`, replicated to `prefix` below `root` (an empty prefix is the root itself).

    `closed` is set while the database has no task; `done_once` once it is published, parked, failed or gone.
    `syncs` are requests to publish now, and `published` wakes those who wait for a TXID.
    """

    __slots__ = (
        "_before", "_failed_s", "_failures", "_fleet", "_has_run", "_in_doubt", "_lease", "_lineage", "_maintained",
        "_maintaining", "_maintenance", "_replicator", "closed", "done_once", "error", "parked", "path", "prefix",
        "published", "root", "settings", "state", "stop", "syncs", "unpublished", "url",
    )  # fmt: skip

    def __init__(
        self, path: Path, root: ReplicaRoot, prefix: str, *, url: str, settings: WriterSettings, fleet: FleetContext
    ) -> None:
        self.path = path
        self.root = root
        self.prefix = prefix
        self.url = url
        self.settings = settings
        self.state = State.STARTING
        self.error: str | None = None
        self.parked: Parked | None = None
        self.stop = trio.Event()
        self.unpublished: Unpublished | None = None  # set if the database was stopped before everything was published
        self.closed = trio.Event()
        self.done_once = trio.Event()
        self.closed.set()
        self.syncs = SyncRequests()
        self.published = trio.Event()
        self._fleet = fleet
        self._replicator: Replicator | None = None
        self._lease: LeaseKeeper | None = None
        self._maintenance: Maintenance | None = None
        self._maintaining: trio.CancelScope | None = None
        self._maintained = trio.Event()
        self._before = NOTHING_DONE  # counts of the replicators that have been closed
        self._lineage: Lineage | None = None  # of the files that this process has published
        self._has_run = False  # True once it has been published
        self._in_doubt = False  # True while what something else than SQLite has written is not published
        self._failures = 0  # successive ones
        self._failed_s = 0.0  # trio time of the first of them

    def park(self, parked: Parked) -> None:
        """Record that the database is parked. It must not have a task."""
        self.parked = parked
        self.state, self.error = State.DORMANT, None
        self.done_once.set()

    def continue_from(self, before: DatabaseStatistics) -> None:
        """Take the counts and the TXID of the last run; called before the first task."""
        self._before = Statistics(
            before.txid, before.files, before.pages, before.bytes, before.checkpoints, 0,
            published_ms=before.published_ms,
            syncs=before.syncs, sync_errors=before.sync_errors, sync_s=before.sync_s,
        )  # fmt: skip

    def expect_task(self) -> None:
        """Clear `closed`, before the task is started."""
        if self.closed.is_set():
            self.closed = trio.Event()

    async def run(self, nursery: trio.Nursery) -> None:
        """Replicate until the database is parked or gone, or `stop` is set.

        Maintenance runs in `nursery`, since it continues while the database is parked. Raises the errors that end the
        fleet (`ErrorPolicy.ends_fleet`).
        """
        self.expect_task()
        try:
            await self._run(nursery)
        finally:
            self._fleet.beginning.end(self)
            self.done_once.set()
            self.closed.set()

    async def publish_once(self) -> None:
        """Publish everything committed, and close the database. Raises the errors of opening and publishing."""
        await self._fleet.beginning.begin(self)
        try:
            async with self._open() as replicator:
                await replicator.publish_once()
                if self.settings.force_snapshot:
                    await replicator.publish_snapshot()
                if self.settings.enforce_retention and self._lease is not None:
                    store, policy = self.root.store(self.prefix), self.settings.retention
                    deleted = await enforce_retention(store, policy, self._lease, state_path(self.path.resolve()))
                    log.info("deleted %d files of %s, by retention", deleted, self.url)
                self._remember(replicator.statistics())
        except BaseException as exc:
            self.state, self.error = State.FAILED, str(exc)
            raise
        finally:
            self._fleet.beginning.end(self)
        self.state = State.ACTIVE

    async def aclose(self) -> None:
        """End maintenance and release the lease. The task must have ended."""
        await self._end_maintenance()
        if self._lease is not None and self._lease.held() is not None:
            with trio.CancelScope(shield=True):
                await self._lease.end()
        self.state = State.GONE

    def end_settled_maintenance(self) -> None:
        """End the maintenance task of a parked database if nothing can be due before the next publication."""
        maintenance, scope = self._maintenance, self._maintaining
        if self.parked is not None and maintenance is not None and scope is not None and maintenance.is_settled:
            scope.cancel()

    def note_unpublished(self, reason: str) -> None:
        """Record that it was stopped before it was known whether everything is published."""
        self.unpublished = Unpublished(self.path, reason, transactions=None, wal_bytes=0)

    @property
    def wants_snapshot(self) -> bool:
        """True if the replica has lost files, so that a snapshot must be made from the database."""
        return self._maintenance is not None and self._maintenance.wants_snapshot

    def statistics(self) -> DatabaseStatistics:
        """Return a record of the present state. Makes no request."""
        now = self._replicator.statistics() if self._replicator is not None else None
        total = self._before if now is None else accumulated(self._before, now)
        state, error = self.state, self.error
        if now is not None and state in (State.ACTIVE, State.STARTING):
            state = State.WAITING if now.waits else State.FAILED if now.error is not None else state
            error = now.error or error
        maintenance = self._maintenance.statistics().error if self._maintenance is not None else ""
        record = DatabaseStatistics(
            path=self.path,
            url=self.url,
            state=state,
            txid=total.txid or (self.parked.txid if self.parked is not None else 0),
            files=total.files,
            pages=total.pages,
            bytes=total.bytes,
            checkpoints=total.checkpoints,
            published_ms=total.published_ms,
            syncs=total.syncs,
            sync_errors=total.sync_errors,
            sync_s=total.sync_s,
            wal_frames=now.wal_frames if now is not None else 0,
            unpublished_bytes=now.unpublished_bytes if now is not None else 0,
            behind_s=now.behind_s if now is not None else self._failing_s(),
            error=error or maintenance or None,
            lease=self._lease.held() if self._lease is not None else None,
        )
        return record if state is not State.GONE else record.ended(State.GONE)

    def last_statistics(self, state: State = State.GONE) -> DatabaseStatistics:
        """Return the record that is kept after the database is gone or stopped."""
        return self.statistics().ended(state)

    # --- its task

    async def _run(self, nursery: trio.Nursery) -> None:
        failure: Exception | None = None  # of the last attempt that did not begin
        must_begin = self._fleet.errors.is_strict and not self._has_run  # a stop publishes what is committed
        while must_begin or not self.stop.is_set():
            must_begin = False
            self.state = State.STARTING
            try:
                parked = await self._replicate(nursery)
            except Unpublished as exc:
                self.unpublished = exc
                continue
            except Exception as exc:  # the failure of one database must not end the others
                if self._fleet.errors.ends_fleet(exc, named=not self.prefix, has_run=self._has_run):
                    raise
                if isinstance(exc, SourceReplaced):
                    self._in_doubt = True
                    self._note_failure(exc)
                    log.warning("%s; opening what is there now", exc.message)
                    await self._end_maintenance()
                    self._maintenance = None  # the state directory may be another one
                    await until_written(self.path, self.stop, self._fleet.files)
                    continue
                if not await self._after_failure(exc):
                    return
                failure = exc
                continue
            if parked is not None and not self.stop.is_set():
                self.park(parked)
                return
        if self._failures and failure is not None and not isinstance(failure, ConflictError | UsageError):
            self.note_unpublished(str(failure))
        self.state = State.GONE

    async def _replicate(self, nursery: trio.Nursery) -> Parked | None:
        parked, self.parked = self.parked, None
        if self.root.waits:
            self.state = State.WAITING
        await self.root.stand_by(self.stop)
        async with self._fleet.descriptors:
            return await self._replicate_open(nursery, parked)

    async def _replicate_open(self, nursery: trio.Nursery, parked: Parked | None) -> Parked | None:
        await self._fleet.beginning.begin(self)
        try:
            if self.stop.is_set() and not self._fleet.errors.is_strict:
                return None
            self.state = State.STARTING
            async with self._open(parked) as replicator:
                self._replicator = replicator
                may_park = None if self._fleet.errors.is_strict else self._fleet.may_park
                started = _Started(lambda: self._begun(nursery))
                try:
                    with self._fleet.pace.counted():
                        return await replicator.run(self.stop, may_park=may_park, task_status=started)
                finally:
                    self._remember(replicator.statistics())
                    self._lineage = replicator.lineage or self._lineage
                    self._replicator = None
                    if self.stop.is_set():
                        await self._end_maintenance()
        finally:
            self._fleet.beginning.end(self)

    def _open(self, parked: Parked | None = None) -> AbstractAsyncContextManager[Replicator]:
        options = ReplicatorOptions(
            sync_interval_s=self.settings.sync_interval_s,
            stop_limit_s=self.settings.stop_limit_s,
            now_ms=self._fleet.now_ms,
            rng=self._fleet.rng,
            take_over=self.settings.take_over,
            verify_source=self.settings.verify_source and not self._has_run,
            in_doubt=self._in_doubt,
            lineage=self._lineage,
            within=self.root.path if self.prefix else None,
            lease_keeper=self._take_lease,
            access=self.settings.access,
            pace=self._fleet.pace,
            parked=parked,
            on_published=self._note_published,
            syncs=self.syncs,
            wants_snapshot=lambda: self.wants_snapshot,
        )
        return open_replicator(self.path, self.root.store(self.prefix), options)

    def _take_lease(self, state: StateDirectory) -> LeaseKeeper:
        self._lease = self._lease or self.root.lease_keeper(state)
        return self._lease

    def _begun(self, nursery: trio.Nursery) -> None:
        """Called when the replicator has published everything that was committed when it started."""
        self.state, self.error, self._failures = State.ACTIVE, None, 0
        self._has_run, self._in_doubt = True, False
        self._fleet.beginning.end(self)
        self.done_once.set()
        self._maintain(nursery)

    async def _after_failure(self, error: Exception) -> bool:
        """Log the error, and wait until the next attempt. Returns False if the database is gone."""
        self._fleet.beginning.end(self)
        if self.prefix and not await trio.to_thread.run_sync(may_exist, self.path, limiter=self._fleet.files):
            self.state = State.GONE
            return False
        is_new = self._note_failure(error)
        if not self._fleet.errors.is_strict:  # a strict fleet waits for its only database
            self.done_once.set()
        final = isinstance(error, ConflictError) and not isinstance(error, AlreadyReplicated | LeaseConflict)
        if is_new:
            self._log_failure(error, final=final)
        if final:
            await self._end_maintenance()
        with trio.move_on_after(math.inf if final else retry_delay_s(self._failures, self._fleet.rng)):
            await self.stop.wait()
        return True

    def _note_failure(self, error: Exception) -> bool:
        """Record a failure for the statistics. Returns False if the last one was the same."""
        if self._failures == 0:
            self._failed_s = trio.current_time()
        self._failures += 1
        before, self.state, self.error = self.error, State.FAILED, str(error)
        return self.error != before

    def _log_failure(self, error: Exception, *, final: bool) -> None:
        then = "it is not replicated until this process is restarted" if final else "retrying"
        known = isinstance(error, LiteReplicaError | OSError)
        log.error("cannot replicate %s: %s; %s", printable(self.path), error, then, exc_info=None if known else error)

    def _failing_s(self) -> float:
        """Seconds since the first of the successive failures; 0.0 if the last attempt did not fail."""
        return trio.current_time() - self._failed_s if self._failures else 0.0

    def _remember(self, done: Statistics) -> None:
        self._before = accumulated(self._before, done)

    # --- compaction and retention

    def _note_published(self, info: FileInfo) -> None:
        self.published.set()
        self.published = trio.Event()
        if self._maintenance is not None:
            self._maintenance.note_published(info)

    def _maintain(self, nursery: trio.Nursery) -> None:
        if self.settings.levels is None or self._lease is None or self._maintaining is not None:
            return
        if self._maintenance is None:
            self._maintenance = Maintenance(
                self.root.store(self.prefix),
                levels=self.settings.levels,
                policy=self.settings.retention,
                lease=self._lease,
                limiter=self._fleet.merges,
                spool_dir=state_path(self.path.resolve()),
                rng=self._fleet.rng,
            )
        self._maintaining, self._maintained = trio.CancelScope(), trio.Event()
        nursery.start_soon(self._run_maintenance, self._maintenance, self._maintaining)

    async def _run_maintenance(self, maintenance: Maintenance, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await maintenance.run()
        except ConflictError as exc:
            if self._fleet.errors.ends_fleet(exc, named=not self.prefix):
                raise
            log.error("cannot compact %s: %s", self.url, exc)
        finally:
            self._maintaining = None
            self._maintained.set()

    async def _end_maintenance(self) -> None:
        if self._maintaining is not None:
            self._maintaining.cancel()
            with trio.CancelScope(shield=True):
                await self._maintained.wait()


class _Started:
    """A `trio.TaskStatus` that calls a function."""

    def __init__(self, begun: Callable[[], None]) -> None:
        self._begun = begun

    def started(self, value: object = None) -> None:
        self._begun()
