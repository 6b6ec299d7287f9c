"""A live mount of one database: open the replica, mount it, apply what polls bring.

Start: open the replica (position, indexes) → mount → open our own files through the mount and take the locks → ready.
End: stop following → close those descriptors, which keep the mount busy → unmount → the session ends by itself.
Before the first step is done and after the last has begun, clients that open a file wait: without the daemon's locks
they would try to recover the wal-index. `LiveService` is the database and its tasks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

import trio

from litereplica.control.protocol import WaitFor
from litereplica.fuse import mountpoint, names
from litereplica.fuse.at_tree import AtDirectory
from litereplica.fuse.client_locks import HELP, ClientLocks
from litereplica.fuse.kernel_cache import LiveFile
from litereplica.fuse.live_nodes import live_nodes
from litereplica.fuse.live_service import LiveService
from litereplica.fuse.mountpoint import Owner
from litereplica.fuse.nodes import Directory, GeneratedFile, InodeTable, Node
from litereplica.fuse.operations import Operations
from litereplica.fuse.options import MountOptions
from litereplica.fuse.session import FuseSession
from litereplica.fuse.shielded import ShieldedBlocks
from litereplica.fuse.state import MountState
from litereplica.fuse.status import public_status, status
from litereplica.fuse.status_database import Row, at_paths
from litereplica.replica.database import Replica
from litereplica.replica.past_snapshots import PastSnapshots

log = logging.getLogger(__name__)


async def serve(
    options: MountOptions, opening: AbstractAsyncContextManager[Replica], ready: Callable[[], None]
) -> None:
    """Mount the replica that `opening` yields, call `ready` when it can be queried, and serve until the mount ends.

    `mountpoint.prepare` must have been called. Raises the errors of `opening`, and `EnvironmentProblem`.
    """
    async with opening as replica:
        await Session(options, replica, past=replica.past_snapshots(patience_s=options.read_timeout_s)).run(ready)


class Session(FuseSession):
    """The session of a live mount. With `past`, past states are in its directory `.at`."""

    def __init__(self, options: MountOptions, replica: Replica, *, past: PastSnapshots | None) -> None:
        inodes = InodeTable()
        root = inodes.allocate()
        files = {file: inodes.allocate() for file in LiveFile}
        shielded = ShieldedBlocks()
        self._stacked: list[str] = []  # file systems that are mounted over this one
        at = AtDirectory(inodes, past, name=options.name) if past is not None else None
        self._service = LiveService(
            options,
            replica,
            files=files,
            clients=ClientLocks(files),
            past=at,
            in_use=lambda: self._operations.client_handles > 0,
            shielded=shielded,
        )
        self.live = self._service.live
        visible = live_nodes(options.name, files, inodes.allocate(), self._service)
        about = GeneratedFile(inodes.allocate(), self._status, public=self._public, waits_until_ready=False)
        hidden: dict[bytes, Node] = {
            names.STATUS_NAME.encode(): about,
            names.STATUS_DATABASE_NAME.encode(): self._service.status_database(inodes.allocate(), self.state),
        }
        if at is not None:
            hidden[names.AT_NAME.encode()] = at
        for node in (*visible.values(), *hidden.values(), Directory(root, visible, hidden=hidden)):
            inodes.add(node)
        owner = Owner(os.getuid(), os.getgid())
        total_size = partial(self.live.size, LiveFile.DATABASE)
        operations = Operations(inodes, owner, total_size=total_size, limit_s=options.request_limit_s)
        super().__init__(options, operations, shielded=shielded)

    def state(self) -> MountState:
        """Return the state of this moment."""
        return self._service.state(self._stacked)

    async def points(self, path: str) -> Sequence[Row]:
        """Return the newest points, each with its path below `.at`."""
        return at_paths(await self._service.points(), self._options.path, self._options.name)

    async def _reach(self, wanted: WaitFor) -> None:
        """Return when transactions that begin now see what is wanted."""
        await self._service.reach(wanted)

    def _public(self) -> bytes:
        return public_status(self.state())

    def _status(self) -> bytes:
        return status(self.state().record(), **self._service.statistics())

    async def _serve(self, ready: Callable[[], None]) -> None:
        """Take the locks, let clients in, and follow."""
        await trio.to_thread.run_sync(self._flush_once)
        await self._service.open_own(lambda file: f"{self._options.path / self._options.name}{file.value}")
        self._operations.open_to_others()

        def started() -> None:
            log.info("mounted %s at %s, TXID %016x", self._options.url, self._options.path, self.live.pos.txid)
            ready()

        await self._service.run(started, device=self._mount.device if self._mount is not None else None)

    def _note_mounts(self) -> None:
        """Name file systems that were mounted over this one."""
        found = [f"{each.path} ({each.type})" for each in mountpoint.stacked_on(self._options.path)]
        for each in set(found).difference(self._stacked):
            log.warning(
                "%s is mounted over this file system: databases cannot be used there, since SQLite's locks or its"
                " shared memory do not pass through; see %s",
                each,
                HELP,
            )
        self._stacked = found

    def _close_own(self) -> None:
        self._service.close_own()
