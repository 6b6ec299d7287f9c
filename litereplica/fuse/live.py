"""One live database: a base, a virtual WAL above it, and the wal-index that leads clients through both.

The daemon is the writer and the checkpointer of SQLite's WAL protocol, the clients of the mount are its readers:

- *advance* appends the pages that a poll brought as frames, and publishes them in the wal-index;
- *backfill* moves the base to a newer position, as far as readers that are inside allow;
- *restart* empties the WAL when nobody reads it.

Invariants. The event loop's thread alone changes the state here; every change is made in memory first and told to the
kernel afterwards, in order. Frames reach the kernel before the header that makes them valid. What is awaited
between two changes may fail: then nothing has changed, and the next `apply` goes on from there. A READ never waits
for the lock that `apply` holds, because a store that `apply` makes may be waiting for that READ.

Source of the protocol: SQLite's wal.c. docs/design/live-mount.md, has the differences and their reasons.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import DamagedFile, FileVanished
from litereplica.format import walindex
from litereplica.format.sqlite import with_journal_mode
from litereplica.format.walindex import Patch, WalIndex
from litereplica.fuse.kernel_cache import KernelCache, LiveFile, Store
from litereplica.fuse.locks import OFDLocks
from litereplica.fuse.virtual_wal import VirtualWal
from litereplica.replica.database import Replica
from litereplica.replica.page_map import PageMap
from litereplica.replica.snapshot import Snapshot, Update
from litereplica.types import Pos

log = logging.getLogger(__name__)

CHECKPOINT_FRAMES = 1000
"""Frames above the base from which on each advance tries to backfill: SQLite's own default."""

CHECKPOINT_RETRY_S = 1.0
"""When readers were in the way, the next try comes after this time or as many frames, whichever is first."""

CHECKPOINT_PATIENCE_S = 0.02
"""How long a checkpoint waits for readers of older snapshots to end. New ones do not prolong it: they begin at the
newest, and once that is backfilled they leave the WAL alone."""

CHECKPOINT_STEP_S = 0.001

IDLE_CHECKPOINT_S = 5.0
"""After this long without an advance the WAL is backfilled whatever its length: readers then look into it no more."""

PUSH_LIMIT = 32 << 20
"""Bytes of pages that are fetched and pushed to the kernel in one step; who reads a larger transaction fetches it."""

WAL_KEEP_SIZE = 64 << 20
"""A WAL that has grown beyond this (bytes) is cut when it restarts, so that the kernel forgets its pages."""

READ_ATTEMPTS = 4
"""How often a READ starts over because the base moved or a file vanished under it."""

_FLOATING_MARKS = range(2, walindex.READ_MARKS)
"""Read marks that follow the WAL. Mark 1 stays 0: a client that comes late always finds one that fits."""

_SALT1, _SALT2 = 1, 2


@dataclass(frozen=True, slots=True)
class LiveStatistics:
    """What a live database has done since it was activated. Reads count requests of the kernel."""

    pos: Pos
    base: Pos
    wal_frames: int
    backfilled_frames: int
    advances: int
    backfills: int
    restarts: int
    pushed_pages: int
    reads_database: int
    reads_wal: int
    reads_shm: int


class LiveDatabase:
    """See the module. Use `activate` once, then `apply` after every poll; the reads answer at any time."""

    def __init__(self, replica: Replica, kernel: KernelCache) -> None:
        snapshot = replica.snapshot
        self._replica = replica
        self._kernel = kernel
        self._locks: OFDLocks | None = None
        self._base: PageMap = snapshot.pages
        self._base_pos = self._pos = snapshot.pos
        self._wal = VirtualWal(snapshot.page_size, replica.holders)
        self._index = WalIndex(page_size=snapshot.page_size, commit=snapshot.commit, salt1=_SALT1, salt2=_SALT2)
        self._pending = np.empty(0, np.uint32)  # pages that changed between `_pos` and the replica's snapshot
        self._lock = trio.Lock()  # held by whoever changes what clients see
        self._last_advance = self._last_checkpoint = trio.current_time()
        self._tried_frames = 0  # frames in the WAL at the last checkpoint
        self._counts = {"advances": 0, "backfills": 0, "restarts": 0, "pushed_pages": 0}
        self._reads = dict.fromkeys((LiveFile.DATABASE, LiveFile.WAL, LiveFile.SHM), 0)

    # --- what clients read -------------------------------------------------------------------

    def size(self, file: LiveFile) -> int:
        """Bytes of one of the three files, as of now."""
        if file is LiveFile.DATABASE:
            return self._base.commit * self._base.page_size
        return self._wal.size if file is LiveFile.WAL else len(self._index.data)

    @property
    def pos(self) -> Pos:
        """The position that a transaction which begins now will see."""
        return self._pos

    async def read(self, file: LiveFile, offset: int, size: int) -> bytes:
        """Answer a READ: exactly `size` bytes, zeroes behind the end. Errors are those of `Replica.read`."""
        self._reads[file] += 1
        if file is LiveFile.SHM:
            return bytes(self._index.data[offset : offset + size]).ljust(size, b"\0")
        if file is LiveFile.WAL:
            return await self._read_wal(offset, size)
        return await self._read_database(offset, size)

    async def _read_database(self, offset: int, size: int) -> bytes:
        page_size = self._base.page_size
        first, last = offset // page_size + 1, (offset + size - 1) // page_size + 1
        pages = await self._base_pages(np.arange(first, last + 1, dtype=np.uint32))
        start = offset - (first - 1) * page_size
        return b"".join(pages)[start : start + size].ljust(size, b"\0")

    async def _base_pages(self, pgnos: NDArray[np.uint32]) -> list[bytes]:
        """Pages of the base as it is when the last of them arrives; those behind its end are left out."""
        for attempt in range(READ_ATTEMPTS):
            base = self._base
            present = pgnos[pgnos <= base.commit]
            locations = base.lookup(present)
            try:
                pages = await self._load(present, locations, around=base)
            except (FileVanished, DamagedFile):
                if attempt == READ_ATTEMPTS - 1:
                    raise
                await self._heal()
                continue
            if self._base is base or self._unchanged(present, locations):
                return pages
        return pages

    def _unchanged(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> bool:
        return bool((self._base.lookup(pgnos) == locations).all())

    async def _read_wal(self, offset: int, size: int) -> bytes:
        for attempt in range(READ_ATTEMPTS):
            first, pgnos, locations = self._wal.frames_at(offset, size)
            try:
                pages = await self._load(pgnos, locations)
                break
            except (FileVanished, DamagedFile):
                if attempt == READ_ATTEMPTS - 1:
                    raise
                await self._heal()
        out = bytearray(size)
        for i, (pgno, page) in enumerate(zip(pgnos.tolist(), pages, strict=True)):
            frame = self._wal.encode(pgno, page)
            start = self._wal.offset(first + i) - offset
            low, high = max(0, start), min(size, start + len(frame))
            out[low:high] = frame[low - start : high - start]
        return bytes(out)

    async def _load(
        self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], *, around: PageMap | None = None
    ) -> list[bytes]:
        """Pages as clients see them: page 1 says that the database is in WAL mode."""
        if not len(pgnos):
            return []
        pages = await self._replica.read(pgnos, locations, around=around)
        for row in np.flatnonzero(pgnos == 1).tolist():  # a run of frames may have it several times
            pages[row] = with_journal_mode(pages[row], wal=True)
        return pages

    async def _heal(self) -> None:
        update = await self._replica.heal()
        if update is not None:
            self._take(update)

    # --- what the poller brings --------------------------------------------------------------

    async def activate(self, fd: int) -> None:
        """Make clients trust the wal-index. `fd` is our own `-shm`, open for reading and writing; it stays open."""
        locks = OFDLocks(fd)
        if not (locks.try_shared(walindex.LOCK_DMS) and locks.try_exclusive(walindex.LOCK_WRITE)):
            raise RuntimeError("another process holds the locks of a file that only this process can open for writing")
        self._locks = locks

    async def apply(self, update: Update | None) -> None:
        """Take over what a poll brought (None: nothing), and backfill when that is due.

        After an error nothing that clients see has changed; the next call goes on with what is left.
        """
        if update is not None:
            self._take(update)
        async with self._lock:
            if self._pos != self._replica.snapshot.pos:
                await self._advance()
            if self._checkpoint_due():
                await self._checkpoint()

    async def push(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        """Put pages that were fetched from the store into the kernel's cache, unless the base has left them behind."""
        async with self._lock:
            inside = np.flatnonzero(pgnos <= self._base.commit)
            current = inside[self._base.lookup(pgnos[inside]) == locations[inside]]
            content = {int(pgnos[row]): pages[row] for row in current if pgnos[row] != 1}
            self._counts["pushed_pages"] += len(content)
            await self._kernel.store(self._database_stores(content))

    async def forget_cached(self) -> None:
        """Make clients ask us for every page again, those included that a connection has in its own cache."""
        async with self._lock:
            await self._kernel.invalidate(LiveFile.DATABASE)
            await self._kernel.invalidate(LiveFile.WAL)
            await self._publish(self._index.header.commit)

    def statistics(self) -> LiveStatistics:
        return LiveStatistics(
            pos=self._pos,
            base=self._base_pos,
            wal_frames=self._wal.frames,
            backfilled_frames=self._index.backfilled,
            reads_database=self._reads[LiveFile.DATABASE],
            reads_wal=self._reads[LiveFile.WAL],
            reads_shm=self._reads[LiveFile.SHM],
            **self._counts,
        )

    def _take(self, update: Update) -> None:
        self._pending = np.union1d(self._pending, update.changed).astype(np.uint32)
        if update.relocated:
            self._relocate(update.snapshot.pages)

    def _relocate(self, current: PageMap) -> None:
        """Read what has not changed since from where the current map has it; the content is the same."""
        overlay, _ = self._wal.latest(after=0, upto=self._wal.frames)
        changed = np.union1d(overlay, self._pending)
        base = self._base
        kept = np.union1d(changed, np.arange(current.commit + 1, base.commit + 1)).astype(np.uint32)
        kept = kept[kept <= base.commit]
        self._base = current.applied(kept, base.lookup(kept), commit=base.commit)
        newest = np.setdiff1d(overlay, self._pending)
        newest = newest[newest <= current.commit]
        self._wal.relocate(newest, current.lookup(newest))

    # --- advance -----------------------------------------------------------------------------

    async def _advance(self) -> None:
        if self._wal.frames and self._index.backfilled == self._wal.frames:
            await self._restart()  # as SQLite's writer does it: readers that were in the way may have gone
        target, pgnos, pages = await self._next_transaction()
        if len(pgnos):
            first = self._wal.append(pgnos, target.pages.lookup(pgnos), commit=target.commit, pos=target.pos)
            entries = self._index.append(pgnos)
            self._pending = np.empty(0, np.uint32)
            if pages is None:
                await self._kernel.invalidate(LiveFile.WAL)
                await self._kernel.store(_shm_stores(entries))
            else:
                await self._kernel.store([self._wal_store(first, pgnos, pages), *_shm_stores(entries)])
            await self._publish(target.commit)
        self._pos = target.pos
        self._counts["advances"] += 1
        self._last_advance = trio.current_time()

    def _wal_store(self, first: int, pgnos: NDArray[np.uint32], pages: list[bytes]) -> Store:
        """The store of new frames; with the file's header before the first, so that the kernel has its page whole."""
        frames = b"".join(map(self._wal.encode, pgnos.tolist(), pages))
        offset = self._wal.offset(first)
        return Store(LiveFile.WAL, 0, bytes(offset) + frames) if first == 1 else Store(LiveFile.WAL, offset, frames)

    async def _next_transaction(self) -> tuple[Snapshot, NDArray[np.uint32], list[bytes] | None]:
        """The position to go to, the pages that changed, and their content when it is small enough to be pushed."""
        while True:
            target = self._replica.snapshot
            pgnos = self._pending[self._pending <= target.commit]
            if not len(pgnos) and target.commit != self._index.header.commit:
                pgnos = np.array([1], np.uint32)
            if len(pgnos) * target.page_size > PUSH_LIMIT:
                return target, pgnos, None
            try:
                pages = await self._load(pgnos, target.pages.lookup(pgnos))
            except (FileVanished, DamagedFile):
                await self._heal()
                if self._replica.snapshot is target:
                    raise
                continue
            if self._replica.snapshot is target:
                return target, pgnos, pages

    async def _publish(self, commit: int) -> None:
        """Make all frames valid, and move one free mark up to them."""
        patches = self._index.publish(max_frame=self._wal.frames, commit=commit)
        with ExitStack() as held:
            for reader in _FLOATING_MARKS:
                if self._try_lock(held, walindex.LOCK_READ + reader):
                    patches += self._index.set_mark(reader, self._wal.frames)
                    break
            await self._kernel.store(_shm_stores(patches))

    # --- backfill and restart ----------------------------------------------------------------

    def _checkpoint_due(self) -> bool:
        """Long enough a WAL, or a quiet time; but not again at once after readers were in the way."""
        if not self._wal.frames:
            return False
        now = trio.current_time()
        if now - max(self._last_advance, self._last_checkpoint) >= IDLE_CHECKPOINT_S:
            return True
        is_long = self._wal.frames - self._index.backfilled >= CHECKPOINT_FRAMES
        has_grown = self._wal.frames - self._tried_frames >= CHECKPOINT_FRAMES
        return is_long and (has_grown or now - self._last_checkpoint >= CHECKPOINT_RETRY_S)

    async def _checkpoint(self) -> None:
        deadline = trio.current_time() + CHECKPOINT_PATIENCE_S
        while not await self._try_checkpoint() and trio.current_time() < deadline:  # noqa: ASYNC110
            await trio.sleep(CHECKPOINT_STEP_S)  # a lock that a client gives up wakes nobody
        self._last_checkpoint, self._tried_frames = trio.current_time(), self._wal.frames

    async def _try_checkpoint(self) -> bool:
        """Backfill what readers allow; True when that was all, and the WAL has been restarted."""
        safe = await self._safe_frame()
        if self._index.backfilled < safe:
            await self._backfill(safe)
        return self._index.backfilled == self._wal.frames and await self._restart()

    async def _safe_frame(self) -> int:
        """The last frame that no reader forbids to backfill. Marks below it that nobody holds are given up."""
        safe = self._wal.frames
        with ExitStack() as held:
            patches: list[Patch] = []
            for reader in range(1, walindex.READ_MARKS):
                mark = self._index.marks[reader]
                if mark >= safe:
                    continue
                if not self._try_lock(held, walindex.LOCK_READ + reader):
                    safe = mark
                elif reader in _FLOATING_MARKS:
                    patches += self._index.set_mark(reader, walindex.MARK_NOT_USED)
            await self._kernel.store(_shm_stores(patches))
        return safe

    async def _backfill(self, safe: int) -> None:
        """Move the base to the commit that ends with frame `safe`."""
        end = self._wal.commit_at(safe)
        pages = await self._backfill_pages(safe, end.commit)
        with ExitStack() as held:
            if not self._try_lock(held, walindex.LOCK_READ):
                return
            shrinks = end.commit < self._base.commit
            pgnos, locations = self._wal.latest(after=self._index.backfilled, upto=safe)
            kept = pgnos <= end.commit
            self._base = self._base.applied(pgnos[kept], locations[kept], commit=end.commit)
            self._base_pos = end.pos
            if shrinks or pages is None:
                await self._kernel.invalidate(LiveFile.DATABASE)
            else:
                await self._kernel.store(self._database_stores(pages))
            await self._kernel.store(_shm_stores(self._index.set_backfilled(safe)))
        self._counts["backfills"] += 1

    async def _backfill_pages(self, safe: int, commit: int) -> dict[int, bytes] | None:
        """Content of the pages that change, or None when it is not at hand: the kernel must forget the file then."""
        pgnos, locations = self._wal.latest(after=self._index.backfilled, upto=safe)
        kept = pgnos <= commit
        if int(kept.sum()) * self._base.page_size > PUSH_LIMIT:
            return None
        try:
            pages = await self._load(pgnos[kept], locations[kept])
        except (FileVanished, DamagedFile):
            return None
        return dict(zip(pgnos[kept].tolist(), pages, strict=True))

    async def _restart(self) -> bool:
        with ExitStack() as held:
            if not self._try_lock(held, walindex.LOCK_READ + 1, walindex.READ_MARKS - 1):
                return False
            self._wal.restart()
            await self._kernel.store(_shm_stores(self._index.restart()))
        self._counts["restarts"] += 1
        if self._wal.size > WAL_KEEP_SIZE:
            self._wal.truncate()
            await self._kernel.invalidate(LiveFile.WAL)
        return True

    def _try_lock(self, held: ExitStack, start: int, length: int = 1) -> bool:
        """Take an exclusive lock until `held` is closed."""
        assert self._locks is not None, "apply before activate"
        if not self._locks.try_exclusive(start, length):
            return False
        held.callback(self._locks.unlock, start, length)
        return True

    def _database_stores(self, pages: dict[int, bytes]) -> Iterator[Store]:
        """Stores for pages of the base, one for each run of consecutive pages."""
        pgnos = sorted(pages)
        start = 0
        for i in range(1, len(pgnos) + 1):
            if i == len(pgnos) or pgnos[i] != pgnos[i - 1] + 1:
                data = b"".join(pages[pgno] for pgno in pgnos[start:i])
                yield Store(LiveFile.DATABASE, (pgnos[start] - 1) * self._base.page_size, data)
                start = i


def _shm_stores(patches: list[Patch]) -> list[Store]:
    return [Store(LiveFile.SHM, offset, data) for offset, data in patches]
