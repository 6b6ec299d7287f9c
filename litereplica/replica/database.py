"""One database of a replica: its current snapshot, the pages of any location, and the way on.

`snapshot` is replaced by one assignment once everything that the new one needs is known; a poll that fails changes
nothing. `poll` and `heal` take turns, and no checkpoint lies between the assignment and their return, so whoever
queues for a fair lock with each update, before anything else, applies them in order. Nothing here polls by itself
(`poller.py` does) or knows who reads.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import (
    DamagedFile,
    FileVanished,
    GapError,
    LiteReplicaError,
    ReplicaError,
    StaleReplica,
    TransientStorageError,
)
from litereplica.format.sqlite import lock_pgno
from litereplica.ltxstore.catalog import Catalog
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.replica.disk_pages import open_disk_pages
from litereplica.replica.fetch import BlockListener, Fetcher
from litereplica.replica.file_table import FileTable, SourceFile
from litereplica.replica.hydrate import Hydrator, Push
from litereplica.replica.next_files import LIST_INTERVAL_S, Follower, Found
from litereplica.replica.page_key import PageKey, page_key
from litereplica.replica.page_map import PageMap
from litereplica.replica.page_store import PageStore
from litereplica.replica.past_snapshots import TimeTravel
from litereplica.replica.poll_status import Progress
from litereplica.replica.readahead import MIN_WINDOW, ReadAhead
from litereplica.replica.request_costs import Ledger, Purpose
from litereplica.replica.snapshot import (
    Snapshot,
    Update,
    advance,
    all_pages,
    changed_since,
    first_snapshot,
    page_size_changed,
    renaming,
)
from litereplica.replica.statistics import ReplicaStatistics
from litereplica.storage.wrappers import MeteredStorage
from litereplica.types import TXID, FileInfo, Pgno

log = logging.getLogger(__name__)

MEMORY_SIZE = 32 * 1024 * 1024
"""Bytes of pages in memory: what is being read now. The kernel's page cache and the disk hold the rest."""

READ_TIMEOUT_S = 15.0
"""An uncached read fails after this time. A client of a mount may wait for twice that: the kernel asks once more."""

FORGET_EVERY = 1024
"""Files that the table may gain before it is cleaned: some 300 bytes each, against a look at the whole map."""

FileHolder: TypeAlias = Callable[[], NDArray[np.uint32]]
"""Ids of files in locations that are kept outside of any `PageMap`."""

RelocationListener: TypeAlias = Callable[[PageMap, PageMap, NDArray[np.uint32]], Awaitable[None]]
"""Is told of the map before, of the one after, and of the pages whose content may differ, with their cached pages
renamed already."""

CACHE_SIZE = 1024 * 1024 * 1024
"""Bytes of pages on the local disk."""

_LOCK_PAGE: PageKey = -1
"""In the place of a key: no file has the lock page."""


class Replica:
    """A database that follows its replica. Obtain one from `open_replica`.

    `held_files` may be set to tell which file ids are in locations that the caller keeps outside of maps; files
    that only such locations name are forgotten otherwise, and read as vanished.
    """

    def __init__(
        self,
        store: LTXStore,
        snapshot: Snapshot,
        *,
        files: FileTable,
        pages: PageStore,
        fetcher: Fetcher,
        follower: Follower,
        hydrator: Hydrator,
        ledger: Ledger,
        read_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.snapshot = snapshot
        self.held_files: FileHolder | None = None
        self.on_relocation: RelocationListener | None = None
        self._store = store
        self._files = files
        self._pages = pages
        self._fetcher = fetcher
        self._follower = follower
        self._hydrator = hydrator
        self._ledger = ledger
        self._read_timeout_s = read_timeout_s
        self._turn = trio.Lock()
        self._maps: weakref.WeakSet[PageMap] = weakref.WeakSet([snapshot.pages])
        self._clean_at = len(files) + FORGET_EVERY
        self._progress = Progress(clock)
        self._heals = 0
        self._from_memory = self._from_disk = 0
        self._heal_error: LiteReplicaError | None = None
        self._abandoned: set[int] = set()  # condemned files that we have tried to do without

    @property
    def on_block(self) -> BlockListener | None:
        """Called on the trio thread with all pages that a fetch from the store has brought."""
        return self._fetcher.on_block

    @on_block.setter
    def on_block(self, listener: BlockListener | None) -> None:
        self._fetcher.on_block = listener

    async def poll(self) -> Update | None:
        """Go on as far as the store leads, up to some 256 files at a time. None when nothing is new.

        Raises `PageSizeChanged`, `DamagedFile` (the next file, while no other covers it), or what the store raises;
        then nothing has changed.
        """
        async with self._turn:
            self._progress.polls += 1
            try:
                found = await self._follower.next_files(self.snapshot.pos.txid)
                update = await self._update(found) if found is not None else await self._rebase()
            except LiteReplicaError as exc:
                self._progress.note_failure(exc, **self._txids())
                raise
            self._progress.note_success(progress=found is not None, **self._txids())
            return update

    async def heal(self) -> Update | None:
        """Find other files for the pages, after some have vanished or proved damaged.

        The position stays the same if any file still ends there. Those who call while another heals wait for it and
        get None: it was the other who got the update. Raises `GapError` when the files do not reach our position.
        """
        heals = self._heals
        async with self._turn:
            if self._heals != heals:
                if self._heal_error is not None:
                    raise self._heal_error.with_traceback(None)
                return None
            try:
                found = await self._follower.files_at(self.snapshot.pos.txid)
                update = await self._relocation(found)
            except LiteReplicaError as exc:
                self._heals += 1
                self._heal_error = exc
                self._progress.last_error = exc.message
                raise
            self._heals += 1
            self._heal_error = None
            log.info("%s: page locations renewed at TXID %016x", self._store.url, self.snapshot.pos.txid)
            return update

    @property
    def staleness_s(self) -> float:
        """How long ago the store had nothing newer than our snapshot, as far as we know."""
        return self._progress.staleness_s

    def require_fresh(self, max_staleness_s: float) -> None:
        """Raise `StaleReplica` when that is longer ago than this."""
        if self.staleness_s > max_staleness_s:
            raise StaleReplica(
                f"no news from {self._store.url} for {self.staleness_s:.1f} s, more than {max_staleness_s:g} s",
                hint="see 'last_error' in the mount's status",
            )

    async def hydrate(
        self, current: Callable[[], PageMap] | None = None, *, push: Push | None = None, rate: float | None = None
    ) -> None:
        """Fetch the whole database in the background, and go on with what changes, for ever.

        `current` tells what to fetch, if not the current snapshot. Pages that arrive are offered to `push`; `rate` in
        bytes per second limits the requests.
        """
        await self._hydrator.run(current or (lambda: self.snapshot.pages), push=push, rate=rate)

    def travel(self) -> TimeTravel:
        """The way to past states, which are read through the same files and pages. To be called once."""
        past = TimeTravel(
            self,
            self._ledger.store(Purpose.PAST),
            self._follower.catalog,
            files=self._files,
            pages=self._pages,
            maps=self._maps,
        )
        self.on_relocation = past.follow
        return past

    async def read(
        self,
        pgnos: NDArray[np.uint32],
        locations: NDArray[np.void],
        *,
        around: PageMap | None = None,
        policy: ReadAhead | None = None,
    ) -> list[bytes]:
        """Pages in the order asked: from memory (without a checkpoint), from the disk, from the store.

        `around` lets a page that is fetched bring its neighbours in that map; `policy` is for readers of another map
        than the current one. The lock page is zeroes. Raises
        `FileVanished` or `DamagedFile` (heal, take the new locations, ask once more), `ReplicaError` for a page that
        is in no file, `TransientStorageError` after the time limit, or what the store raises.
        """
        keys = self._keys(pgnos, locations)
        window = MIN_WINDOW if around is None or not keys else self._fetcher.note_read(pgnos, around, policy)
        found: dict[PageKey, bytes] = {_LOCK_PAGE: bytes(self.snapshot.page_size)}
        missing: dict[PageKey, int] = {}
        for i, key in enumerate(keys):
            page = found.get(key) or self._pages.get(key)
            if page is None:
                missing[key] = i
            else:
                found[key] = page
        self._from_memory += len(found) - 1
        if missing:
            try:
                with trio.fail_after(self._read_timeout_s):
                    found |= await self._load(missing, pgnos, locations, around, window)
            except trio.TooSlowError:
                raise TransientStorageError(f"no answer from {self._store.url} in {self._read_timeout_s:g} s") from None
        return [found[key] for key in keys]

    def cached(self, pgno: Pgno, location: np.void) -> bytes | None:
        """A page if it is in memory. No I/O."""
        file_id = int(location["file"])
        file = self._files.get(file_id)
        return (
            None if file is None or file_id in self._files.condemned else self._pages.get(page_key(file.checksum, pgno))
        )

    def statistics(self) -> ReplicaStatistics:
        """The facts of this moment."""
        snapshot, storage = self.snapshot, self._store.storage
        return ReplicaStatistics(
            pos=snapshot.pos,
            timestamp_ms=snapshot.timestamp_ms,
            page_size=snapshot.page_size,
            commit=snapshot.commit,
            newest_txid=max(self._follower.newest_txid, snapshot.pos.txid),
            polls=self._progress.polls,
            heals=self._heals,
            last_success_at=self._progress.last_success_at,
            last_progress_at=self._progress.last_progress_at,
            staleness_s=self.staleness_s,
            polls_behind=self._progress.polls_behind,
            reason=self._progress.reason(**self._txids()),
            last_error=self._progress.last_error,
            pages_from_memory=self._from_memory,
            pages_from_disk=self._from_disk,
            pages_from_store=self._fetcher.pages_fetched,
            files=len(self._files),
            requests=storage.statistics() if isinstance(storage, MeteredStorage) else None,
            ledger=self._ledger.statistics(),
            hydration=self._hydrator.statistics(),
        )

    def _keys(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> list[PageKey]:
        keys = []
        condemned = self._files.condemned
        for pgno, file_id in zip(pgnos.tolist(), locations["file"].tolist(), strict=True):
            file = self._files.get(file_id)
            if file_id in condemned:
                raise condemned[file_id].with_traceback(None)
            if file is not None:
                keys.append(page_key(file.checksum, pgno))
            elif file_id:
                raise FileVanished(f"file {file_id} of page {pgno} is no longer part of {self._store.url}")
            elif pgno == lock_pgno(self.snapshot.page_size):
                keys.append(_LOCK_PAGE)
            else:
                raise ReplicaError(f"page {pgno} is in no file of {self._store.url}")
        return keys

    async def _load(
        self,
        missing: dict[PageKey, int],
        pgnos: NDArray[np.uint32],
        locations: NDArray[np.void],
        around: PageMap | None,
        window: int,
    ) -> dict[PageKey, bytes]:
        """The pages of these keys, which stand at these rows of `pgnos`, from the disk and from the store."""
        found = await self._pages.load(list(missing))
        self._from_disk += len(found)
        rows = [row for key, row in missing.items() if key not in found]
        if rows:
            found |= await self._fetcher.fetch(pgnos[rows], locations[rows], around, window=window)
        return found

    async def _update(self, found: Found) -> Update:
        """Make what a poll has found the current snapshot."""
        if found.whole:
            return await self._relocation(found)
        update = advance(self.snapshot, found.files, self._files)
        self._swap(update.snapshot, found.files)
        return update

    async def _rebase(self) -> Update | None:
        """Leave files behind in good time that will be deleted, or must not be used. None: no reason, or no way."""

        def in_use() -> list[FileInfo]:
            files = map(self._files.get, self.snapshot.pages.files().tolist())
            return [file.info for file in files if file is not None]

        position = self.snapshot.pos.txid
        condemned = self._files.condemned.keys() - self._abandoned
        if not condemned and not await self._follower.is_left_behind(in_use, position):
            return None
        self._abandoned |= condemned
        try:
            update = await self._relocation(await self._follower.files_at(position))
        except (GapError, DamagedFile) as exc:
            log.info("%s: page locations stay as they are: %s", self._store.url, exc)
            return None
        log.info("%s: pages are read from newer files now, at TXID %016x", self._store.url, update.snapshot.pos.txid)
        return update

    async def _relocation(self, found: Found) -> Update:
        """Make a whole plan the current snapshot."""
        before = self.snapshot
        replaced = found.whole or any(self._files.is_replaced_by(file) for file in found.files)
        after = first_snapshot(found.files, self._files)
        if after.page_size != before.page_size:
            raise page_size_changed(before.page_size, found.files[-1])
        changed = all_pages(after) if replaced else changed_since(before, after, found.files)
        if self._files.condemned:
            changed = np.union1d(changed, self._condemned_pages(before.pages, after.commit)).astype(np.uint32)
        await self._pages.rename(renaming(before.pages, after.pages, changed, self._files))
        if self.on_relocation is not None:
            await self.on_relocation(before.pages, after.pages, changed)
        self._swap(after, found.files)
        return Update(after, changed, relocated=True)

    def _condemned_pages(self, pages: PageMap, commit: int) -> NDArray[np.uint32]:
        """The pages ≤ commit that lie in files whose pages must not be used: what was read of them may be wrong."""
        condemned = list(self._files.condemned)
        found = [pgnos[np.isin(locations["file"], condemned)] for pgnos, locations in pages.chunks()]
        every = np.concatenate([np.empty(0, np.uint32), *found])
        wanted: NDArray[np.uint32] = every[every <= commit]
        return wanted

    def _swap(self, snapshot: Snapshot, files: Sequence[OpenedFile]) -> None:
        keep_pages(self._pages, snapshot.pages, files, self._files)
        self._maps.add(snapshot.pages)
        self.snapshot = snapshot
        self._hydrator.wake()
        if len(self._files) >= self._clean_at:
            held = self.held_files() if self.held_files is not None else np.empty(0, np.uint32)
            self._files.forget(held, *(pages.files() for pages in self._maps))
            self._clean_at = len(self._files) + FORGET_EVERY

    def _txids(self) -> dict[str, TXID]:
        return {"txid": self.snapshot.pos.txid, "newest_txid": self._follower.newest_txid}


@asynccontextmanager
async def open_replica(
    store: LTXStore,
    *,
    cache_dir: Path | None = None,
    cache_size: int = CACHE_SIZE,
    memory_size: int = MEMORY_SIZE,
    read_timeout_s: float = READ_TIMEOUT_S,
    list_interval_s: float = LIST_INTERVAL_S,
    clock: Callable[[], float] = trio.current_time,
    at: TXID | None = None,
) -> AsyncIterator[Replica]:
    """The newest database that the store's files make, or that of the TXID `at`.

    Sizes in bytes. Pages are kept in `cache_dir`, which belongs to this one database, or only in memory when it is
    None. Raises `NoReplica`, `GapError`, `ReplicaError` when a page is in no file, `DamagedFile`,
    `EnvironmentProblem` when the directory is not safe, or what the store raises.
    """
    ledger = Ledger(store)
    catalog = Catalog(ledger.store(Purpose.OPEN))
    follower = Follower(ledger, catalog, clock=clock, list_interval_s=list_interval_s)
    opened = await follower.first_files(at)
    files = FileTable()
    snapshot = first_snapshot(opened, files)
    async with AsyncExitStack() as stack:
        disk = None
        if cache_dir is not None:
            tier = open_disk_pages(cache_dir, size=cache_size, page_size=snapshot.page_size)
            disk = await stack.enter_async_context(tier)
        nursery = await stack.enter_async_context(trio.open_nursery())
        pages = PageStore(memory_size, snapshot.page_size, disk)

        def on_damage(file: SourceFile, damage: DamagedFile) -> None:
            if catalog.avoid(file.info, damage):
                log.error("%s", damage)

        fetcher = Fetcher(
            ledger.store(Purpose.PAGE),
            ledger.store(Purpose.AHEAD),
            files,
            pages,
            nursery,
            page_size=snapshot.page_size,
            timeout_s=read_timeout_s,
            on_damage=on_damage,
        )
        keep_pages(pages, snapshot.pages, opened, files)
        del opened  # its indexes are as large as the map
        hydrator = Hydrator(ledger.store(Purpose.HYDRATE), files, pages, fetcher, on_damage=on_damage)
        replica = Replica(
            store,
            snapshot,
            files=files,
            pages=pages,
            fetcher=fetcher,
            follower=follower,
            hydrator=hydrator,
            ledger=ledger,
            read_timeout_s=read_timeout_s,
            clock=clock,
        )
        del snapshot  # the replica goes on to others
        yield replica
        nursery.cancel_scope.cancel()


def keep_pages(pages: PageStore, current: PageMap, opened: Sequence[OpenedFile], files: FileTable) -> None:
    """Keep the pages of the files that were read whole, those that `current` takes from them."""
    for file in opened:
        if file.pages is not None:
            used = current.lookup(file.index.pgno)["file"] == files.add(file)
            rows = zip(file.index.pgno.tolist(), file.pages, used.tolist(), strict=True)
            pages.put({page_key(file.file_checksum, pgno): page for pgno, page, is_used in rows if is_used})
