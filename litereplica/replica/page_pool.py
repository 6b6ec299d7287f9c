"""The cached pages of many databases: one memory tier, and one disk tier for each page size.

Keys name contents (`page_key.py`), so databases share the tiers without knowing of each other. A fleet nearly always
has one page size: the first that is asked for gets `FIRST_SHARE` of the disk space, the next one the same share of the
rest, and so on, so that together they never exceed it. When a disk tier is full, a database that has more than its
share, the capacity divided by the open databases, evicts its own pages.

    <directory>/pages-4096/    as `disk_pages.py` has it
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from litereplica.concurrent import open_nursery
from litereplica.replica.disk_pages import DiskPages, open_disk_pages
from litereplica.replica.page_store import PageStore, page_memory

FIRST_SHARE = 7 / 8

MAX_OWNERS = (1 << 16) - 1
"""Numbers of databases in a disk tier; of more, some share a number."""


class PagePool:
    """The tiers of one mount. Obtain it from `open_page_pool`."""

    def __init__(self, directory: Path, nursery: trio.Nursery, *, size: int, memory_size: int) -> None:
        self._directory = directory
        self._nursery = nursery
        self._left = size
        self._memory = page_memory(memory_size)
        self._disks: dict[int, DiskPages | None] = {}
        self._turn = trio.Lock()
        self._closed = trio.Event()
        self._owners: dict[str, int] = {}

    @asynccontextmanager
    async def pages(self, name: str, page_size: int) -> AsyncIterator[PageStore]:
        """Open the pages of the database with this name, of this size. Raises as `open_disk_pages`."""
        async with self._turn:
            if page_size not in self._disks:
                size = int(self._left * FIRST_SHARE)
                self._disks[page_size] = await self._nursery.start(self._hold, page_size, size)
                self._left -= size
        disk = self._disks[page_size]
        owner = self._owners.setdefault(name, len(self._owners) % MAX_OWNERS + 1)
        if disk is None:
            yield PageStore(self._memory, page_size)
            return
        disk.add_owners(1)
        try:
            yield PageStore(self._memory, page_size, disk, owner=owner)
        finally:
            disk.add_owners(-1)

    async def _hold(
        self, page_size: int, size: int, task_status: trio.TaskStatus[DiskPages | None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep a disk tier open until `close`."""
        async with open_disk_pages(self._directory / f"pages-{page_size}", size=size, page_size=page_size) as disk:
            task_status.started(disk)
            await self._closed.wait()

    def close(self) -> None:
        """Let the tiers write what is queued, and end."""
        self._closed.set()


@asynccontextmanager
async def open_own_pages(
    directory: Path | None, *, size: int, memory_size: int, page_size: int
) -> AsyncIterator[PageStore]:
    """Open the pages of a single database: in memory only if `directory` is None. Sizes in bytes."""
    if directory is None:
        yield PageStore(page_memory(memory_size), page_size)
        return
    async with open_disk_pages(directory, size=size, page_size=page_size) as disk:
        yield PageStore(page_memory(memory_size), page_size, disk)


@asynccontextmanager
async def open_page_pool(directory: Path, *, size: int, memory_size: int) -> AsyncIterator[PagePool]:
    """Open the pool in `directory`, with at most `size` bytes of pages on disk and `memory_size` in memory."""
    async with open_nursery() as nursery:
        pool = PagePool(directory, nursery, size=size, memory_size=memory_size)
        yield pool
        pool.close()
