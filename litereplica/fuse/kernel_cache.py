"""Notifications to the kernel's page cache, in one ordered path for the files of one live database.

A store lands after every READ of the same page that is in flight, because the kernel holds the page's lock until
the READ is answered. It may therefore wait for the event loop: every call is made in a worker thread, one at a time.
The caller changes its own memory first, so that a READ in between gets the new bytes either way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from typing import NamedTuple, Protocol

import pyfuse3
import trio

log = logging.getLogger(__name__)

PIECE_SIZE = 1 << 20
"""Bytes of one store. The kernel copies page by page in any case, so larger pieces only hold more memory."""


class LiveFile(Enum):
    """The files of a live database that the kernel caches, by the suffix of their names."""

    DATABASE = ""
    WAL = "-wal"
    SHM = "-shm"


class Store(NamedTuple):
    """Bytes to put into the kernel's cache of a file."""

    file: LiveFile
    offset: int
    data: bytes


class KernelCache(Protocol):
    """The kernel as `LiveDatabase` sees it. All calls take effect in the order in which they are made."""

    async def store(self, stores: Iterable[Store]) -> None:
        """Put bytes into the cached pages of files, one store after the other; a store past the end grows the file."""

    async def invalidate(self, file: LiveFile) -> None:
        """Drop a file's cached pages and attributes, and make the kernel ask for its size at once.

        With the old size, a later store that ends there would count as the file's end, and the kernel would take the
        rest of the last page for zeroes; and a client's GETATTR, answered late, would cut off newer stores.
        """


class FuseKernelCache:
    """The kernel behind the mount of this process. `inodes` are those of the database's files."""

    def __init__(self, inodes: Mapping[LiveFile, int]) -> None:
        self._inodes = inodes
        self._limiter = trio.CapacityLimiter(1)
        self._descriptors: dict[LiveFile, int] = {}

    def open_files(self, path_of: Callable[[LiveFile], str]) -> None:
        """Open the database and its WAL (O_PATH), so that the kernel knows their inodes until `close_files`.

        `path_of` returns the path of a file in the mount. Makes requests to this process: call it in a thread.
        """
        for file in (LiveFile.DATABASE, LiveFile.WAL):
            self._descriptors[file] = os.open(path_of(file), os.O_PATH | os.O_CLOEXEC)

    def close_files(self) -> None:
        """Close what `open_files` opened. Call it in a thread, too."""
        descriptors, self._descriptors = self._descriptors, {}
        for fd in descriptors.values():
            os.close(fd)

    async def store(self, stores: Iterable[Store]) -> None:
        """Put data into the cache; see `KernelCache.store`."""
        await trio.to_thread.run_sync(self._store_all, list(stores), limiter=self._limiter)

    async def invalidate(self, file: LiveFile) -> None:
        """Drop a file from the cache; see `KernelCache.invalidate`."""
        await trio.to_thread.run_sync(self._invalidate, file, limiter=self._limiter)

    def _store_all(self, stores: list[Store]) -> None:
        for file, offset, data in stores:
            inode = self._inodes[file]
            try:
                for start in range(0, len(data), PIECE_SIZE):
                    pyfuse3.notify_store(inode, offset + start, data[start : start + PIECE_SIZE])
            except FileNotFoundError:
                continue  # the kernel does not know the inode, so it caches nothing of it
            except OSError as exc:
                log.warning("the kernel refused %d bytes at %d of inode %d: %s", len(data), offset, inode, exc)
                self._invalidate(file)  # so that it asks again instead of serving old pages

    def _invalidate(self, file: LiveFile) -> None:
        with suppress(FileNotFoundError):
            pyfuse3.invalidate_inode(self._inodes[file])
        if file in self._descriptors:
            os.fstat(self._descriptors[file])
