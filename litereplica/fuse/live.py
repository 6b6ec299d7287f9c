"""One live database, served by SQLite's WAL protocol: the daemon writes and checkpoints, clients of the mount read.

- *advance* appends the pages that a poll brought as frames of the virtual WAL, and publishes them in the wal-index;
- *backfill* moves the base to a newer position, as far as the read marks that clients hold allow;
- *restart* empties the WAL when no client reads it.

`LiveFiles` (`live_files.py`) has the content of the three files and answers READs.

Invariants. Only the event loop's thread changes state. Every change is made in memory first, then in the kernel's
cache, in the same order. Frames reach the kernel before the wal-index header that makes them valid. If an await between
two changes fails, nothing has changed, and the next `apply` continues from there.

Source of the protocol: SQLite's wal.c. docs/design/live-mount.md lists the differences and their reasons.
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
from litereplica.file_locks import OFDLocks
from litereplica.format import walindex
from litereplica.format.walindex import Patch
from litereplica.fuse.kernel_cache import KernelCache, LiveFile, Store
from litereplica.fuse.live_files import LiveFiles
from litereplica.replica.database import Replica
from litereplica.replica.snapshot import Snapshot, Update
from litereplica.runs import consecutive
from litereplica.types import TXID, Pos

log = logging.getLogger(__name__)

CHECKPOINT_FRAMES = 1000
"""Frames above the base from which on each advance tries to backfill: SQLite's own default."""

BEHIND_CHECKPOINT_FRAMES = 100 * CHECKPOINT_FRAMES
"""The same while more files are waiting than one poll takes. Pages of these steps are not pushed to the kernel, either:
most are superseded by the next step."""

CHECKPOINT_RETRY_S = 1.0
"""When a checkpoint was blocked by readers, the next one comes after this time or as many frames, whichever is first.
"""

CHECKPOINT_PATIENCE_S = 0.02
"""How long a checkpoint waits for readers of older snapshots to end. New ones do not prolong it: they begin at the
newest, and once that is backfilled they read only the database."""

CHECKPOINT_STEP_S = 0.001

IDLE_CHECKPOINT_S = 5.0
"""After this long without an advance the WAL is backfilled whatever its length, so that clients read only the database.
"""

PUSH_LIMIT = 32 << 20
"""Bytes of pages that are fetched and pushed to the kernel in one step. Clients fetch those of a larger transaction."""

WAL_KEEP_SIZE = 64 << 20
"""A WAL larger than this (bytes) is truncated when it restarts, so that the kernel drops its pages."""

_FLOATING_MARKS = range(2, walindex.READ_MARKS)
"""Read marks that follow the WAL. Mark 1 stays 0: a valid mark for a client that can find no other."""


@dataclass(frozen=True, slots=True)
class LiveStatistics:
    """What a live database has done since it was activated. `reads_…` count READs from the kernel.

    `reads_at_once` are those of the database that took no waiting.
    """

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
    reads_at_once: int


class LiveDatabase:
    """A live database. Call `activate` once, then `apply` after every poll; `size` and `read` work at any time.

    `size`, `read` and `read_now` are those of `LiveFiles`.
    """

    def __init__(self, replica: Replica, kernel: KernelCache) -> None:
        self.files = LiveFiles(replica)
        self.size = self.files.size
        self.read = self.files.read
        self.read_now = self.files.read_now
        self._replica = replica
        self._kernel = kernel
        self._locks: OFDLocks | None = None
        self._wal = self.files.wal
        self._index = self.files.index
        self._pos = replica.snapshot.pos
        self._lock = trio.Lock()  # held while what clients see is changed
        self._last_advance = self._last_checkpoint = trio.current_time()
        self._tried_frames = 0  # frames in the WAL at the last checkpoint
        self._counts = {"advances": 0, "backfills": 0, "restarts": 0, "pushed_pages": 0}

    @property
    def pos(self) -> Pos:
        """The position that a transaction which begins now will see."""
        return self._pos

    def txid_at(self, mark: int) -> TXID:
        """Return the TXID that a reader sees who holds a read mark, 0 to 4."""
        frame = self._index.marks[mark] if mark else 0
        return self._wal.commit_at(frame).pos.txid if 0 < frame <= self._wal.frames else self.files.base_pos.txid

    async def activate(self, fd: int) -> None:
        """Take the locks that make clients trust the wal-index.

        `fd` is the daemon's own `-shm`, open for reading and writing, and must stay open.
        """
        locks = OFDLocks(fd)
        if not (locks.try_shared(walindex.LOCK_DMS) and locks.try_exclusive(walindex.LOCK_WRITE)):
            raise RuntimeError("another process holds the locks of a file that only this process can open for writing")
        self._locks = locks

    async def apply(self, update: Update | None) -> None:
        """Apply the update of a poll (None: nothing is new), and checkpoint if that is due.

        After an error nothing that clients see has changed; the next call continues from there.
        """
        if update is not None:
            self.files.take(update)
        async with self._lock:
            snapshot = self._replica.snapshot
            if self._pos != snapshot.pos:
                await self._advance(snapshot)
            if self._checkpoint_due():
                await self._checkpoint()

    async def push(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        """Put pages that were fetched from the store into the kernel's cache, those that the base still has there."""
        async with self._lock:
            base = self.files.base
            inside = np.flatnonzero(pgnos <= base.commit)
            current = inside[base.lookup(pgnos[inside]) == locations[inside]]
            content = {int(pgnos[row]): pages[row] for row in current if pgnos[row] != 1}
            self._counts["pushed_pages"] += len(content)
            await self._kernel.store(self._database_stores(content))

    async def forget_cached(self) -> None:
        """Drop all pages from the kernel's cache and from the clients' own caches, so that they are read again."""
        async with self._lock:
            await self._kernel.invalidate(LiveFile.DATABASE)
            await self._kernel.invalidate(LiveFile.WAL)
            await self._publish(self._index.header.commit)

    def statistics(self) -> LiveStatistics:
        """Return the figures of this moment."""
        return LiveStatistics(
            pos=self._pos,
            base=self.files.base_pos,
            wal_frames=self._wal.frames,
            backfilled_frames=self._index.backfilled,
            reads_database=self.files.reads[LiveFile.DATABASE],
            reads_wal=self.files.reads[LiveFile.WAL],
            reads_shm=self.files.reads[LiveFile.SHM],
            reads_at_once=self.files.reads_at_once,
            **self._counts,
        )

    # --- advance -----------------------------------------------------------------------------

    async def _advance(self, snapshot: Snapshot) -> None:
        if self._wal.frames and self._index.backfilled == self._wal.frames:
            await self._restart()  # as SQLite's writer does: readers that blocked the last try may have ended
        target, pgnos, pages = await self._next_transaction(snapshot)
        if len(pgnos):
            first, entries = self.files.append(target, pgnos)
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
        """Return the store of new frames, the first with the file's header, so that the kernel has that page whole."""
        frames = b"".join(map(self._wal.encode, pgnos.tolist(), pages))
        offset = self._wal.offset(first)
        if first == 1:
            return Store(LiveFile.WAL, 0, self._wal.header + frames)
        return Store(LiveFile.WAL, offset, frames)

    async def _next_transaction(self, target: Snapshot) -> tuple[Snapshot, NDArray[np.uint32], list[bytes] | None]:
        """Return the snapshot to advance to, the pages that changed, and their content (None: not to be pushed)."""
        while True:
            pgnos = self.files.pending[self.files.pending <= target.commit]
            if not len(pgnos) and target.commit != self._index.header.commit:
                pgnos = np.array([1], np.uint32)
            if len(pgnos) * target.page_size > PUSH_LIMIT or self._replica.is_behind:
                return target, pgnos, None
            try:
                pages = await self.files.load(pgnos, target.pages.lookup(pgnos))
            except (FileVanished, DamagedFile):
                await self.files.heal()
                if self._replica.snapshot is target:
                    raise
            else:
                if self._replica.snapshot is target:
                    return target, pgnos, pages
            target = self._replica.snapshot

    async def _publish(self, commit: int) -> None:
        """Make all frames valid, and move one free read mark up to them."""
        patches = self._index.publish(max_frame=self._wal.frames, commit=commit)
        with ExitStack() as held:
            for reader in _FLOATING_MARKS:
                if self._try_lock(held, walindex.LOCK_READ + reader):
                    patches += self._index.set_mark(reader, self._wal.frames)
                    break
            await self._kernel.store(_shm_stores(patches))

    # --- backfill and restart ----------------------------------------------------------------

    def _checkpoint_due(self) -> bool:
        """True if the WAL is long enough or the database idle, and readers did not block the last try a moment ago."""
        if not self._wal.frames:
            return False
        now = trio.current_time()
        if now - max(self._last_advance, self._last_checkpoint) >= IDLE_CHECKPOINT_S:
            return True
        limit = BEHIND_CHECKPOINT_FRAMES if self._replica.is_behind else CHECKPOINT_FRAMES
        is_long = self._wal.frames - self._index.backfilled >= limit
        has_grown = self._wal.frames - self._tried_frames >= CHECKPOINT_FRAMES
        return is_long and (has_grown or now - self._last_checkpoint >= CHECKPOINT_RETRY_S)

    async def _checkpoint(self) -> None:
        deadline = trio.current_time() + CHECKPOINT_PATIENCE_S
        while not await self._try_checkpoint() and trio.current_time() < deadline:  # noqa: ASYNC110
            await trio.sleep(CHECKPOINT_STEP_S)  # the kernel does not report when a client drops a lock
        self._last_checkpoint, self._tried_frames = trio.current_time(), self._wal.frames

    async def _try_checkpoint(self) -> bool:
        """Backfill what readers allow. Returns True if that was all and the WAL has been restarted."""
        safe = await self._safe_frame()
        if self._index.backfilled < safe:
            await self._backfill(safe)
        return self._index.backfilled == self._wal.frames and await self._restart()

    async def _safe_frame(self) -> int:
        """Return the last frame that may be backfilled. Lower read marks that no client holds become unused."""
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
            shrinks = end.commit < self.files.base.commit
            self.files.move_base(safe, end.commit, end.pos)
            if shrinks or pages is None:
                await self._kernel.invalidate(LiveFile.DATABASE)
            else:
                await self._kernel.store(self._database_stores(pages))
            await self._kernel.store(_shm_stores(self._index.set_backfilled(safe)))
        self._counts["backfills"] += 1

    async def _backfill_pages(self, safe: int, commit: int) -> dict[int, bytes] | None:
        """Return the pages that a backfill changes. None (too large, or gone): the kernel must drop the file."""
        pgnos, locations = self.files.frames_for_base(safe, commit)
        if len(pgnos) * self._wal.page_size > PUSH_LIMIT:
            return None
        try:
            pages = await self.files.load(pgnos, locations)
        except (FileVanished, DamagedFile):
            return None
        return dict(zip(pgnos.tolist(), pages, strict=True))

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
        """Try to take an exclusive lock until `held` is closed."""
        assert self._locks is not None, "apply before activate"
        if not self._locks.try_exclusive(start, length):
            return False
        held.callback(self._locks.unlock, start, length)
        return True

    def _database_stores(self, pages: dict[int, bytes]) -> Iterator[Store]:
        """Yield the stores of pages of the base, one for each run of consecutive pages."""
        pgnos = sorted(pages)
        for start, stop in consecutive(pgnos):
            data = b"".join(pages[pgno] for pgno in pgnos[start:stop])
            yield Store(LiveFile.DATABASE, (pgnos[start] - 1) * self._wal.page_size, data)


def _shm_stores(patches: list[Patch]) -> list[Store]:
    return [Store(LiveFile.SHM, offset, data) for offset, data in patches]
