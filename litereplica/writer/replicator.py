"""Replicating one database: what is new is published, and now and then the WAL is checkpointed.

Publishing is leading-edge: a change after a quiet period goes out when it is seen, later ones at most once a sync
interval. A database that nobody writes to causes neither files nor requests.

A store that fails, a full disk, a locked database are said and tried again, for as long as it takes: nothing is lost
meanwhile, the WAL grows. Whatever speaks against going on at all (another writer, another file in the database's
place) ends it with an error. Before the first file is acknowledged, so does what trying again does not cure.

One task does everything in order; another tells when the store does not answer.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import trio

from litereplica.errors import EnvironmentProblem, NotFound, StorageError, TransientStorageError, UsageError
from litereplica.ltxstore.store import LTXStore
from litereplica.times import wall_clock_ms
from litereplica.types import FileInfo
from litereplica.writer.backoff import Pace, retry_delay_s
from litereplica.writer.database.checkpoint import Outcome, Schedule, checkpoint, move_ahead
from litereplica.writer.database.checkpoint_mark import Marks
from litereplica.writer.database.litestream_guard import LitestreamWatch, refuse_if_litestream_runs
from litereplica.writer.database.parked import Rest, certain_now, mark_of, quiet_for_s
from litereplica.writer.database.sqlite_database import Source, open_source
from litereplica.writer.database.state_directory import StateDirectory
from litereplica.writer.database.wal_follower import MTIME_GRANULARITY_NS, News, WalTail
from litereplica.writer.publish.lease_keeper import LeaseMode, Tenure, open_tenure
from litereplica.writer.publish.outage_log import OutageLog
from litereplica.writer.publish.page_checksums import PageChecksums
from litereplica.writer.publish.publisher import Prepared, Publisher, WalMoved
from litereplica.writer.resume import resume_point
from litereplica.writer.resume.begin import Beginning
from litereplica.writer.resume.resume_point import Start
from litereplica.writer.settings import STOP_LIMIT_S, SYNC_INTERVAL_S
from litereplica.writer.statistics import Progress, Statistics

log = logging.getLogger(__name__)

IN_PLACE_INTERVAL_S = 1.0
"""Between checks that the files are still those that we opened."""
MARK_DELAY_S = 1.2 * MTIME_GRANULARITY_NS / 1e9
"""After which a file that is not written to can be told from one that is."""
REST_RETRY_S = 5.0
"""When a database that is to be put to rest is in use after all."""

MayRest = Callable[[float, int], bool]
"""Whether a database is to be let go: to which nothing has happened for so many seconds, and whose file has so many
bytes."""


class Replicator:
    """Replicates an open database. Obtain one from `open_replicator`."""

    def __init__(
        self,
        source: Source,
        store: LTXStore,
        state: StateDirectory,
        sums: PageChecksums,
        tenure: Tenure,
        *,
        sync_interval_s: float,
        stop_limit_s: float,
        now_ms: Callable[[], int],
        rng: random.Random,
        pace: Pace,
        left: Rest | None,
        token: bytes,
        quiet_s: float,
        on_published: Callable[[FileInfo], None] | None,
    ) -> None:
        self._source = source
        self._store = store
        self._sums = sums
        self._tenure = tenure
        self._sync_interval_s = sync_interval_s
        self._stop_limit_s = stop_limit_s
        self._rng = rng
        self._pace = pace
        self._returned = left is not None
        self._token = token
        self._on_published = on_published
        self._tail = WalTail(source.wal_path)
        self._litestream = LitestreamWatch(source.path)
        self._watch = OutageLog(store.url)
        self._publisher = Publisher(
            store, source, self._tail, state=state, sums=sums, tenure=tenure, watch=self._watch, now_ms=now_ms
        )
        self._beginning = Beginning(
            store, source, self._tail, self._publisher,
            state=state, sums=sums, tenure=tenure, watch=self._watch, left=left,
        )  # fmt: skip
        self._schedule = Schedule(last_s=0.0)
        self._started = False  # the replica's newest file is known
        self._attached = False  # the read is held, and `_tail` follows the WAL
        self._content: resume_point.Hold | None = None  # what is in the database, as it was found, is to be published
        self._publish_at_s = 0.0
        self._check_place_at_s = 0.0
        self._active_s = trio.current_time() - quiet_s
        self._resting = False
        self._rest_at_s = 0.0
        self._progress = Progress(source.path)
        self._marks = Marks(state, source, store.url)

    def statistics(self) -> Statistics:
        """A record of now."""
        progress = self._progress
        return Statistics(
            self._publisher.last.txid,
            progress.files,
            progress.pages,
            progress.bytes,
            progress.checkpoints,
            self._wal_frames(),
            self._tenure.lease(),
            (self._tail.committed - self._tail.position) * self._tail.frame_size,
            progress.behind_s,
            progress.waits,
            progress.error,
        )

    async def run(
        self,
        stop: trio.Event,
        *,
        may_rest: MayRest | None = None,
        task_status: trio.TaskStatus[Statistics] = trio.TASK_STATUS_IGNORED,
    ) -> Rest | None:
        """Replicate until `stop` is set, then publish what is left in `stop_limit_s`. Started once everything is
        published. Returns the state of the database if it is one in which it can be let go, because `may_rest` said so.

        Raises `ConflictError` and `UsageError` when it must not go on, and before the first publishing is done also
        `StorageError` and `EnvironmentProblem`.
        """
        error: Exception | None = None
        rest: Rest | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch.run)
            try:
                with trio.CancelScope() as scope:
                    nursery.start_soon(_limit_stop, stop, scope, self._stop_limit_s)
                    await self._stand_by(stop)
                    await self._first_round(stop)
                    task_status.started(self.statistics())
                    rest = await self._follow(stop, may_rest)
                if scope.cancelled_caught:
                    log.warning("stopped before all was published: it took too long; the next start goes on from there")
            except Exception as exc:
                error = exc
            nursery.cancel_scope.cancel()
        if error is not None:
            raise error
        self._resting = rest is not None
        return rest

    async def publish_once(self) -> None:
        """Publish what there is. Raises whatever is in the way."""
        await self._tenure.stand_by(trio.Event())
        while True:
            try:
                await self._begin()
                await self._publish()
                await self._settle()
                return
            except WalMoved:
                self._detach()

    async def aclose(self) -> None:
        """Let go of the WAL, and of the lease, unless the database was left at rest: then that lapses."""
        with trio.CancelScope(shield=True):
            if not self._resting:
                await self._tenure.end()
            await self._source.run(self._source.release_read)
            await self._source.run(self._sums.close)
        self._publisher.discard()
        self._tail.close()

    # --- rounds

    async def _stand_by(self, stop: trio.Event) -> None:
        self._progress.waits = True
        await self._tenure.stand_by(stop)
        self._progress.waits = False

    async def _first_round(self, stop: trio.Event) -> None:
        """Until everything is published once."""
        failures = 0
        while not stop.is_set():
            try:
                await self._begin()
                await self._publish()
                return
            except WalMoved:
                self._detach()
            except (TransientStorageError, NotFound) as exc:
                failures += 1
                await self._pause(exc, failures, stop)

    async def _follow(self, stop: trio.Event, may_rest: MayRest | None) -> Rest | None:
        failures = 0
        while not stop.is_set():
            try:
                wait_s = await self._round()
                failures, self._progress.error = 0, None
                if may_rest is not None and may_rest(
                    trio.current_time() - self._active_s, self._source.identity().size
                ):
                    rest = await self._rest()
                    if rest is not None:
                        return rest
            except WalMoved:
                self._detach()
                continue
            except (StorageError, OSError, apsw.Error, EnvironmentProblem) as exc:
                failures += 1
                await self._pause(exc, failures, stop)
                continue
            with trio.move_on_after(wait_s):
                await stop.wait()
        await self._finish()
        return None

    async def _round(self) -> float:
        """Do what is due; returns the seconds until something else may be."""
        now_s = trio.current_time()
        if now_s >= self._check_place_at_s:
            self._check_place()
            self._check_place_at_s = now_s + IN_PLACE_INTERVAL_S
        if not self._attached or self._content is not None:
            await self._begin()
        await self._renew_read()
        if now_s < self._publish_at_s:
            longest_s = self._pace.look_interval_s() if self._source.may_restart else IN_PLACE_INTERVAL_S
            return min(self._publish_at_s - now_s, longest_s)
        if self._tail.look() is News.FRAMES:
            await self._source.run(lambda: move_ahead(self._source, self._tail))
        if await self._publish():
            self._active_s = now_s
            self._publish_at_s = now_s + self._sync_interval_s
        if self._schedule.due(trio.current_time(), frames=self._wal_frames()):
            await self._checkpoint(self._schedule.publish_limit_s)
        if self._marks.is_due:
            await self._source.run(self._marks.write_if_certain)
        return self._pace.look_interval_s(now_s - self._active_s)

    async def _finish(self) -> None:
        """Publish what is left."""
        if not self._attached:
            return
        try:
            while self._tail.committed > self._tail.position:  # what was seen before
                await self._publish()
            await self._publish()
            await self._settle()
        except (StorageError, OSError, apsw.Error, EnvironmentProblem, WalMoved) as exc:
            log.warning("stopped before all was published: %s; the next start goes on from there", exc)

    async def _settle(self) -> None:
        """Once all is published, checkpoint and mark it, so that the next start need not look for what differs
        even if the WAL is gone by then."""
        if self._wal_frames():
            await self._checkpoint(self._schedule.publish_limit_s)
        if await self._source.run(self._leave) is None:
            await trio.sleep(MARK_DELAY_S)
            if await self._source.run(self._leave) is None:
                await self._source.run(self._marks.write_if_certain)

    async def _rest(self) -> Rest | None:
        """Leave the database as `dormant` wants it; None when that has to wait. A reader that keeps the WAL from being
        moved as a whole does not matter."""
        now_s = trio.current_time()
        if not self._attached or self._content is not None or now_s < max(self._rest_at_s, self._schedule.not_before_s):
            return None
        if self._wal_frames():
            outcome = await self._checkpoint(self._schedule.publish_limit_s)
            if outcome not in (Outcome.DONE, Outcome.PARTIAL):
                self._rest_at_s = now_s + REST_RETRY_S
                return None
        return await self._source.run(self._leave)

    def _leave(self) -> Rest | None:
        """What the files are, with all that they hold published; marked, if the database file alone has it. None when
        a later change might not show in them. Blocks."""
        files = certain_now(self._source.path)
        if files is None or not self._attached:
            return None
        if files.database != self._source.identity() or not self._tail.is_in_place():
            return None
        if self._tail.look() is not News.NONE or self._tail.committed > self._tail.position:
            return None
        last, complete = self._publisher.last, self._tail.is_sealed
        if complete:
            self._marks.write(mark_of(self._store.url, last.txid, files))
        return Rest(last.txid, files, complete, last, self._token, self._tenure.known_interruptions())

    async def _renew_read(self) -> None:
        """Hold a WAL that has been restarted by its first frames, which is easier on the application."""
        if self._source.may_restart and not (self._tail.is_sealed and self._tail.is_intact()):
            await self._source.run(self._source.renew_read)

    # --- beginning

    async def _begin(self) -> None:
        """Take hold of the database, unless it is held, and publish its content, or what differs, if that is needed."""
        if not self._attached:
            await self._attach()
        if self._content is not None:
            async with self._tenure.kept():
                commit = self._content.page_count if self._content.sealed else None
                published = await self._beginning.publish_content(commit)
            if published is not None:
                self._count(published)
            self._content = None
            self._note_if_complete()

    async def _attach(self) -> None:
        finished = await self._publisher.finish()
        if finished is not None:
            self._count(finished)
        if self._started:
            hold = await self._source.run(lambda: resume_point.take_hold(self._source, self._tail))
            start = Start.DIFFERENCE
        else:
            start, hold = await self._beginning.start()
            self._started = True
        self._content = hold if start in (Start.FIRST, Start.DIFFERENCE) else None
        self._attached = True
        self._schedule = Schedule(last_s=trio.current_time())
        self._note_if_complete()
        log.log(
            logging.DEBUG if self._returned else logging.INFO,
            "replicating %s to %s: %s, at TXID %016x",
            self._source.path, self._store.url, start.value, self._publisher.last.txid,
        )  # fmt: skip

    def _note_if_complete(self) -> None:
        """If the database file is all of the newest TXID, that is to be marked."""
        if self._content is None and self._tail.is_sealed:
            self._marks.note(self._publisher.last.txid)

    # --- publishing

    async def _publish(self) -> int:
        """Publish all that is committed now, not what is committed meanwhile; returns the number of files."""
        news = self._tail.look()
        if news is not News.NONE:
            self._progress.note_behind()
        if news is News.LOST:
            raise WalMoved
        files = 0
        due = news is News.FRAMES or self._tail.committed > self._tail.position
        while due and (published := await self._publisher.publish_next()) is not None:
            self._count(published)
            files += 1
            due = self._tail.committed > self._tail.position
        self._progress.note_current()
        return files

    def _count(self, published: Prepared) -> None:
        self._progress.count(published, wal_frames=self._wal_frames())
        if self._on_published is not None:
            self._on_published(published.info)

    def _wal_frames(self) -> int:
        return 0 if self._tail.is_sealed else self._tail.committed

    # --- checkpoints

    async def _checkpoint(self, limit_s: float) -> Outcome:
        self._marks.forget()
        outcome = await checkpoint(self._source, self._tail, self._publish, publish_limit_s=limit_s)
        self._schedule.record(trio.current_time(), outcome)
        log.debug("checkpoint: %s, %d frames", outcome.value, self._tail.position)
        if outcome is Outcome.DONE:
            self._progress.count_checkpoint()
            self._note_if_complete()
        elif outcome is Outcome.LOST:
            self._detach()
        return outcome

    # --- trouble

    def _detach(self) -> None:
        """What we know of the WAL no longer holds."""
        log.warning("the WAL of %s has changed without us: what differs is published", self._source.path)
        self._attached = False
        self._marks.forget()
        self._progress.note_behind()

    def _check_place(self) -> None:
        self._litestream.check()
        if self._attached and not (self._source.is_in_place() and self._tail.is_in_place()):
            raise UsageError(
                f"{self._source.path} or its WAL was deleted or replaced while it was replicated",
                hint="start again: the database that is there now is then published",
            )

    async def _pause(self, error: Exception, failures: int, stop: trio.Event) -> None:
        self._progress.note_behind()
        delay_s = retry_delay_s(failures, self._rng, busy=isinstance(error, apsw.BusyError))
        told, self._progress.error = self._progress.error, str(error)
        level = logging.DEBUG if told == self._progress.error else logging.WARNING
        log.log(level, "cannot publish %s: %s; trying again in %.1f s", self._source.path, error, delay_s)
        if self._attached and not isinstance(error, apsw.Error | OSError) and self._tail.look() is News.FRAMES:
            await self._source.run(self._tail.scan)  # to know how far behind the store is
        with trio.move_on_after(delay_s):
            await stop.wait()


async def _limit_stop(stop: trio.Event, scope: trio.CancelScope, limit_s: float) -> None:
    """Once `stop` is set, `scope` has `limit_s` left."""
    await stop.wait()
    scope.deadline = trio.current_time() + limit_s


@asynccontextmanager
async def open_replicator(
    database: Path,
    store: LTXStore,
    *,
    lease: LeaseMode = LeaseMode.OFF,
    sync_interval_s: float = SYNC_INTERVAL_S,
    stop_limit_s: float = STOP_LIMIT_S,
    now_ms: Callable[[], int] = wall_clock_ms,
    rng: random.Random | None = None,
    tenure: Callable[[StateDirectory], Tenure] | None = None,
    pace: Pace | None = None,
    left: Rest | None = None,
    on_published: Callable[[FileInfo], None] | None = None,
) -> AsyncIterator[Replicator]:
    """Take a database for replication to `store`, which stays the caller's. Nothing is published yet.

    `tenure` gives the right to publish, in place of one by `lease`; `left` is what the last run of this process
    returned. `on_published` is told of every file.

    Raises `UsageError` when it is no database that can be replicated, `ConflictError` when another process of ours
    replicates it, `EnvironmentProblem` when it cannot be accessed.
    """
    async with open_source(database) as source:
        refuse_if_litestream_runs(source.path)
        with StateDirectory(source.path) as state:
            undisturbed = left is not None and left.token == state.tenancy()
            quiet_s = await source.run(lambda: quiet_for_s(source.path))
            await source.run(source.connect)
            sums = PageChecksums(state.page_sums)
            await source.run(lambda: sums.open(inode=source.identity().inode, page_size=source.page_size))
            replicator = Replicator(
                source,
                store,
                state,
                sums,
                tenure(state) if tenure is not None else open_tenure(store.storage, lease, writer_id=state.writer_id),
                sync_interval_s=sync_interval_s,
                stop_limit_s=stop_limit_s,
                now_ms=now_ms,
                rng=rng or random.Random(),
                pace=pace or Pace(),
                left=left if undisturbed else None,
                token=state.begin_tenancy(),
                quiet_s=quiet_s,
                on_published=on_published,
            )
            try:
                yield replicator
            finally:
                await replicator.aclose()
