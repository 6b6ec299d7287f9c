"""One database of a replica: the façade over its parts, and how they are put together.

- `Current` (`current.py`): the snapshot that is served, replaced by one assignment.
- `NextFiles` (`next_files.py`): the files that lead on from a TXID.
- `Relocator` (`relocator.py`): other files for the same pages, after a 404, after damage, or before files are deleted.
- `PageReader` (`page_reader.py`): the pages at given locations, over the page store and the fetcher.
- `Hydrator` (`hydrate.py`): the whole database in the background.
- `PastSnapshots` (`past_snapshots.py`): other TXIDs, read through the same files and pages.

`poll` and `heal` take turns. No checkpoint lies between the assignment of a snapshot and their return, so a caller that
queues for a fair lock as the first thing it does with an update applies the updates in order. Nothing here polls by
itself (`poller.py` does).
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import DamagedFile, LiteReplicaError, StaleReplica
from litereplica.file_events import Changes
from litereplica.ltxstore.catalog import Catalog, SmallCatalog
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.current import FORGET_EVERY, Current, keep_pages
from litereplica.replica.fetch import Fetcher
from litereplica.replica.file_holders import FileHolders
from litereplica.replica.file_table import FileTable, SourceFile
from litereplica.replica.hydrate import Hydrator, Push
from litereplica.replica.next_files import LIST_INTERVAL_S, NextFiles
from litereplica.replica.observer import ReplicaObserver
from litereplica.replica.page_map import PageMap
from litereplica.replica.page_pool import PagePool, open_own_pages
from litereplica.replica.page_reader import PageReader
from litereplica.replica.past_snapshots import PastSnapshots
from litereplica.replica.patience import READ_TIMEOUT_S
from litereplica.replica.poll_status import PollStatus
from litereplica.replica.relocator import Relocator
from litereplica.replica.remembered_position import RememberedPosition
from litereplica.replica.request_costs import Purpose, RequestCosts
from litereplica.replica.snapshot import Snapshot, Update, advance, first_snapshot
from litereplica.replica.statistics import ReplicaStatistics
from litereplica.storage.prices import is_priced
from litereplica.storage.wrappers import MeteredStorage, RetryPolicy, RetryStorage
from litereplica.times import asleep_s
from litereplica.types import TXID, FileInfo, Pgno

log = logging.getLogger(__name__)

MEMORY_SIZE = 32 * 1024 * 1024
"""Bytes of pages in memory: what is being read now. The kernel's page cache and the disk hold the others."""

CACHE_SIZE = 1024 * 1024 * 1024
"""Bytes of pages on the local disk."""


PATIENT_ATTEMPTS = 1000
"""More than there is time for."""

HEAL_PAUSE_S = 1.0
"""Time after a heal that found nothing until the next one: each lists all levels and opens the files of a plan."""


def clock_through_suspend() -> float:
    """Return trio's time in seconds, plus that in which the machine was suspended: replicas become stale meanwhile."""
    return trio.current_time() + asleep_s()


class Replica:
    """A database that follows its replica. Obtain one from `open_replica`. `read` is `PageReader.read`."""

    def __init__(
        self,
        store: LTXStore,
        current: Current,
        *,
        reader: PageReader,
        relocator: Relocator,
        next_files: NextFiles,
        hydrator: Hydrator,
        costs: RequestCosts,
        clock: Callable[[], float],
    ) -> None:
        self.read = reader.read
        self._store = store
        self._current = current
        self._reader = reader
        self._relocator = relocator
        self._next_files = next_files
        self._hydrator = hydrator
        self._costs = costs
        self._older: PastSnapshots | None = None
        self._turn = trio.Lock()
        self._status = PollStatus(clock)
        self._heals = 0
        self._heal_error: LiteReplicaError | None = None
        self._heal_failure = ""
        self._heal_due_at = -math.inf

    @property
    def url(self) -> str:
        """The URL of the replica, without credentials."""
        return self._store.url

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that is current now."""
        return self._current.snapshot

    @property
    def newest_txid(self) -> TXID:
        """The newest TXID that is known: that of the snapshot, or of a file that was listed."""
        return max(self._next_files.newest_txid, self._current.snapshot.pos.txid)

    @property
    def is_behind(self) -> bool:
        """True if more files were waiting than the last poll took: the next one should follow at once."""
        return self._next_files.is_behind

    @property
    def holders(self) -> FileHolders:
        """Where an object that keeps locations outside of a `PageMap` registers itself."""
        return self._current.files.holders

    def subscribe(self, observer: ReplicaObserver) -> None:
        """Report blocks and relocations to `observer`."""
        self._current.observers.append(observer)

    def watch(self) -> AbstractAsyncContextManager[Changes]:
        """Tell during the block when there may be something new. A hint: most stores have none."""
        return self._store.watch()

    def read_now(self, first: Pgno, last: Pgno, pages: PageMap) -> bytearray | None:
        """Return consecutive pages of a map one after the other, if that takes no waiting; else None.

        The read-ahead policy learns of it only while there may be pages to be fetched.
        """
        found = self._reader.read_now(first, last, pages)
        if found is not None and not self._hydrator.is_complete:
            self._reader.note_read(first, last, pages)
        return found

    async def poll(self) -> Update | None:
        """Advance as far as the store leads, by at most some 256 files. None if nothing is new.

        Raises `PageSizeChanged`, `DamagedFile` (the next file, while no other covers it), or what the store raises;
        then nothing has changed.
        """
        async with self._turn:
            current = self._current
            self._status.note_begin()
            try:
                found = await self._next_files.next_files(current.snapshot.pos.txid)
                if found is None:
                    update = await self._relocator.rebase()
                elif found.whole:
                    update = await self._relocator.relocate(found)
                else:
                    update = advance(current.snapshot, found.files, current.files)
                    current.replace(update.snapshot, found.files)
            except LiteReplicaError as exc:
                self._status.note_failure(exc, txid=current.snapshot.pos.txid, newest_txid=self._next_files.newest_txid)
                raise
            finally:
                self._status.note_end()
            if update is not None:
                self._hydrator.wake()
            self._status.note_success(
                progress=found is not None,
                txid=current.snapshot.pos.txid,
                newest_txid=self._next_files.newest_txid,
            )
            return update

    async def heal(self) -> Update | None:
        """Find other files for the pages, after some have vanished or proved damaged.

        The TXID stays the same if any file still ends there. A caller that waits while another one heals gets None,
        since the other one got the update. After a heal that found nothing, the next one waits for `HEAL_PAUSE_S`.
        Raises `GapError` when the files do not reach the current TXID.
        """
        heals = self._heals
        await trio.sleep_until(self._heal_due_at)
        async with self._turn:
            if self._heals != heals:
                if self._heal_error is not None:
                    raise self._heal_error.with_traceback(None)
                return None
            before = self._current.snapshot
            try:
                update = await self._relocator.heal()
            except LiteReplicaError as exc:
                self._heal_error = exc
                self._note_heal(str(exc))
                self._status.note_failed_heal(exc)
                raise
            self._hydrator.wake()
            self._heal_error = None
            after = update.snapshot
            is_same = after.pos == before.pos and np.array_equal(after.pages.files(), before.pages.files())
            self._note_heal(f"no other files have the pages of TXID {after.pos.txid:016x}" if is_same else "")
            if not is_same:
                log.info("%s: page locations renewed at TXID %016x", self._store.url, after.pos.txid)
            return update

    def _note_heal(self, failure: str) -> None:
        """Record a heal, and why it brought nothing, if so. That is logged when it changes."""
        self._heals += 1
        if failure:
            self._heal_due_at = trio.current_time() + HEAL_PAUSE_S
            if failure != self._heal_failure:
                log.info("%s: %s", self._store.url, failure)
        self._heal_failure = failure

    @property
    def staleness_s(self) -> float:
        """Seconds since the last poll after which nothing newer than the snapshot was known."""
        return self._status.staleness_s

    def require_fresh(self, max_staleness_s: float) -> None:
        """Raise `StaleReplica` if `staleness_s` exceeds this."""
        if self.staleness_s > max_staleness_s:
            raise StaleReplica(
                f"no news from {self._store.url} for {self.staleness_s:.1f} s, more than {max_staleness_s:g} s",
                hint="see 'last_error' in the mount's status",
            )

    async def hydrate(
        self, current: Callable[[], PageMap] | None = None, *, push: Push | None = None, rate: float | None = None
    ) -> None:
        """Fetch the whole database in the background, then what changes, until cancelled.

        `current` returns the map to fetch; by default that of the current snapshot. Pages that arrive are offered to
        `push`. `rate`, in bytes per second, limits the requests.
        """
        await self._hydrator.run(current or (lambda: self._current.snapshot.pages), push=push, rate=rate)

    def past_snapshots(self, *, patience_s: float = 0.0) -> PastSnapshots:
        """Return the past states, which are read through the same files and pages.

        Requests to find and open them that fail for a passing reason are made again for `patience_s`.
        """
        store = self._costs.store(Purpose.PAST)
        if patience_s:
            patience = RetryPolicy(attempts=PATIENT_ATTEMPTS, max_delay_s=1.0, total_s=patience_s)
            store = LTXStore(RetryStorage(store.storage, patience), store.layout)
        past = PastSnapshots(self._current, self._reader, store=store, catalog=self._next_files.catalog)
        self.subscribe(past)
        return past

    async def state_between(self, first: TXID, last: TXID) -> Snapshot | None:
        """Return the newest state of our history in a range of TXIDs that files lead to. Raises `StorageError`."""
        if self._older is None:
            self._older = self.past_snapshots()
        return await self._older.between(first, last)

    def newest_txids(self, file_ids: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Return the max TXID of each file that locations name."""
        return self._current.files.newest_txids(file_ids)

    def ltx_files(self) -> list[FileInfo]:
        """Return the files that pages may be read from, by their names."""
        return self._current.files.infos()

    def statistics(self) -> ReplicaStatistics:
        """Return the figures of this moment."""
        snapshot, storage = self._current.snapshot, self._store.storage
        return ReplicaStatistics(
            pos=snapshot.pos,
            timestamp_ms=snapshot.timestamp_ms,
            page_size=snapshot.page_size,
            commit=snapshot.commit,
            newest_txid=self.newest_txid,
            behind_bytes=self._next_files.bytes_beyond(snapshot.pos.txid),
            polls=self._status.polls,
            heals=self._heals,
            last_success_at=self._status.last_success_at,
            last_progress_at=self._status.last_progress_at,
            staleness_s=self.staleness_s,
            polls_behind=self._status.polls_behind,
            reason=self._status.reason(txid=snapshot.pos.txid, newest_txid=self._next_files.newest_txid),
            last_error=self._status.last_error,
            pages_from_memory=self._reader.pages_from_memory,
            pages_from_disk=self._reader.pages_from_disk,
            pages_from_store=self._reader.pages_from_store,
            files=len(self._current.files),
            requests=storage.statistics() if isinstance(storage, MeteredStorage) else None,
            ledger=self._costs.statistics(),
            is_priced=is_priced(self._store.url),
            hydration=self._hydrator.statistics(),
        )


@asynccontextmanager
async def open_replica(
    store: LTXStore,
    *,
    cache_dir: Path | None = None,
    cache_size: int = CACHE_SIZE,
    memory_size: int = MEMORY_SIZE,
    read_timeout_s: float = READ_TIMEOUT_S,
    list_interval_s: float = LIST_INTERVAL_S,
    forget_every: int = FORGET_EVERY,
    clock: Callable[[], float] = clock_through_suspend,
    at: TXID | None = None,
    pool: PagePool | None = None,
) -> AsyncIterator[Replica]:
    """Open the newest database that the store's files make, or that of the TXID `at`.

    Sizes in bytes. Pages are kept in `cache_dir`, which belongs to this one database, or only in memory if it is None.
    With `pool`, for one replica of many, they are kept there, `cache_dir` has the position alone, and the first listing
    is a single request. `forget_every` is how many files may gather before unused ones are forgotten.

    Raises:
        NoReplica, GapError: no files, or none that lead to `at`.
        ReplicaError: a page is in no file.
        DamagedFile: no sound file covers a transaction.
        EnvironmentProblem: the cache directory is not safe.
        StorageError: from the store; `TransientStorageError` also if its listing is older than what was served from
            `cache_dir` before.
    """
    costs = RequestCosts(store)
    kind = Catalog if pool is None else SmallCatalog
    next_files = NextFiles(costs, clock=clock, list_interval_s=list_interval_s, first_catalog=kind)
    opened = await next_files.first_files(at)
    files = FileTable()
    snapshot = first_snapshot(opened, files)
    remembered = RememberedPosition(cache_dir, clock=clock) if cache_dir is not None and at is None else None
    async with AsyncExitStack() as stack:
        if remembered is not None:
            await remembered.require_listed(store, snapshot.pos.txid)
            stack.callback(remembered.flush)
        if pool is None:
            cache = open_own_pages(cache_dir, size=cache_size, memory_size=memory_size, page_size=snapshot.page_size)
        else:
            cache = pool.pages(store.url, snapshot.page_size)
        pages = await stack.enter_async_context(cache)
        nursery = await stack.enter_async_context(trio.open_nursery())
        current = Current(snapshot, files=files, pages=pages, forget_every=forget_every, remembered=remembered)
        keep_pages(pages, snapshot.pages, opened, files)
        del opened, snapshot  # the indexes are as large as the map, and the replica moves on to other snapshots

        def on_damage(file: SourceFile, damage: DamagedFile) -> None:
            if next_files.catalog.avoid(damage):
                log.error("%s", damage)

        fetcher = Fetcher(
            costs.store(Purpose.PAGE),
            costs.store(Purpose.AHEAD),
            files=files,
            pages=pages,
            nursery=nursery,
            timeout_s=read_timeout_s,
            on_damage=on_damage,
            observers=current.observers,
        )
        yield Replica(
            store,
            current,
            reader=PageReader(files, pages, fetcher=fetcher, url=store.url),
            relocator=Relocator(current, next_files, url=store.url),
            next_files=next_files,
            hydrator=Hydrator(costs.store(Purpose.HYDRATE), files, pages, fetcher, on_damage=on_damage),
            costs=costs,
            clock=clock,
        )
        nursery.cancel_scope.cancel()
