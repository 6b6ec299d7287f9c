"""Replicates one database: publishes new transactions and checkpoints the WAL.

    Attachment   holds the database, and publishes its content when it is attached
    Publisher    publishes the transactions that the WAL has gained
    Checkpointer moves the WAL into the database file, and lets the application do so
    Parker       records the state of an idle database that can be closed
    Replicator   the loop that does these in turn, in one task; a second task logs outages of the store

A change after a quiet period is published when it is seen, later ones at most once a sync interval. It is seen when the
kernel tells of it, and at intervals: of locks it tells nothing, and some file systems have no events. A database that
nobody writes to causes neither files nor requests.

If the store fails, the disk is full or the database is locked, the error is logged and the step repeated with back-off
without end: nothing is lost meanwhile, the WAL grows. A reason not to continue at all (another writer, another file in
the database's place) raises an error, and so does, before the first file is acknowledged, any error that is not
transient.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import apsw
import trio

from litereplica.errors import EnvironmentProblem, NotFound, SourceMalformed, StorageError, TransientStorageError
from litereplica.file_events import Changes
from litereplica.ltxstore.store import LTXStore
from litereplica.writer.attachment import Attachment
from litereplica.writer.backoff import retry_delay_s
from litereplica.writer.checkpointer import Checkpointer
from litereplica.writer.database.checkpoint import Outcome, move_ahead
from litereplica.writer.database.litestream_guard import refuse_if_litestream_runs
from litereplica.writer.database.parked import Parked, quiet_for_s
from litereplica.writer.database.sqlite_database import open_database
from litereplica.writer.database.state_directory import Lineage, StateDirectory
from litereplica.writer.database.wal_follower import MTIME_GRANULARITY_NS, WalChange, WalFollower
from litereplica.writer.parker import Parker
from litereplica.writer.place_check import PlaceCheck
from litereplica.writer.publish.context import WriterContext
from litereplica.writer.publish.lease_keeper import open_lease_keeper
from litereplica.writer.publish.outage_log import OutageLog
from litereplica.writer.publish.page_checksums import PageChecksums
from litereplica.writer.publish.publisher import Prepared, WalMoved
from litereplica.writer.publish.source_check import require_unchanged
from litereplica.writer.replicator_options import ReplicatorOptions
from litereplica.writer.statistics import ReplicationCounters, Statistics

log = logging.getLogger(__name__)

LOCK_INTERVAL_S = 0.1
"""Between checks, while there is nothing else to do, whether a checkpoint of the application waits for us: short beside
any busy timeout."""
MARK_DELAY_S = 1.2 * MTIME_GRANULARITY_NS / 1e9
"""After this time the ctime of a file shows every later write."""
PARK_RETRY_S = 5.0
"""Until the next attempt to park a database that turned out to be in use."""


class _Pause(NamedTuple):
    """Seconds until something may be due, or sooner if the database changes and that is `for_changes`."""

    seconds: float
    for_changes: bool = False


MayPark = Callable[[float, int], bool]
"""True if a database is to be parked that has been idle for so many seconds and has so many bytes."""


class Replicator:
    """Replicates an open database. Obtain one from `open_replicator`."""

    def __init__(
        self,
        context: WriterContext,
        options: ReplicatorOptions,
        changes: Changes,
        *,
        parked: Parked | None,
        token: bytes,
        quiet_s: float,
    ) -> None:
        self._context = context
        self._options = options
        self._changes = changes
        self._syncs = options.syncs.forward(changes.wake)
        self._database = context.database
        self._wal = context.wal
        self._counters = ReplicationCounters(context.database.path)
        self._attachment = Attachment(context, parked=parked, published=self._count)
        self._parker = Parker(context, self._attachment, token)
        self._checkpointer = Checkpointer(context, self._attachment, self._counters, publish=self._publish)
        self._place = PlaceCheck(context)
        self._publish_at_s = self._park_at_s = 0.0
        self._active_s = trio.current_time() - quiet_s
        self._is_parked = False

    @property
    def lineage(self) -> Lineage | None:
        """The node ids of the files that it publishes; None before it is attached."""
        return self._attachment.publisher.lineage

    def statistics(self) -> Statistics:
        """Returns a record of the present state. Makes no request."""
        counters, wal = self._counters, self._wal
        return Statistics(
            self._attachment.publisher.last.txid, counters.files, counters.pages, counters.bytes,
            checkpoints=counters.checkpoints,
            wal_frames=self._checkpointer.frames,
            lease=self._context.lease.held(),
            unpublished_bytes=(wal.committed - wal.position) * wal.frame_size,
            behind_s=counters.behind_s,
            waits=counters.is_waiting,
            error=counters.error,
            published_ms=counters.published_ms,
            syncs=counters.syncs, sync_errors=counters.sync_errors, sync_s=counters.sync_s,
        )  # fmt: skip

    async def run(
        self,
        stop: trio.Event,
        *,
        may_park: MayPark | None = None,
        task_status: trio.TaskStatus[Statistics] = trio.TASK_STATUS_IGNORED,
    ) -> Parked | None:
        """Replicate until `stop` is set, then publish the remainder within `stop_limit_s`. Started once all that was
        committed is published. Returns the state of the database if `may_park` agreed and it can be closed.

        Raises `ConflictError` and `SourceReplaced` if it must not continue, `Unpublished` if it was stopped before all
        was published, and until it has started also `UsageError`, `StorageError` and `EnvironmentProblem`.
        """
        error: Exception | None = None
        parked: Parked | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._context.outages.run)
            try:
                with trio.CancelScope() as scope:
                    nursery.start_soon(self._limit_stop, stop, scope)
                    await self._stand_by(stop)
                    ended_as_standby = stop.is_set() and self._context.lease.waits
                    await self._first_round(stop)
                    task_status.started(self.statistics())
                    parked = None if ended_as_standby else await self._follow(stop, may_park)
                if scope.cancelled_caught:
                    self._attachment.require_published("out of time")
            except Exception as exc:
                error = exc
            nursery.cancel_scope.cancel()
        if error is not None:
            raise error
        self._is_parked = parked is not None
        return parked

    async def publish_once(self) -> None:
        """Publish all that is committed, then checkpoint. Raises the errors of `run`, and does not retry."""
        await self._context.lease.stand_by(trio.Event())
        while True:
            try:
                await self._attachment.complete()
                await self._publish()
                await self._settle()
                return
            except WalMoved:
                self._detach()

    async def publish_snapshot(self) -> None:
        """Publish a snapshot that is made from the database, once all is published. Raises as `publish_once`."""
        self._count(await self._attachment.publisher.publish_snapshot())

    async def aclose(self) -> None:
        """Let go of the WAL, and give the lease back; that of a parked database is left to lapse."""
        with trio.CancelScope(shield=True):
            if not self._is_parked:
                await self._context.lease.end()
            await self._database.run(self._parker.end)
            await self._database.run(self._context.checksums.close)
        self._attachment.publisher.discard()
        self._wal.close()

    # --- rounds

    async def _stand_by(self, stop: trio.Event) -> None:
        with self._counters.waiting():
            await self._context.lease.stand_by(stop)

    async def _first_round(self, stop: trio.Event) -> None:
        """Publish until everything is published once."""
        failures = 0
        while not stop.is_set():
            try:
                await self._attachment.complete()
                await self._publish()
                return
            except WalMoved:
                self._detach()
            except (TransientStorageError, NotFound) as exc:
                failures += 1
                await self._pause(exc, failures)

    async def _follow(self, stop: trio.Event, may_park: MayPark | None) -> Parked | None:
        failures = 0
        while not stop.is_set():
            try:
                pause = await self._round()
                failures = 0
                self._counters.note_success()
                idle_s = trio.current_time() - self._active_s
                if may_park is not None and may_park(idle_s, self._database.identity().size):
                    parked = await self._park()
                    if parked is not None:
                        return parked
            except WalMoved:
                self._detach()
                continue
            except (StorageError, OSError, apsw.Error, EnvironmentProblem, SourceMalformed) as exc:
                failures += 1
                await self._pause(exc, failures)
                continue
            with trio.move_on_after(pause.seconds):
                await (self._changes.wait() if pause.for_changes else self._syncs.until_wakened())
        await self._finish()
        return None

    async def _limit_stop(self, stop: trio.Event, scope: trio.CancelScope) -> None:
        """Once `stop` is set, give `scope` its time, and end the pause."""
        await stop.wait()
        scope.deadline = trio.current_time() + self._options.stop_limit_s
        self._syncs.wake()

    async def _round(self) -> _Pause:
        """Do what is due."""
        now_s = trio.current_time()
        self._place.check(now_s, is_attached=self._attachment.is_attached)
        if not self._attachment.is_complete:
            await self._attachment.complete()
        if self._database.is_in_doubt:
            await self._database.run(lambda: require_unchanged(self._context, self._attachment.publisher.last))
        await self._checkpointer.renew_read()
        if now_s < self._publish_at_s and not self._syncs.is_wanted and not self._checkpointer.take_turn():
            soon = await self._checkpointer.give_way() or self._database.may_restart
            longest_s = max(self._options.pace.look_interval_s(), 0.0 if soon else LOCK_INTERVAL_S)
            return _Pause(min(self._publish_at_s - now_s, longest_s))
        told = self._changes.take()
        if self._wal.look() is WalChange.FRAMES:
            if not told:
                self._note_untold()
            await self._database.run(lambda: move_ahead(self._database, self._wal))
        if await self._publish():
            self._active_s = now_s
            self._publish_at_s = now_s + self._options.sync_interval_s
        if self._options.wants_snapshot():
            await self.publish_snapshot()
        soon = await self._checkpointer.give_way() or self._database.may_restart
        await self._checkpointer.checkpoint_if_due()
        await self._checkpointer.shrink_if_due(now_s - self._active_s)
        if self._attachment.marks.is_due:
            await self._database.run(self._attachment.marks.write_if_certain)
        interval_s = self._options.pace.look_interval_s(now_s - self._active_s)
        is_told = self._changes.is_sure and not soon
        return _Pause(max(interval_s, LOCK_INTERVAL_S) if is_told else interval_s, for_changes=True)

    def _note_untold(self) -> None:
        was_sure = self._changes.is_sure
        self._changes.missed()
        if was_sure and not self._changes.is_sure:
            log.info("%s is looked at all the time: its file system does not tell of changes", self._database.path)

    async def _finish(self) -> None:
        """Publish the remainder, and checkpoint. Raises `Unpublished`."""
        try:
            await self._attachment.complete()
            while self._wal.committed > self._wal.position:  # committed before this call
                await self._publish()
            await self._publish()
            await self._settle()
        except (StorageError, OSError, apsw.Error, EnvironmentProblem, WalMoved) as exc:
            if isinstance(exc, WalMoved):
                self._detach()
            self._attachment.require_published(str(exc) or "the WAL was restarted by another program")

    async def _settle(self) -> None:
        """Checkpoint and write the mark, so that the next start needs no comparison even if the WAL is gone by then."""
        if self._checkpointer.frames:
            await self._checkpointer.checkpoint()
        if await self._database.run(self._parker.leave) is None:
            await trio.sleep(MARK_DELAY_S)
            if await self._database.run(self._parker.leave) is None:
                await self._database.run(self._attachment.marks.write_if_certain)

    async def _park(self) -> Parked | None:
        """Checkpoint and record the state of the database; None if it is in use, or something is left to publish.

        Other readers may keep a part of the WAL from being moved: that is no obstacle.
        """
        now_s = trio.current_time()
        if not self._attachment.is_complete or now_s < max(self._park_at_s, self._attachment.schedule.not_before_s):
            return None
        if self._checkpointer.frames:
            outcome = await self._checkpointer.checkpoint()
            if outcome not in (Outcome.DONE, Outcome.PARTIAL):
                self._park_at_s = now_s + PARK_RETRY_S
                return None
        return await self._database.run(self._parker.leave)

    # --- publishing

    async def _publish(self) -> int:
        """Publish what is committed now, not what is committed meanwhile. Returns the number of files."""
        requests = self._syncs.take()
        try:
            files = await self._publish_committed()
            if requests:  # that may have been a file that was prepared before they were made
                files += await self._publish_committed()
        except BaseException:
            self._syncs.put_back(requests)
            raise
        self._syncs.answer(requests, self._attachment.publisher.last.txid)
        return files

    async def _publish_committed(self) -> int:
        if (change := self._wal.look()) is not WalChange.NONE:
            self._counters.note_behind()
        if change is WalChange.LOST:
            raise WalMoved
        files = 0
        due = change is WalChange.FRAMES or self._wal.committed > self._wal.position
        while due and (published := await self._attachment.publisher.publish_next()) is not None:
            self._count(published)
            files += 1
            due = self._wal.committed > self._wal.position
        self._counters.note_current()
        return files

    def _count(self, published: Prepared) -> None:
        self._counters.count(published, wal_frames=self._checkpointer.frames)
        self._options.on_published(published.info)

    # --- errors

    def _detach(self) -> None:
        self._attachment.detach()
        self._counters.note_behind()

    async def _pause(self, error: Exception, failures: int) -> None:
        self._counters.note_behind()
        delay_s = retry_delay_s(failures, self._options.rng, busy=isinstance(error, apsw.BusyError))
        level = logging.WARNING if self._counters.note_error(str(error)) else logging.DEBUG
        log.log(level, "cannot publish %s: %s; trying again in %.1f s", self._database.path, error, delay_s)
        readable = self._attachment.is_attached and not isinstance(error, apsw.Error | OSError)
        if readable and self._wal.look() is WalChange.FRAMES:
            await self._database.run(self._wal.scan)  # for the statistics
        with trio.move_on_after(delay_s):
            await self._syncs.until_wakened()


@asynccontextmanager
async def open_replicator(
    path: Path, store: LTXStore, options: ReplicatorOptions | None = None
) -> AsyncIterator[Replicator]:
    """Open the database at `path` for replication to `store`, which stays the caller's. Publishes nothing yet.

    Raises `UsageError` if the file cannot be replicated, `ConflictError` if another process of ours replicates it,
    `EnvironmentProblem` if it cannot be accessed.
    """
    options = options or ReplicatorOptions()
    async with open_database(path, within=options.within) as database:
        refuse_if_litestream_runs(database.path)
        store.storage.set_access(options.access.instead_of(database.access()))
        with StateDirectory(database.path) as state:
            parked = options.parked
            undisturbed = parked is not None and parked.token == state.tenancy()
            quiet_s = await database.run(lambda: quiet_for_s(database.path))
            await database.run(database.connect)
            checksums = PageChecksums(state.page_checksums, directory=state.descriptor)
            inode, page_size = database.identity().inode, database.page_size
            await database.run(lambda: checksums.open(inode=inode, page_size=page_size))
            if options.lease_keeper is not None:
                lease = options.lease_keeper(state)
            else:
                lease = open_lease_keeper(store.storage, options.lease, writer_id=state.writer_id)
            wal, outages = WalFollower(database.wal_path), OutageLog(store.url)
            context = WriterContext(
                database, wal, store, state, checksums, lease, outages, options.now_ms, options.take_over,
                options.verify_source, options.in_doubt, options.lineage,
            )  # fmt: skip
            parked, token = parked if undisturbed else None, state.begin_tenancy()
            names = {database.path.name, database.wal_path.name}
            async with options.pace.events.watching(database.path.parent, names.__contains__) as changes:
                replicator = Replicator(context, options, changes, parked=parked, token=token, quiet_s=quiet_s)
                try:
                    yield replicator
                finally:
                    await replicator.aclose()
