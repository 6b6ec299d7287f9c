"""The cached pages of many databases: one memory tier, and one disk tier for each page size.

Keys name contents (`page_key.py`), so databases share the tiers without knowing of each other. A fleet nearly always
has one page size: the first that is asked for gets `FIRST_SHARE` of the disk space, the next one the same share of the
rest, and so on, so that together they never exceed it.

    <directory>/pages-4096/    as `disk_pages.py` has it
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from litereplica.replica.disk_pages import DiskPages, open_disk_pages
from litereplica.replica.page_store import PageStore, page_memory

FIRST_SHARE = 7 / 8


class PagePool:
    """The tiers of one mount. Obtain it from `open_page_pool`."""

    def __init__(self, directory: Path, nursery: trio.Nursery, *, size: int, memory_size: int) -> None:
        self._directory = directory
        self._nursery = nursery
        self._left = size
        self._memory = page_memory(memory_size)
        self._disks: dict[int, DiskPages | None] = {}
        self._turn = trio.Lock()

    async def pages(self, page_size: int) -> PageStore:
        """Return the store of one database with pages of this size. Raises as `open_disk_pages`."""
        async with self._turn:
            if page_size not in self._disks:
                size = int(self._left * FIRST_SHARE)
                self._disks[page_size] = await self._nursery.start(self._hold, page_size, size)
                self._left -= size
        return PageStore(self._memory, page_size, self._disks[page_size])

    async def _hold(
        self, page_size: int, size: int, task_status: trio.TaskStatus[DiskPages | None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep a disk tier open until cancelled."""
        async with open_disk_pages(self._directory / f"pages-{page_size}", size=size, page_size=page_size) as disk:
            task_status.started(disk)
            await trio.sleep_forever()


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
    async with trio.open_nursery() as nursery:
        yield PagePool(directory, nursery, size=size, memory_size=memory_size)
        nursery.cancel_scope.cancel()
