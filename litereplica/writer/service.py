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
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
import trio

from litereplica.errors import EnvironmentProblem, NotFound, StorageError, TransientStorageError, UsageError
from litereplica.ltxstore.lease import Lease
from litereplica.ltxstore.store import LTXStore
from litereplica.types import TXID
from litereplica.writer import attach
from litereplica.writer.attach import Start
from litereplica.writer.checkpoint import LARGE_WAL_FRAMES, Outcome, Schedule, checkpoint, move_ahead
from litereplica.writer.coexist import refuse_if_litestream_runs
from litereplica.writer.crash import CrashPoint, crash_point
from litereplica.writer.known_pages import carry_on, known_pages
from litereplica.writer.page_sums import PageSums
from litereplica.writer.publisher import Prepared, Publisher, WalMoved
from litereplica.writer.settings import SYNC_INTERVAL_S
from litereplica.writer.source import Source, open_source
from litereplica.writer.state import CheckpointMark, StateDirectory
from litereplica.writer.store_watch import StoreWatch
from litereplica.writer.tenure import LeaseMode, Tenure, open_tenure
from litereplica.writer.wal_tail import MTIME_GRANULARITY_NS, News, WalTail

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.01
"""Between looks at the WAL: a change is seen after 5 ms on average, for about 2 % of a CPU."""
IDLE_LOOK_INTERVAL_S = 0.02
"""The same when nothing has happened for `IDLE_AFTER_S`."""
IDLE_AFTER_S = 10.0
IN_PLACE_INTERVAL_S = 1.0
"""Between checks that the files are still those that we opened."""
MARK_DELAY_S = 1.2 * MTIME_GRANULARITY_NS / 1e9
"""After which a file that is not written to can be told from one that is."""
STOP_LIMIT_S = 5.0
"""For publishing what is left, or what is under way, when asked to stop: service managers wait for 10 s and more."""
RETRY_S = 0.5
RETRY_MAX_S = 30.0
"""Limits of the delay after failures, which doubles from one to the other."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What has been done since the start. `txid` is the newest one published, `wal_frames` those of the WAL that are
    not in the database file, `lease` the lease while it is held."""

    txid: TXID
    files: int
    pages: int
    bytes: int
    checkpoints: int
    wal_frames: int
    lease: Lease | None = None


class Replicator:
    """Replicates an open database. Obtain one from `open_replicator`."""

    def __init__(
        self,
        source: Source,
        store: LTXStore,
        state: StateDirectory,
        sums: PageSums,
        tenure: Tenure,
        *,
        sync_interval_s: float,
        now_ms: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self._source = source
        self._store = store
        self._state = state
        self._sums = sums
        self._tenure = tenure
        self._sync_interval_s = sync_interval_s
        self._rng = rng
        self._tail = WalTail(source.wal_path)
        self._watch = StoreWatch(store.url)
        self._publisher = Publisher(
            store, source, self._tail, state=state, sums=sums, tenure=tenure, watch=self._watch, now_ms=now_ms
        )
        self._schedule = Schedule(last_s=0.0)
        self._started = False  # the replica's newest file is known
        self._attached = False  # the read is held, and `_tail` follows the WAL
        self._content: attach.Hold | None = None  # what is in the database, as it was found, is to be published
        self._publish_at_s = 0.0
        self._check_place_at_s = 0.0
        self._active_s = 0.0
        self._unmarked: TXID | None = None  # all of this TXID is in the database file, and not marked so
        self._warned_frames = LARGE_WAL_FRAMES // 2
        self._files = self._pages = self._bytes = self._checkpoints = 0

    def statistics(self) -> Statistics:
        """A record of now."""
        return Statistics(
            self._publisher.last.txid,
            self._files,
            self._pages,
            self._bytes,
            self._checkpoints,
            self._wal_frames(),
            self._tenure.lease(),
        )

    async def run(
        self, stop: trio.Event, *, task_status: trio.TaskStatus[Statistics] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Replicate until `stop` is set, then publish what is left in `STOP_LIMIT_S`. Started once everything is
        published.

        Raises `ConflictError` and `UsageError` when it must not go on, and before the first publishing is done also
        `StorageError` and `EnvironmentProblem`.
        """
        error: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch.run)
            try:
                with trio.CancelScope() as scope:
                    nursery.start_soon(_limit_stop, stop, scope)
                    await self._tenure.stand_by(stop)
                    await self._first_round(stop)
                    task_status.started(self.statistics())
                    await self._follow(stop)
                if scope.cancelled_caught:
                    log.warning("stopped before all was published: it took too long; the next start goes on from there")
            except Exception as exc:
                error = exc
            nursery.cancel_scope.cancel()
        if error is not None:
            raise error

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
        """Let go of the WAL, and of the lease."""
        with trio.CancelScope(shield=True):
            await self._tenure.end()
            await self._source.run(self._source.release_read)
            await self._source.run(self._sums.close)
        self._publisher.discard()
        self._tail.close()

    # --- rounds

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

    async def _follow(self, stop: trio.Event) -> None:
        failures = 0
        while not stop.is_set():
            try:
                wait_s = await self._round()
                failures = 0
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
            longest_s = LOOK_INTERVAL_S if self._source.may_restart else IN_PLACE_INTERVAL_S
            return min(self._publish_at_s - now_s, longest_s)
        if self._look() is News.FRAMES:
            await self._source.run(lambda: move_ahead(self._source, self._tail))
        if await self._publish():
            self._active_s = now_s
            self._publish_at_s = now_s + self._sync_interval_s
        if self._schedule.due(trio.current_time(), frames=self._wal_frames()):
            await self._checkpoint(self._schedule.publish_limit_s)
        self._mark()
        idle = now_s - self._active_s > IDLE_AFTER_S
        return IDLE_LOOK_INTERVAL_S if idle else LOOK_INTERVAL_S

    async def _finish(self) -> None:
        """Publish what is left."""
        crash_point(CrashPoint.STOPPING)
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
        if not self._mark():
            await trio.sleep(MARK_DELAY_S)
            self._mark()

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
                published = await self._publish_content(self._content.page_count if self._content.sealed else None)
            if published is not None:
                self._count(published)
            self._content = None
            self._note_if_complete()

    async def _publish_content(self, commit: int | None) -> Prepared | None:
        if self._publisher.last.txid == 0:
            return await self._publisher.publish_whole(commit=commit)
        last = self._publisher.last.version
        known = await known_pages(self._store, self._source, self._sums, last=last, watch=self._watch)
        if known is None:
            return await self._publisher.publish_whole(commit=commit)
        return await self._publisher.publish_difference(known, commit=commit)

    async def _attach(self) -> None:
        finished = await self._publisher.finish()
        if finished is not None:
            self._count(finished)
        if self._started:
            hold = await self._source.run(lambda: attach.take_hold(self._source, self._tail))
            start = Start.DIFFERENCE
        else:
            start, hold = await self._start()
        self._content = hold if start in (Start.FIRST, Start.DIFFERENCE) else None
        self._attached = True
        self._schedule = Schedule(last_s=trio.current_time())
        self._note_if_complete()
        log.info(
            "replicating %s to %s: %s, at TXID %016x",
            self._source.path, self._store.url, start.value, self._publisher.last.txid,
        )  # fmt: skip
        crash_point(CrashPoint.ATTACHED)

    async def _start(self) -> tuple[Start, attach.Hold]:
        """For the first time: find out what is published, once nobody else may publish."""
        with self._watch.waiting():
            await self._tenure.begin()
            remote = await attach.read_remote(self._store)
        hold = await self._source.run(lambda: attach.take_hold(self._source, self._tail))
        mark = self._state.read_mark()
        with self._watch.waiting():
            start, self._publisher.last = await attach.decide(
                self._store, self._source, self._tail, hold=hold, remote=remote, mark=mark,
                same_file=not self._sums.tells_of_another_file,
            )  # fmt: skip
            if remote.file is not None:
                await carry_on(
                    self._store, self._source, self._sums,
                    newest=remote.file.info, last=self._publisher.last.version, watch=self._watch,
                )  # fmt: skip
        self._started = True
        return start, hold

    def _note_if_complete(self) -> None:
        """If the database file is all of the newest TXID, that is to be marked."""
        if self._content is None and self._tail.is_sealed:
            self._unmarked = self._publisher.last.txid

    # --- publishing

    async def _publish(self) -> int:
        """Publish all that is committed now, not what is committed meanwhile; returns the number of files."""
        news = self._look()
        if news is News.LOST:
            raise WalMoved
        files = 0
        due = news is News.FRAMES or self._tail.committed > self._tail.position
        while due and (published := await self._publisher.publish_next()) is not None:
            self._count(published)
            files += 1
            due = self._tail.committed > self._tail.position
        return files

    def _look(self) -> News:
        generation = self._tail.header
        news = self._tail.look()
        if self._tail.header is not generation:
            crash_point(CrashPoint.NEW_GENERATION)
        return news

    def _count(self, published: Prepared) -> None:
        self._files += 1
        self._pages += published.pages
        self._bytes += published.info.size
        log.log(
            logging.INFO if published.whole else logging.DEBUG,
            "published %s: %d pages%s, %d bytes",
            published.info, published.pages, " (all)" if published.whole else "", published.info.size,
        )  # fmt: skip
        if self._wal_frames() >= 2 * self._warned_frames:
            self._warned_frames = self._wal_frames()
            log.warning("the WAL of %s has grown to %d frames", self._source.path, self._warned_frames)

    def _wal_frames(self) -> int:
        return 0 if self._tail.is_sealed else self._tail.committed

    # --- checkpoints

    async def _checkpoint(self, limit_s: float) -> None:
        self._unmarked = None
        outcome = await checkpoint(self._source, self._tail, self._publish, publish_limit_s=limit_s)
        self._schedule.record(trio.current_time(), outcome)
        log.debug("checkpoint: %s, %d frames", outcome.value, self._tail.position)
        if outcome is Outcome.DONE:
            self._checkpoints += 1
            self._warned_frames = LARGE_WAL_FRAMES // 2
            self._note_if_complete()
        elif outcome is Outcome.LOST:
            self._detach()

    def _mark(self) -> bool:
        """Write down that the database file is complete, once its ctime can no longer be that of a later write."""
        if self._unmarked is None:
            return True
        identity = self._source.identity()
        if abs(time.time_ns() - identity.ctime_ns) < MTIME_GRANULARITY_NS:
            return False
        self._state.write_mark(CheckpointMark(self._store.url, self._unmarked, identity))
        self._unmarked = None
        crash_point(CrashPoint.MARK_WRITTEN)
        return True

    # --- trouble

    def _detach(self) -> None:
        """What we know of the WAL no longer holds."""
        log.warning("the WAL of %s has changed without us: what differs is published", self._source.path)
        self._attached = False
        self._unmarked = None

    def _check_place(self) -> None:
        if self._attached and not (self._source.is_in_place() and self._tail.is_in_place()):
            raise UsageError(
                f"{self._source.path} or its WAL was deleted or replaced while it was replicated",
                hint="start again: the database that is there now is then published",
            )

    async def _pause(self, error: Exception, failures: int, stop: trio.Event) -> None:
        limit_s = min(RETRY_MAX_S, RETRY_S * 2.0 ** (failures - 1))
        delay_s = limit_s * self._rng.uniform(0.5, 1.0)
        log.warning("cannot publish: %s; trying again in %.1f s", error, delay_s)
        with trio.move_on_after(delay_s):
            await stop.wait()


async def _limit_stop(stop: trio.Event, scope: trio.CancelScope) -> None:
    """Once `stop` is set, `scope` has `STOP_LIMIT_S` left."""
    await stop.wait()
    scope.deadline = trio.current_time() + STOP_LIMIT_S


def wall_clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def open_replicator(
    database: Path,
    store: LTXStore,
    *,
    lease: LeaseMode = LeaseMode.OFF,
    sync_interval_s: float = SYNC_INTERVAL_S,
    now_ms: Callable[[], int] = wall_clock_ms,
    rng: random.Random | None = None,
) -> AsyncIterator[Replicator]:
    """Take a database for replication to `store`, which stays the caller's. Nothing is published yet.

    Raises `UsageError` when it is no database that can be replicated, `ConflictError` when another process of ours
    replicates it, `EnvironmentProblem` when it cannot be accessed.
    """
    async with open_source(database) as source:
        refuse_if_litestream_runs(source.path)
        with StateDirectory(source.path) as state:
            await source.run(source.connect)
            crash_point(CrashPoint.SOURCE_OPENED)
            sums = PageSums(state.page_sums)
            await source.run(lambda: sums.open(inode=source.identity().inode, page_size=source.page_size))
            replicator = Replicator(
                source,
                store,
                state,
                sums,
                open_tenure(store.storage, lease, writer_id=state.writer_id),
                sync_interval_s=sync_interval_s,
                now_ms=now_ms,
                rng=rng or random.Random(),
            )
            try:
                yield replicator
            finally:
                await replicator.aclose()
    crash_point(CrashPoint.CONNECTIONS_CLOSED)
