"""One database of a fleet: active, at rest, failing, gone.

A database that is active, or about to be, has a task (`Member.run`), which ends when it is at rest or gone; whoever
sees that a database at rest has changed starts another. Nothing of one at rest is open.

What goes wrong is said once and tried again with back-off, except where that could do harm: a database beside which
another writer has published stays as it is until the process is started again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import trio

from litereplica.errors import AlreadyReplicated, ConflictError, LeaseConflict, LiteReplicaError
from litereplica.ltxstore.lease import Lease
from litereplica.types import TXID, FileInfo
from litereplica.writer.backoff import retry_delay_s
from litereplica.writer.database.parked import Rest
from litereplica.writer.database.state_directory import StateDirectory, state_path
from litereplica.writer.fleet.directory_scan import printable
from litereplica.writer.fleet.limits import Common
from litereplica.writer.fleet.replica_root import ReplicaRoot
from litereplica.writer.maintenance import Maintenance
from litereplica.writer.publish.lease_keeper import Tenure
from litereplica.writer.replicator import Replicator, open_replicator
from litereplica.writer.settings import WriterSettings
from litereplica.writer.statistics import Statistics

log = logging.getLogger(__name__)


class State(StrEnum):
    """What becomes of a database."""

    STARTING = "starting"
    ACTIVE = "active"
    DORMANT = "dormant"  # nothing has changed for a while: closed, looked at once a second
    WAITING = "waiting"  # for the lease that another writer holds
    FAILED = "failed"  # tried again with back-off
    GONE = "gone"  # deleted or renamed, or no longer to be replicated


@dataclass(frozen=True, slots=True)
class DatabaseStatistics:
    """One database. `txid` is the newest one published (0: none, or not looked at yet), `wal_frames` those of the WAL
    that are not in the database file; counts are since the start of the process.

    `unpublished_bytes` of the WAL are known to be committed and not in the store; `behind_s` is for how long the store
    has lacked something, 0 when it lacks nothing.
    """

    path: Path
    url: str
    state: State
    txid: TXID = 0
    files: int = 0
    pages: int = 0
    bytes: int = 0
    checkpoints: int = 0
    wal_frames: int = 0
    unpublished_bytes: int = 0
    behind_s: float = 0.0
    error: str | None = None
    lease: Lease | None = None


class Member:
    """The database at `path`, replicated to `prefix` below `root`."""

    __slots__ = (
        "_before", "_common", "_failed_s", "_failures", "_maintained", "_maintaining", "_maintenance", "_replicator",
        "_tenure", "closed", "done_once", "error", "path", "prefix", "rest", "root", "settings", "state", "stop", "url",
    )  # fmt: skip

    def __init__(
        self, path: Path, root: ReplicaRoot, prefix: str, *, url: str, settings: WriterSettings, common: Common
    ) -> None:
        self.path = path
        self.root = root
        self.prefix = prefix
        self.url = url
        self.settings = settings
        self.state = State.STARTING
        self.error: str | None = None
        self.rest: Rest | None = None
        self.stop = trio.Event()
        self.closed = trio.Event()  # while it has no task
        self.done_once = trio.Event()  # published, at rest, failed or gone
        self.closed.set()
        self._common = common
        self._replicator: Replicator | None = None
        self._tenure: Tenure | None = None
        self._maintenance: Maintenance | None = None
        self._maintaining: trio.CancelScope | None = None
        self._maintained = trio.Event()
        self._before = Statistics(0, 0, 0, 0, 0, 0)  # of earlier times when it was open
        self._failures = 0
        self._failed_s = 0.0  # when the first of them was, in succession

    def leave_at_rest(self, rest: Rest) -> None:
        """It is at rest, and has no task."""
        self.rest = rest
        self.state, self.error = State.DORMANT, None
        self.done_once.set()

    async def run(self, nursery: trio.Nursery) -> None:
        """Until it is at rest or gone, or `stop` is set. `nursery` is for what goes on when it is at rest.

        Raises what ends the fleet: everything if it is strict, else nothing.
        """
        if self.closed.is_set():
            self.closed = trio.Event()
        try:
            await self._run(nursery)
        finally:
            self._common.beginning.end(self)
            self.done_once.set()
            self.closed.set()

    async def publish_once(self) -> None:
        """Publish what there is. Raises whatever is in the way."""
        await self._common.beginning.begin(self)
        try:
            async with self._open() as replicator:
                await replicator.publish_once()
                self._remember(replicator.statistics())
        except BaseException as exc:
            self.state, self.error = State.FAILED, str(exc)
            raise
        finally:
            self._common.beginning.end(self)
        self.state = State.ACTIVE

    async def aclose(self) -> None:
        """End what goes on at rest; it has no task any more."""
        await self._end_maintenance()
        if self._tenure is not None and self._tenure.lease() is not None:
            with trio.CancelScope(shield=True):
                await self._tenure.end()
        self.state = State.GONE

    def rest_from_maintenance(self) -> None:
        """End its task if nothing is left to do until the next change."""
        idle = self.rest is not None and self._maintenance is not None and self._maintenance.is_settled
        if idle and self._maintaining is not None:
            self._maintaining.cancel()

    def statistics(self) -> DatabaseStatistics:
        """A record of now."""
        before, now = self._before, self._replicator.statistics() if self._replicator is not None else None
        state, error = self.state, self.error
        if now is not None and state in (State.ACTIVE, State.STARTING):
            state = State.WAITING if now.waits else State.FAILED if now.error is not None else state
            error = now.error or error
        maintenance = self._maintenance.statistics().error if self._maintenance is not None else ""
        latest = now or before
        record = DatabaseStatistics(
            path=self.path,
            url=self.url,
            state=state,
            txid=latest.txid or before.txid or (self.rest.txid if self.rest is not None else 0),
            files=before.files + (now.files if now is not None else 0),
            pages=before.pages + (now.pages if now is not None else 0),
            bytes=before.bytes + (now.bytes if now is not None else 0),
            checkpoints=before.checkpoints + (now.checkpoints if now is not None else 0),
            wal_frames=now.wal_frames if now is not None else 0,
            unpublished_bytes=now.unpublished_bytes if now is not None else 0,
            behind_s=now.behind_s if now is not None else self._failing_s(),
            error=error or maintenance or None,
            lease=self._tenure.lease() if self._tenure is not None else None,
        )
        return record if state is not State.GONE else _of_gone(record)

    def last_statistics(self) -> DatabaseStatistics:
        """The record of a database that is gone."""
        return _of_gone(self.statistics())

    # --- its task

    async def _run(self, nursery: trio.Nursery) -> None:
        while not self.stop.is_set():
            self.state = State.STARTING
            try:
                rest = await self._replicate(nursery)
            except Exception as exc:  # whatever one database does must not end the others
                if self._common.ends_fleet(exc, named=not self.prefix):
                    raise
                if not await self._after_failure(exc):
                    return
                continue
            self._failures = 0
            if rest is not None and not self.stop.is_set():
                self.leave_at_rest(rest)
                return
        self.state = State.GONE

    async def _replicate(self, nursery: trio.Nursery) -> Rest | None:
        left, self.rest = self.rest, None
        if self.root.waits:
            self.state = State.WAITING
        await self.root.stand_by(self.stop)
        async with self._common.descriptors:
            return await self._replicate_open(nursery, left)

    async def _replicate_open(self, nursery: trio.Nursery, left: Rest | None) -> Rest | None:
        await self._common.beginning.begin(self)
        try:
            if self.stop.is_set():
                return None
            self.state = State.STARTING
            async with self._open(left) as replicator:
                self._replicator = replicator
                self._common.pace.open += 1
                try:
                    may_rest = None if self._common.strict else self._common.may_rest
                    started = _Started(lambda: self._begun(nursery))
                    return await replicator.run(self.stop, may_rest=may_rest, task_status=started)
                finally:
                    self._common.pace.open -= 1
                    self._remember(replicator.statistics())
                    self._replicator = None
                    if self.stop.is_set():
                        await self._end_maintenance()
        finally:
            self._common.beginning.end(self)

    def _open(self, left: Rest | None = None) -> AbstractAsyncContextManager[Replicator]:
        return open_replicator(
            self.path,
            self.root.store(self.prefix),
            sync_interval_s=self.settings.sync_interval_s,
            stop_limit_s=self.settings.stop_limit_s,
            now_ms=self._common.now_ms,
            rng=self._common.rng,
            tenure=self._take_tenure,
            pace=self._common.pace,
            left=left,
            on_published=self._note_published,
        )

    def _take_tenure(self, state: StateDirectory) -> Tenure:
        self._tenure = self._tenure or self.root.tenure(state)
        return self._tenure

    def _begun(self, nursery: trio.Nursery) -> None:
        """All is published once."""
        self.state, self.error, self._failures = State.ACTIVE, None, 0
        self._common.beginning.end(self)
        self.done_once.set()
        self._maintain(nursery)

    async def _after_failure(self, error: Exception) -> bool:
        """Say it, and wait; False when there is no point in another attempt."""
        self._common.beginning.end(self)
        if self.prefix and not await trio.to_thread.run_sync(self.path.exists, limiter=self._common.files):
            self.state = State.GONE
            return False
        if self._failures == 0:
            self._failed_s = trio.current_time()
        self._failures += 1
        self.state = State.FAILED
        if not self._common.strict:  # what is waited for is that database alone, else
            self.done_once.set()
        final = isinstance(error, ConflictError) and not isinstance(error, AlreadyReplicated | LeaseConflict)
        if self.error != str(error):
            self.error = str(error)
            self._log_failure(error, final=final)
        if final:
            await self._end_maintenance()
        with trio.move_on_after(math.inf if final else retry_delay_s(self._failures, self._common.rng)):
            await self.stop.wait()
        return True

    def _log_failure(self, error: Exception, *, final: bool) -> None:
        then = "it is left as it is" if final else "trying again"
        known = isinstance(error, LiteReplicaError | OSError)
        log.error("cannot replicate %s: %s; %s", printable(self.path), error, then, exc_info=None if known else error)

    def _failing_s(self) -> float:
        """For how long the store may have lacked something, while nobody can look."""
        return trio.current_time() - self._failed_s if self._failures else 0.0

    def _remember(self, done: Statistics) -> None:
        before = self._before
        self._before = Statistics(
            done.txid or before.txid,
            before.files + done.files,
            before.pages + done.pages,
            before.bytes + done.bytes,
            before.checkpoints + done.checkpoints,
            0,
        )

    # --- compaction and retention

    def _note_published(self, info: FileInfo) -> None:
        if self._maintenance is not None:
            self._maintenance.note_published(info)

    def _maintain(self, nursery: trio.Nursery) -> None:
        if self.settings.levels is None or self._tenure is None or self._maintaining is not None:
            return
        if self._maintenance is None:
            self._maintenance = Maintenance(
                self.root.store(self.prefix),
                levels=self.settings.levels,
                policy=self.settings.retention,
                tenure=self._tenure,
                limiter=self._common.merges,
                spool_dir=state_path(self.path),
                rng=self._common.rng,
            )
        self._maintaining, self._maintained = trio.CancelScope(), trio.Event()
        nursery.start_soon(self._run_maintenance, self._maintenance, self._maintaining)

    async def _run_maintenance(self, maintenance: Maintenance, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await maintenance.run()
        except ConflictError as exc:
            if self._common.ends_fleet(exc, named=not self.prefix):
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
    """Is told that all is published once, as a nursery is."""

    def __init__(self, begun: Callable[[], None]) -> None:
        self._begun = begun

    def started(self, value: object = None) -> None:
        self._begun()


def _of_gone(record: DatabaseStatistics) -> DatabaseStatistics:
    """Nothing of a database that is gone is missing any more."""
    return replace(record, state=State.GONE, lease=None, behind_s=0.0, unpublished_bytes=0)
