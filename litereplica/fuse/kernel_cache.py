"""What the daemon tells the kernel's page cache. One ordered path for all files of a mount.

A store lands after every READ of the same page that is in flight, because the kernel holds the page's lock until
the READ is answered. It may therefore wait for the event loop: every call is made in a worker thread, one at a time.
The caller changes its own memory first, so that whoever reads in between gets the new bytes either way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple, Protocol

import pyfuse3
import trio

log = logging.getLogger(__name__)

PIECE_SIZE = 1 << 20
"""Bytes of one store: the kernel takes pages one by one anyway; more only holds memory."""


class Store(NamedTuple):
    """Bytes to be put into the kernel's cache of a file."""

    inode: int
    offset: int
    data: bytes


class KernelCache(Protocol):
    """What `live.py` needs of a kernel. All calls take effect in the order in which they are made."""

    async def store(self, stores: Iterable[Store]) -> None:
        """Put bytes into the cached pages of files, one store after the other; a file grows by that where needed."""

    async def invalidate(self, inode: int) -> None:
        """Drop a file's cached pages and attributes, and have the kernel ask for its size.

        It must not go by the old size: a store that ends there would count as the file's end, and what lies behind
        it in the last page as zeroes; and a client's own question, answered late, would cut off what was stored since.
        """


class FuseKernelCache:
    """The kernel behind the mount of this process."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)
        self._descriptors: dict[int, int] = {}

    def watch(self, descriptors: dict[int, int]) -> None:
        """Tell by which open descriptors of ours the kernel can be made to ask for the size of an inode."""
        self._descriptors = descriptors

    async def store(self, stores: Iterable[Store]) -> None:
        await trio.to_thread.run_sync(self._store_all, list(stores), limiter=self._limiter)

    async def invalidate(self, inode: int) -> None:
        await trio.to_thread.run_sync(self._invalidate, inode, limiter=self._limiter)

    def _store_all(self, stores: list[Store]) -> None:
        for inode, offset, data in stores:
            try:
                for start in range(0, len(data), PIECE_SIZE):
                    pyfuse3.notify_store(inode, offset + start, data[start : start + PIECE_SIZE])
            except FileNotFoundError:
                continue  # the kernel does not know the file, so it caches nothing of it
            except OSError as exc:
                log.warning("the kernel refused %d bytes at %d of inode %d: %s", len(data), offset, inode, exc)
                self._invalidate(inode)  # it must ask again, rather than go on with what it has

    def _invalidate(self, inode: int) -> None:
        with suppress(FileNotFoundError):
            pyfuse3.invalidate_inode(inode)
        if inode in self._descriptors:
            os.fstat(self._descriptors[inode])
