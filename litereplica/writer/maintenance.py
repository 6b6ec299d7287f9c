"""Compacts and prunes a replica while its database is replicated. A task of the writer.

Each round does what is due: merges, from the lowest level up, since each level is made from the one below; snapshots;
then deletions. `due_compactions` and `Pruner.due` decide what is due. If nothing can become due before the next
publication, there is no request and no timer until then.

The listing of the replica is kept in memory and updated by what is published, merged and deleted here. It is read again
once an hour, after every error, and in a new epoch of the lease. It need not be exact: a merge reads and checks all its
inputs, no put replaces a file, and before a file is deleted, the file that covers it is checked. If files turn out to
be lost without which the newest state cannot be restored (`lost_files.py`), `wants_snapshot` is true until there is a
snapshot.

The databases of a process take turns to merge (`limiter`); one step merges a bounded number of files and bytes, except
for a snapshot. The lease is held while files are merged or deleted. Cancellation leaves complete files only.

All times are those of a `SteadyClock`: if the machine's clock is set, merges are not affected, and nothing is deleted
early.
"""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from litereplica.compaction.compaction import run_compaction
from litereplica.compaction.levels import Compaction, Levels, due_compactions, first_step, next_compaction_ms
from litereplica.compaction.pruner import Pruner
from litereplica.compaction.retention import RetentionPolicy
from litereplica.errors import DamagedFile, EnvironmentProblem, NotFound, StorageError
from litereplica.format.names import SNAPSHOT_LEVEL, format_txid
from litereplica.ltxstore.replan import MAX_PLANS, RELIST_DELAY_S
from litereplica.ltxstore.store import LTXStore
from litereplica.times import HOUR_MS, SECOND_MS, SteadyClock
from litereplica.types import TXID, FileInfo, FileName
from litereplica.writer.lost_files import lost_after
from litereplica.writer.publish.lease_keeper import LeaseKeeper

log = logging.getLogger(__name__)

STEP_FILES = 1024
"""Maximum number of input files of one merge: a quarter of an hour of level 0 at its fastest."""
STEP_BYTES = 256 << 20
"""Maximum size of the inputs of one merge, which takes some seconds; then another database has its turn. The merge
needs up to twice this space on the local disk. A single larger file is merged nevertheless."""
STEP_DELETIONS = 1024
"""Maximum number of deletions between merges: half a minute of requests."""
DELETION_INTERVAL_MS = 15 * SECOND_MS
"""Minimum interval between checks for deletions, as in Litestream."""
LISTING_INTERVAL_MS = HOUR_MS
"""Maximum age of the listing: for ten requests an hour, changes made by other tools are noticed."""
MAX_WAIT_S = 600.0
"""Maximum wait: afterwards a machine that was suspended, or whose clock was set, is noticed."""
RETRY_S = 1.0
RETRY_MAX_S = 60.0
"""The delay after failures doubles from `RETRY_S` up to this."""


@dataclass(frozen=True, slots=True)
class MaintenanceStatistics:
    """Counts since the start. `merges` includes `snapshots`.

    `bytes_read` and `bytes_written` are those of merges, and of files that are read whole before others are deleted.
    `files` and `file_bytes` count the replica's files according to the listing. `error` is that of the last attempt, or
    "".
    """

    merges: int
    snapshots: int
    bytes_read: int
    bytes_written: int
    deletions: int
    files: int
    file_bytes: int
    next_due_s: float | None
    error: str


class Maintenance:
    """Compacts and prunes one replica. `spool_dir` is used by this database only; by default it is the system's.

    `note_published`, `statistics` and the properties must be used in trio's thread.
    """

    def __init__(
        self,
        store: LTXStore,
        *,
        levels: Levels,
        policy: RetentionPolicy,
        lease: LeaseKeeper,
        limiter: trio.CapacityLimiter,
        spool_dir: Path | None = None,
        clock: SteadyClock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._levels = levels
        self._lease = lease
        self._limiter = limiter
        self._spool_dir = spool_dir
        self._clock = clock or SteadyClock()
        self._rng = rng or random.Random()
        self._pruner = Pruner(store, policy, self._clock, directory=spool_dir)
        self._files: dict[FileName, FileInfo] = {}
        self._listed_ms: int | None = None  # None: the listing must be read
        self._added: set[FileName] = set()  # since the listing was begun
        self._newest: TXID = 0  # of the listing
        self._published: TXID = 0
        self._lost_after: TXID | None = None
        self._epoch = 0  # of the lease, when the listing was begun
        self._damaged: set[FileName] = set()
        self._suspected: set[str] = set()  # keys of files that were damaged once
        self._merge_due_ms: int | None = 0
        self._delete_due_ms: int | None = 0
        self._looked_ms = 0  # when deletions were last checked for
        self._changed = trio.Event()
        self._error = ""
        self._merges = self._snapshots = self._read = self._written = self._deletions = 0

    # --- for the writer

    def note_published(self, info: FileInfo) -> None:
        """Record a file that the writer has just published. If one before it is missing, list again."""
        now_ms = self._clock.steady_ms()
        before_s = self.next_due_s
        self._published = info.max_txid  # less than before if a start found that the newest files are gone
        if info.is_snapshot and info.max_txid > (self._lost_after or 0):
            self._lost_after = None
        if info.min_txid > self._newest + 1:
            self._listed_ms = None
        self._add(replace(info, modified_ms=now_ms))
        intervals_ms = [*self._levels.intervals_ms[:1], self._levels.snapshot_interval_ms]
        multiples = [(now_ms // each + 1) * each for each in intervals_ms if each is not None]
        self._merge_due_ms = _earlier(self._merge_due_ms, *multiples)
        if before_s is None or self.next_due_s != before_s:
            self._changed.set()

    @property
    def wants_snapshot(self) -> bool:
        """True if nothing that is published can be restored until there is a snapshot made from the database."""
        return self._lost_after is not None

    @property
    def next_due_s(self) -> float | None:
        """Seconds until something may be due; None if nothing can be due before the next publication."""
        now_ms = self._clock.steady_ms()
        dues = [due for due in (self._merge_due_ms, self._delete_due_ms) if due is not None]
        return max(0, min(dues) - now_ms) / 1000 if dues else None

    @property
    def is_settled(self) -> bool:
        """True if nothing can be due before the next publication."""
        return self.next_due_s is None

    def statistics(self) -> MaintenanceStatistics:
        """Return a record of the present state. Makes no request."""
        return MaintenanceStatistics(
            merges=self._merges,
            snapshots=self._snapshots,
            bytes_read=self._read + self._pruner.checked.bytes_read,
            bytes_written=self._written,
            deletions=self._deletions,
            files=len(self._files),
            file_bytes=sum(info.size for info in self._files.values()),
            next_due_s=self.next_due_s,
            error=self._error,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what is due, whenever it is. Never returns. An error is logged once, and the step is tried again.

        Raises:
            ConflictError: another writer has published, or holds the lease.
        """
        task_status.started()
        failures = 0
        while True:
            try:
                await self.run_due()
            except (StorageError, DamagedFile, EnvironmentProblem) as exc:
                failures += 1
                await trio.sleep(self._delay_s(exc, failures))
                continue
            failures = 0
            await self._wait()

    async def run_due(self) -> None:
        """Do what is due now. It can be called again after an error: nothing is left incomplete.

        Raises:
            StorageError: a request failed.
            DamagedFile: an input of a merge is damaged; it is not used again until the next listing.
            EnvironmentProblem: the local disk is full.
            ConflictError: as `run`.
        """
        if self.next_due_s != 0:
            return
        vanished = 0
        while True:
            try:
                await self._merge_what_is_due()
                await self._delete_what_is_due()
                break
            except StorageError as exc:
                self._listed_ms = None  # the listing may be wrong
                vanished += isinstance(exc, NotFound)
                if not isinstance(exc, NotFound) or vanished == MAX_PLANS:
                    raise
            except DamagedFile as exc:
                if exc.key not in self._suspected:  # the damage may have happened in transit
                    log.info("%s is read again: %s", exc.key, exc.reason)
                    self._suspected.add(exc.key)
                    continue
                self._damaged |= {name for name, info in self._files.items() if self._store.key(info) == exc.key}
                await self._look_for_losses()
                raise
        if self._error and not self._damaged:
            log.info("maintenance of %s has recovered", self._store.url)
            self._error = ""

    # --- rounds

    async def _merge_what_is_due(self) -> None:
        while True:
            files = await self._known_files()
            due = due_compactions(self._levels, files, self._clock.steady_ms())
            if not due:
                self._merge_due_ms = next_compaction_ms(self._levels, files)
                return
            step = first_step(due[0], max_inputs=STEP_FILES, max_bytes=STEP_BYTES)
            async with self._limiter:
                await self._merge(step)

    async def _merge(self, compaction: Compaction) -> None:
        async with self._lease.kept():
            if self._was_interrupted():
                return
            done = await run_compaction(self._store, compaction, spool_dir=self._spool_dir)
            newest_ms = max(info.modified_ms for info in compaction.inputs)
            self._add(replace(done.info, modified_ms=newest_ms))
            if not done.adopted:
                await self._pruner.made(done.info, done.checksum)
        if done.adopted:
            await self._make_way()
            return
        self._merges += 1
        self._snapshots += compaction.level == SNAPSHOT_LEVEL
        self._read += compaction.size
        self._written += done.info.size
        log.debug("merged %d files to %s, %d bytes", len(compaction.inputs), done.info, done.info.size)

    async def _make_way(self) -> None:
        """List again after a delay, because another compactor has merged these files."""
        self._listed_ms = None
        await trio.sleep(RELIST_DELAY_S)

    async def _delete_what_is_due(self) -> None:
        due_ms = self._delete_due_ms
        if due_ms is None or due_ms > self._clock.steady_ms():
            return
        self._looked_ms = self._clock.steady_ms()
        self._delete_due_ms = None  # a publication from here on sets it again
        try:
            next_ms = await self._delete()
        except BaseException:
            self._delete_due_ms = due_ms
            raise
        if next_ms is not None:
            wait_ms = max(next_ms - self._clock.now_ms(), DELETION_INTERVAL_MS)
            self._delete_due_ms = _earlier(self._delete_due_ms, self._looked_ms + wait_ms)

    async def _delete(self) -> int | None:
        """Delete up to `STEP_DELETIONS` files that are due; return when more may be due (clock time), or None."""
        due = await self._pruner.due(await self._known_files())
        if due:
            async with self._lease.kept():
                if self._was_interrupted():
                    return self._clock.now_ms()
                await self._pruner.delete(due[:STEP_DELETIONS], deleted=self._forget)
            log.debug("deleted %d files of %s", len(due[:STEP_DELETIONS]), self._store.url)
        if len(due) > STEP_DELETIONS:
            return self._clock.now_ms()
        return await self._pruner.next_due_ms(await self._known_files())

    # --- the listing

    async def _known_files(self) -> list[FileInfo]:
        """The files of the replica except damaged ones. Lists them if the listing is missing or too old."""
        now_ms = self._clock.steady_ms()
        if self._listed_ms is None or now_ms - self._listed_ms > LISTING_INTERVAL_MS:
            await self._list(now_ms)
        return [info for name, info in self._files.items() if name not in self._damaged]

    async def _list(self, now_ms: int) -> None:
        """Read the listing. Known files keep the time at which they appeared, instead of that by the store's clock."""
        self._added.clear()
        epoch = self._lease.epoch()
        listed = await self._store.list_levels()
        files = {name: info for name, info in self._files.items() if name in self._added}
        for info in listed:
            known = self._files.get(info.name)
            modified_ms = min(info.modified_ms, now_ms) if known is None else known.modified_ms
            files[info.name] = replace(info, modified_ms=modified_ms)
        self._files = files
        self._newest = max((info.max_txid for info in self._files.values()), default=0)
        self._listed_ms = now_ms
        self._epoch = epoch
        self._damaged.clear()
        self._suspected.clear()
        await self._look_for_losses()

    async def _look_for_losses(self) -> None:
        before, files = self._lost_after, [info for name, info in self._files.items() if name not in self._damaged]
        published = max(self._published, self._newest)
        self._lost_after = await lost_after(self._store, files, published=published, damaged=self._damaged)
        if before is None is not self._lost_after:
            log.warning(
                "%s has lost files: nothing after TXID %s can be restored until a snapshot is made from the database",
                self._store.url, format_txid(self._lost_after or 0),
            )  # fmt: skip

    def _was_interrupted(self) -> bool:
        """True if another writer may have published since the listing, which must then be read again."""
        if self._lease.epoch() != self._epoch:
            self._listed_ms = None
        return self._listed_ms is None

    def _add(self, info: FileInfo) -> None:
        """Add a new file, which may make others superfluous."""
        self._files[info.name] = info
        self._added.add(info.name)
        self._newest = max(self._newest, info.max_txid)
        self._pruner.appeared(info)
        look_ms = max(self._clock.steady_ms(), self._looked_ms + DELETION_INTERVAL_MS)
        self._delete_due_ms = _earlier(self._delete_due_ms, look_ms)

    def _forget(self, info: FileInfo) -> None:
        """Remove a deleted file."""
        self._files.pop(info.name, None)
        self._deletions += 1

    # --- waiting

    async def _wait(self) -> None:
        due_s = self.next_due_s
        with trio.move_on_after(math.inf if due_s is None else min(due_s, MAX_WAIT_S)):
            await self._changed.wait()
            self._changed = trio.Event()

    def _delay_s(self, error: Exception, failures: int) -> float:
        """Seconds to wait after an error. Logs it unless the previous error was the same."""
        if self._error != str(error):
            log.warning("cannot compact %s: %s; retrying", self._store.url, error)
            self._error = str(error)
        return min(RETRY_MAX_S, RETRY_S * 2.0 ** (failures - 1)) * self._rng.uniform(0.5, 1.0)


def _earlier(moment_ms: int | None, *others_ms: int) -> int | None:
    return min([*others_ms] if moment_ms is None else [moment_ms, *others_ms], default=None)


async def enforce_retention(store: LTXStore, policy: RetentionPolicy, lease: LeaseKeeper, directory: Path) -> int:
    """Delete the files that `policy` does not need now, for `replicate --once`; returns how many.

    `directory` is the state directory of the database. Raises as `Pruner.delete`.
    """
    pruner = Pruner(store, policy, SteadyClock(), directory=directory)
    due = await pruner.due(await store.list_levels())
    if due:
        async with lease.kept():
            await pruner.delete(due)
    return len(due)
