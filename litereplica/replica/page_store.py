"""The page cache: in memory, and below that on the local disk.

A page's key names the content that it comes from (`page_key.py`), so no page is ever invalidated, only evicted:
by bytes in memory (least recently used), by slots on disk. Only the trio thread touches the memory tier.

Both tiers are caches: they may lose anything at any time, and never return wrong bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from litereplica.replica.disk_pages import DiskPages
from litereplica.replica.page_key import PageKey, Translation, page_key

ENTRY_OVERHEAD = 250
"""Bytes of memory that a page takes besides its content: key, object headers, LRU links."""


PageMemory: TypeAlias = LRUCache[PageKey, bytes]


def page_memory(size: int) -> PageMemory:
    """Return a memory tier of `size` bytes, which stores of any page size may share."""
    return LRUCache(size, getsizeof=_cost)


class PageStore:
    """Two tiers of pages of one size. `disk` None: memory only. `owner` is the database, if it shares them."""

    def __init__(self, memory: PageMemory, page_size: int, disk: DiskPages | None = None, *, owner: int = 0) -> None:
        self.page_size = page_size
        self._owner = owner
        self._memory = memory
        self._disk = disk

    def get(self, key: PageKey) -> bytes | None:
        """Return a page that is in memory, or None. No I/O."""
        return self._memory.get(key)

    def read_now(self, keys: Sequence[PageKey]) -> tuple[bytearray, int] | None:
        """Return pages one after the other, if all are in memory or can be read from disk without waiting; else None.

        Also returns how many are from disk. These are not put into memory: the kernel has them there.
        """
        size = self.page_size
        found = bytearray(len(keys) * size)
        view = memoryview(found)
        wanted: list[PageKey] = []
        places: list[memoryview] = []
        for i, key in enumerate(keys):
            page, place = self._memory.get(key), view[i * size : (i + 1) * size]
            if page is not None:
                place[:] = page
            else:
                wanted.append(key)
                places.append(place)
        if wanted and (self._disk is None or not self._disk.read_now(wanted, places)):
            return None
        return found, len(wanted)

    def holds(self, key: PageKey) -> bool:
        """True if the page is in memory, or probably on disk. Does not count as a use."""
        return key in self._memory or (self._disk is not None and self._disk.holds(key))

    @property
    def capacity(self) -> int:
        """Bytes of pages that the lasting tier holds: the disk if there is one, else memory."""
        if self._disk is not None:
            return self._disk.capacity
        return int(self._memory.maxsize) * self.page_size // (self.page_size + ENTRY_OVERHEAD)

    def keeps(self, key: PageKey) -> bool:
        """Like `holds`, for the lasting tier."""
        return key in self._memory if self._disk is None else self._disk.holds(key)

    def keeps_each(self, checksums: NDArray[np.uint64], pgnos: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return `keeps` for each of many pages, by the checksums of their files."""
        if self._disk is not None:
            return self._disk.holds_each(checksums, pgnos)
        keys = map(page_key, checksums.tolist(), pgnos.tolist())
        return np.fromiter((key in self._memory for key in keys), np.bool_, len(pgnos))

    async def peek(self, keys: Sequence[PageKey]) -> dict[PageKey, bytes]:
        """Return those of the pages that the lasting tier has. Memory does not change."""
        if self._disk is not None:
            return await self._disk.read(keys)
        return {key: page for key in keys if (page := self._memory.get(key)) is not None}

    async def keep(self, pages: dict[PageKey, bytes]) -> None:
        """Cache pages that no reader has asked for, if there is room: on disk, so that none is evicted from memory."""
        if self._disk is None:
            self._remember(pages)
        else:
            await self._disk.write_when_there_is_room(pages, owner=self._owner)

    async def load(self, keys: Sequence[PageKey]) -> dict[PageKey, bytes]:
        """Return those of the pages that are on disk. They are in memory afterwards."""
        if self._disk is None or not keys:
            return {}
        pages = await self._disk.read(keys)
        self._remember(pages)
        return pages

    def put(self, pages: dict[PageKey, bytes]) -> None:
        """Cache pages in memory now, and on disk soon, unless its write queue is full."""
        self._remember(pages)
        if self._disk is not None:
            self._disk.write_soon(pages, owner=self._owner)

    async def correct(self, pages: dict[PageKey, bytes]) -> None:
        """Replace cached pages that differ from these, which are known to be right."""
        for key, page in pages.items():
            if key in self._memory:
                self._memory[key] = page
        if self._disk is not None:
            await self._disk.correct(pages)

    async def rename(self, translation: Translation) -> None:
        """Give cached pages new keys, after other files with the same pages have replaced theirs."""
        keys = list(self._memory)
        checksums = np.array([key >> 32 for key in keys], np.uint64)
        pgnos = np.array([key & 0xFFFFFFFF for key in keys], np.uint32)
        renamed = translation(checksums, pgnos)
        for row in np.flatnonzero(renamed != checksums).tolist():
            self._memory[page_key(int(renamed[row]), int(pgnos[row]))] = self._memory.pop(keys[row])
        if self._disk is not None:
            await self._disk.rename(translation)

    def _remember(self, pages: dict[PageKey, bytes]) -> None:
        limit = self._memory.maxsize
        for key, page in pages.items():
            if len(page) + ENTRY_OVERHEAD <= limit:
                self._memory[key] = page


def _cost(page: bytes) -> int:
    return len(page) + ENTRY_OVERHEAD
