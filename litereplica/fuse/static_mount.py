"""A mount of one past state: no polling, no locks, one database file that never changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import trio

from litereplica.control.protocol import WaitFor
from litereplica.errors import NotReached
from litereplica.fuse import names, nodes
from litereplica.fuse.mountpoint import Owner
from litereplica.fuse.nodes import Attributes, Directory, GeneratedFile, InodeTable, Node
from litereplica.fuse.operations import Operations
from litereplica.fuse.options import MountOptions
from litereplica.fuse.session import FuseSession
from litereplica.fuse.state import MountState
from litereplica.fuse.static import StaticFile
from litereplica.fuse.status import public_status, status
from litereplica.fuse.status_database import Row, StatusDatabase
from litereplica.replica.database import Replica
from litereplica.replica.page_map import PageMap

log = logging.getLogger(__name__)


class FixedNode(Node):
    """The database file."""

    def __init__(self, inode: int, file: StaticFile, state: Callable[[], MountState]) -> None:
        super().__init__(inode)
        self._file = file
        self._state = state

    def extended(self, uid: int) -> Mapping[str, str]:
        """Return the attributes of the database."""
        return self._state().extended(is_insider=nodes.is_insider(uid))

    def attributes(self) -> Attributes:
        """Return the attributes, which never change."""
        return Attributes(size=self._file.size, mtime_ns=self._file.mtime_ns)

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        """Answer a READ if that takes no waiting; else None."""
        return self._file.read_now(offset, size)

    async def read(self, offset: int, size: int) -> bytes:
        """Answer a READ; see `StaticFile.read`."""
        return await self._file.read(offset, size)


class StaticSession(FuseSession):
    """The session of a mount of one past state."""

    def __init__(self, options: MountOptions, replica: Replica, file: StaticFile) -> None:
        self._replica = replica
        self._file = file
        inodes, name = InodeTable(), options.name.encode()
        root = inodes.allocate()
        pos_attributes = Attributes(size=nodes.POS_SIZE, mtime_ns=file.mtime_ns)
        database = FixedNode(inodes.allocate(), file, self.state)
        pos = GeneratedFile(inodes.allocate(), self._pos, attributes=pos_attributes)
        about = GeneratedFile(inodes.allocate(), self._status, public=self._public, waits_until_ready=False)
        tables = StatusDatabase(inodes.allocate(), self.state, files=replica.ltx_files, points=_no_points)
        visible = {name: database, name + b"-pos": pos}
        hidden = {names.STATUS_NAME.encode(): about, names.STATUS_DATABASE_NAME.encode(): tables}
        for node in (Directory(root, visible, hidden=hidden), database, pos, about, tables):
            inodes.add(node)
        owner = Owner(os.getuid(), os.getgid())
        operations = Operations(inodes, owner, total_size=lambda: file.size, limit_s=options.request_limit_s)
        super().__init__(options, operations)

    def state(self) -> MountState:
        """Return the state of this moment."""
        past = self._file.past
        return MountState(
            options=self._options,
            replica=self._replica.statistics(),
            txid=past.snapshot.pos.txid,
            timestamp_ms=past.identity.timestamp_ms,
            fixed=True,
            error=past.error.message if past.error is not None else "",
        )

    async def _reach(self, wanted: WaitFor) -> None:
        """Return if the state has what is wanted. Raises `NotReached` if not: it never will."""
        state = self.state()
        if state.txid < (wanted.txid or 0) or state.timestamp_ms < (wanted.time_ms or 0):
            raise NotReached(f"the mount is fixed at TXID {state.txid:016x}", hint="mount the replica without --txid")

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._operations.open_to_others()
        txid = self._file.past.snapshot.pos.txid
        log.info("mounted %s at %s, fixed at TXID %016x", self._options.url, self._options.path, txid)
        ready()
        if self._options.hydrate and self._file.size <= self._options.hydrate_limit:
            await self._replica.hydrate(self._pages, rate=self._options.hydrate_rate)
        else:
            await trio.sleep_forever()

    def _pages(self) -> PageMap:
        return self._file.past.snapshot.pages

    def _pos(self) -> bytes:
        return f"{self._file.past.snapshot.pos}\n".encode()

    def _public(self) -> bytes:
        return public_status(self.state())

    def _status(self) -> bytes:
        return status(self.state().record(), replica=self._replica.statistics())


async def _no_points() -> Sequence[Row]:
    return ()


async def serve(
    options: MountOptions, opening: AbstractAsyncContextManager[Replica], ready: Callable[[], None]
) -> None:
    """Mount the state at which `opening` opens the replica; otherwise as `mount.serve`."""
    async with opening as replica:
        past = await replica.past_snapshots().open(replica.snapshot.pos.txid)
        await StaticSession(options, replica, StaticFile(past)).run(ready)
