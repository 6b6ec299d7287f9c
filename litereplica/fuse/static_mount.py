"""A mount of one past state: nothing to follow, no locks to hold, one file that never changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from litereplica.fuse.nodes import Inode, Owner, static_file_names
from litereplica.fuse.operations import Operations
from litereplica.fuse.session import FuseSession, MountOptions
from litereplica.fuse.static import StaticFile
from litereplica.fuse.status import status
from litereplica.replica.database import Replica
from litereplica.replica.page_map import PageMap
from litereplica.types import Pos

log = logging.getLogger(__name__)


class StaticDatabase:
    """The file system of such a mount: what `Operations` asks."""

    def __init__(self, options: MountOptions, replica: Replica, file: StaticFile) -> None:
        self.names = static_file_names(options.name)
        self.mtime_ns = file.mtime_ns
        self._options = options
        self._replica = replica
        self._file = file

    def size(self, inode: Inode) -> int:
        return self._file.size

    def check_open(self, inode: Inode) -> None:
        """It is as old as it is meant to be."""

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        return await self._file.read(offset, size)

    def generate(self, inode: Inode) -> bytes:
        pos = self._file.past.snapshot.pos
        if inode is Inode.POS:
            return f"{pos}\n".encode()
        return status(self._options, static=self._about(pos), replica=self._replica.statistics())

    def _about(self, pos: Pos) -> dict[str, object]:
        error = self._file.past.error
        return {
            "txid": pos.txid,
            "timestamp_ms": self._file.past.identity.timestamp_ms,
            "size": self._file.size,
            "error": error.message if error is not None else "",
        }


class StaticSession(FuseSession):
    """The session of such a mount."""

    def __init__(self, options: MountOptions, replica: Replica, file: StaticFile) -> None:
        super().__init__(options, Operations(StaticDatabase(options, replica, file), Owner(os.getuid(), os.getgid())))
        self._replica = replica
        self._file = file

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._operations.open_to_others()
        txid = self._file.past.snapshot.pos.txid
        log.info("mounted %s at %s, at TXID %016x for good", self._options.url, self._options.path, txid)
        ready()
        if self._options.hydrate:
            await self._replica.hydrate(self._pages, rate=self._options.hydrate_rate)
        else:
            await trio.sleep_forever()

    def _pages(self) -> PageMap:
        return self._file.past.snapshot.pages


async def serve_static(
    options: MountOptions, opening: AbstractAsyncContextManager[Replica], ready: Callable[[], None]
) -> None:
    """Mount the state at which `opening` opens the replica; otherwise as `mount.serve`."""
    async with opening as replica:
        past = await replica.past_snapshots().open(replica.snapshot.pos.txid)
        await StaticSession(options, replica, StaticFile(past)).run(ready)
