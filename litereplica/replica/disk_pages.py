"""Pages on the local disk, in a directory of one database: they survive a restart, and a kill at any moment.

    format   one line: version and page size. Its lock makes the directory ours alone.
    pages    slot × page size
    slots    a record of 24 bytes a slot: file checksum u64, digest u64, pgno u32, zero u32; little-endian

A slot holds the page of its record only if the digest agrees: the CRC-64 of the page mixed with the key. The page is
written first, then its record; nothing is synced. So after a crash, a full disk or damage a slot is either right or a
miss. Pages are never invalidated: a key names a content (`page_key.py`), and slots are reused in turn. Databases that
share the tier are owners: one that has more than its share of a full tier reuses its own slots.

Pages that the kernel has in memory are read on the trio thread; everything that may wait for the disk runs in a worker
thread. Pages are written in the background: readers never wait for it. When the disk fails, one WARNING is logged, and
the tier is not used any more.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.replica.cache_files import (
    RECORD,
    CacheFiles,
    hashes_of,
    open_cache_files,
    read_records,
    record_of,
    write_all,
)
from litereplica.replica.page_key import PageKey, Translation, page_key
from litereplica.replica.slot_index import SlotIndex, key_hash, key_hashes
from litereplica.runs import consecutive

log = logging.getLogger(__name__)

DIRECT_READS = 64
"""Pages that one read takes on the trio thread, 3 µs each, if the kernel has them; a thread costs 100 µs."""

BATCH = 512
"""Pages written at a time: below the 1,024 buffers that one system call takes."""

MAX_PENDING = 16 * 1024 * 1024
"""Bytes waiting to be written. Further pages are not kept on disk: a slow disk must not fill the memory."""

FLUSH_S = 1.0
"""Time limit for writing the queue when the tier is closed; into the kernel's memory that is some 1 GB/s."""


@asynccontextmanager
async def open_disk_pages(directory: Path, *, size: int, page_size: int) -> AsyncIterator[DiskPages | None]:
    """Open the tier in `directory`, of at most `size` bytes of pages. None, with a WARNING, if another process uses it.

    Raises `EnvironmentProblem` if the directory cannot be used, or if others own it or may write to it.
    """
    with ExitStack() as stack:
        opened = await trio.to_thread.run_sync(open_cache_files, directory, stack, max(1, size // page_size), page_size)
        if opened is None:
            yield None
            return
        files, index = opened
        async with trio.open_nursery() as nursery:
            disk = DiskPages(directory, files, index, page_size)
            nursery.start_soon(disk.write_behind)
            yield disk
            nursery.cancel_scope.cancel()
        with trio.move_on_after(FLUSH_S, shield=True):
            await disk.flush()


class DiskPages:
    """Pages in slots of a file. Obtain it from `open_disk_pages`."""

    def __init__(self, directory: Path, files: CacheFiles, index: SlotIndex, page_size: int) -> None:
        self._directory = directory
        self._files = files
        self._index = index
        self._page_size = page_size
        self._owners = 0  # databases that share the tier now
        self._pending: dict[PageKey, bytes] = {}
        self._pending_owners: dict[PageKey, int] = {}
        self._wake = trio.Event()
        self._written = trio.Event()
        self._turn = trio.Lock()  # held while the files are changed
        self._limiter = trio.CapacityLimiter(4)
        self._without_waiting = True
        self._readable = True
        self._writable = True

    @property
    def capacity(self) -> int:
        """Bytes of pages; 0 once the disk has failed."""
        return self._index.capacity * self._page_size if self._writable and self._readable else 0

    def add_owners(self, count: int) -> None:
        """Count databases that begin, or end if negative, to use the tier."""
        self._owners += count

    def holds(self, key: PageKey) -> bool:
        """True if the page is probably here: hashes may collide (2⁻⁶⁴), and damage is noticed only by reading."""
        return key in self._pending or any(True for _ in self._index.find(key))

    def holds_each(self, checksums: NDArray[np.uint64], pgnos: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return `holds` of each of many pages."""
        held = self._index.contains(checksums, pgnos)
        if self._pending:
            for row in np.flatnonzero(~held).tolist():
                held[row] = page_key(int(checksums[row]), int(pgnos[row])) in self._pending
        return held

    async def read(self, keys: Sequence[PageKey]) -> dict[PageKey, bytes]:
        """Return those of the pages that are here, checked."""
        found = {key: page for key in keys if (page := self._pending.get(key)) is not None}
        slots = {key: list(self._index.find(key)) for key in keys if key not in found}
        slots = {key: candidates for key, candidates in slots.items() if candidates}
        if slots and self._readable:
            if self._without_waiting and len(slots) <= DIRECT_READS:
                self._take(found, slots, self._read_slots(slots, os.RWF_NOWAIT))
            if slots:
                pages = await trio.to_thread.run_sync(self._read_slots, dict(slots), 0, limiter=self._limiter)
                self._take(found, slots, pages)
                self._drop_damaged(slots)
        return found

    def read_now(self, keys: Sequence[PageKey], places: Sequence[memoryview]) -> bool:
        """Read pages into `places` of one page each, checked, without waiting. False if that is not possible for all.

        Consecutive places and slots are read with one call. Nothing is known of the places after False.
        """
        if not (self._readable and self._without_waiting):
            return False
        hashes = [key_hash(key) for key in keys]
        slots = [self._index.first(hashed) for hashed in hashes]
        if min(slots, default=0) < 0:
            return False
        for start, stop in consecutive(slots):
            records = bytearray((stop - start) * RECORD.itemsize)
            try:
                read = os.preadv(self._files.slots, [records], slots[start] * RECORD.itemsize, os.RWF_NOWAIT)
                content = os.preadv(
                    self._files.pages, places[start:stop], slots[start] * self._page_size, os.RWF_NOWAIT
                )
            except OSError:  # it is not in the kernel's memory, or the disk fails: `read` sees to that
                return False
            if read != len(records) or content != (stop - start) * self._page_size:
                return False
            expected = (record_of(keys[i], places[i], hashes[i]) for i in range(start, stop))
            if b"".join(expected) != records:
                return False
            self._index.mark_read(slots[start], stop - start)
        return True

    def write_soon(self, pages: dict[PageKey, bytes], *, owner: int = 0) -> None:
        """Queue the pages of an owner that are not here for writing, as many as the queue takes."""
        if not self._writable:
            return
        room = MAX_PENDING // self._page_size - len(self._pending)
        new = ((key, page) for key, page in pages.items() if not self.holds(key))
        taken = dict(islice(new, max(0, room)))
        self._pending.update(taken)
        if owner:
            self._pending_owners.update(dict.fromkeys(taken, owner))
        self._wake.set()

    async def write_when_there_is_room(self, pages: dict[PageKey, bytes], *, owner: int = 0) -> None:
        """Queue these pages for writing once the queue is at most half full, which leaves room for readers' pages."""
        while self._writable and len(self._pending) * self._page_size > MAX_PENDING // 2:
            await self._written.wait()
        self.write_soon(pages, owner=owner)

    async def write_behind(self) -> None:
        """Write queued pages, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self.flush()

    async def flush(self) -> None:
        """Write the queue. One caller at a time."""
        while self._pending:
            async with self._turn:
                if not await self._write_batch():
                    return

    async def correct(self, pages: dict[PageKey, bytes]) -> None:
        """Overwrite pages that are here and differ from these."""
        held = await self.read([key for key in pages if self.holds(key)])
        wrong = [key for key, page in held.items() if page != pages[key]]
        if wrong:
            async with self._turn:
                self._pending.update({key: pages[key] for key in wrong if key in self._pending})
                slots = [(slot, key) for key in wrong for slot in self._index.find(key)]
                try:
                    await trio.to_thread.run_sync(self._overwrite, slots, pages, limiter=self._limiter)
                except OSError as exc:
                    self._give_up(exc)

    async def rename(self, translation: Translation) -> None:
        """Give pages other keys. `translation` is called in a thread."""
        async with self._turn:
            while self._pending and await self._write_batch():
                pass
            if self._writable:
                try:
                    self._index = await trio.to_thread.run_sync(self._rename, translation, limiter=self._limiter)
                except OSError as exc:
                    self._give_up(exc)

    async def _write_batch(self) -> bool:
        owner = self._pending_owners.get(next(iter(self._pending), -1), 0)
        of_owner = (item for item in self._pending.items() if self._pending_owners.get(item[0], 0) == owner)
        batch = dict(islice(of_owner, BATCH))
        share = self._index.capacity // max(1, self._owners) if owner else 0
        slots = self._index.take(len(batch), owner=owner, share=share)
        batch = dict(islice(batch.items(), len(slots)))
        try:
            await trio.to_thread.run_sync(self._write, slots, batch, limiter=self._limiter)
        except OSError as exc:
            self._give_up(exc)
            return False
        self._index.insert(slots, list(batch), owner=owner)
        for key in batch:
            del self._pending[key]
            self._pending_owners.pop(key, None)
        self._tell_writers()
        return True

    def _give_up(self, error: OSError) -> None:
        log.warning("%s: no more pages are kept on disk: %s", self._directory, error.strerror)
        self._writable = False
        self._pending.clear()
        self._pending_owners.clear()
        self._tell_writers()

    def _tell_writers(self) -> None:
        self._written.set()
        self._written = trio.Event()

    def _take(
        self, found: dict[PageKey, bytes], slots: dict[PageKey, list[int]], pages: dict[PageKey, tuple[int, bytes]]
    ) -> None:
        """Move the pages that were read from `slots` to `found`."""
        for key, (slot, page) in pages.items():
            found[key] = page
            self._index.mark_read(slot)
            del slots[key]

    def _drop_damaged(self, slots: dict[PageKey, list[int]]) -> None:
        """Empty the slots whose content is damaged, except those that have been reused meanwhile."""
        for key, candidates in slots.items():
            still = set(self._index.find(key))
            for slot in candidates:
                if slot in still:
                    self._index.remove(slot)

    def _read_slots(self, slots: dict[PageKey, list[int]], flags: int) -> dict[PageKey, tuple[int, bytes]]:
        """Return the sound pages with their slots; with RWF_NOWAIT only those in the kernel's memory."""
        pages: dict[PageKey, tuple[int, bytes]] = {}
        for key, candidates in slots.items():
            for slot in candidates:
                try:
                    page = self._read_slot(key, slot, flags)
                except BlockingIOError:
                    continue
                except OSError as exc:
                    if flags and exc.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                        self._without_waiting = False
                        return pages
                    self._readable = False
                    log.warning("%s: pages on disk are not used any more: %s", self._directory, exc.strerror)
                    return pages
                if page is not None:
                    pages[key] = (slot, page)
                    break
        return pages

    def _read_slot(self, key: PageKey, slot: int, flags: int) -> bytes | None:
        record = bytearray(RECORD.itemsize)
        page = bytearray(self._page_size)
        if os.preadv(self._files.slots, [record], slot * RECORD.itemsize, flags) != len(record):
            return None
        if os.preadv(self._files.pages, [page], slot * self._page_size, flags) != len(page):
            return None
        expected = record_of(key, page, key_hash(key))
        return bytes(page) if record == expected else None

    def _write(self, slots: Sequence[int], pages: dict[PageKey, bytes]) -> None:
        """Pages first, then their records, with one call for each run of consecutive slots."""
        bodies = list(pages.values())
        records = [record_of(key, page, key_hash(key)) for key, page in pages.items()]
        for start, stop in consecutive(slots):
            write_all(self._files.pages, bodies[start:stop], slots[start] * self._page_size)
            write_all(self._files.slots, [b"".join(records[start:stop])], slots[start] * RECORD.itemsize)

    def _overwrite(self, slots: list[tuple[int, PageKey]], pages: dict[PageKey, bytes]) -> None:
        for slot, key in slots:
            self._write([slot], {key: pages[key]})

    def _rename(self, translation: Translation) -> SlotIndex:
        """Rename the records. The digest is the page's mixed with the key, so the pages need not be read."""
        records = read_records(self._files).copy()
        checksums, pgnos = records["checksum"].astype(np.uint64), records["pgno"].astype(np.uint32)
        renamed = translation(checksums, pgnos)
        renamed[checksums == 0] = 0
        rows = np.flatnonzero(renamed != checksums)
        before, after = key_hashes(checksums[rows], pgnos[rows]), key_hashes(renamed[rows], pgnos[rows])
        records["digest"][rows] ^= before ^ after
        records["checksum"][rows] = renamed[rows]
        for start, stop in consecutive(rows):
            first, last = rows[start], rows[stop - 1]
            write_all(self._files.slots, [records[first : last + 1].tobytes()], int(first) * RECORD.itemsize)
        return self._index.renamed(hashes_of(records, self._index.capacity))
