"""A prefix mount without a kernel: a store in memory, the tree, and what Linux would keep of it.

`Kernel` keeps names while they are valid, references, and the pages of a file until it is told to drop them. `Service`
stands in for a live database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyfuse3
import trio

from litereplica.control.protocol import WaitFor
from litereplica.errors import LiteReplicaError
from litereplica.format.ltx import Header
from litereplica.format.names import Layout, file_key
from litereplica.fuse.active_databases import ActiveDatabases
from litereplica.fuse.kernel_cache import LiveFile
from litereplica.fuse.nodes import Attributes, InodeTable, Node
from litereplica.fuse.options import MountOptions
from litereplica.fuse.prefix_database import PrefixDatabase
from litereplica.fuse.prefix_tree import PrefixTree
from litereplica.fuse.shielded import ShieldedBlocks
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.prefix import Prefix
from litereplica.testing.faults import Fault, FaultStorage
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.memory import MemoryStorage
from litereplica.types import Pos

PAGE_SIZE, PAGES = 512, 3
PARK_AFTER_S = 5.0
ROOT = pyfuse3.ROOT_INODE


def page(tag: str) -> bytes:
    return tag.encode().ljust(PAGE_SIZE, b".")


class Store:
    """The databases of a store.

    `now` has the newest version of each, `before` the paths that something was deleted from, and `died` when.
    """

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.now: dict[str, tuple[int, int]] = {}
        self.before: set[str] = set()
        self.died: dict[tuple[str, int], float] = {}
        self._incarnations = 0

    async def publish(self, path: str) -> None:
        if path not in self.now:
            self._incarnations += 1
        incarnation, version = self.now.get(path, (self._incarnations, 0))
        version += 1
        tag = f"{path} {incarnation} {version}"
        header = Header(
            page_size=PAGE_SIZE,
            commit=PAGES,
            min_txid=version,
            max_txid=version,
            timestamp_ms=version,
            node_id=incarnation,
        )
        key = f"{path}/{file_key(Layout.S3, 0, version, version)}"
        await self.storage.put(key, encode_file(header, [(pgno, page(tag)) for pgno in range(1, PAGES + 1)]))
        self.now[path] = (incarnation, version)

    async def delete(self, path: str) -> None:
        incarnation, _ = self.now.pop(path)
        self.before.add(path)
        self.died[path, incarnation] = trio.current_time()
        keys = [key for key in self.storage.objects if key.startswith(f"{path}/0000/")]
        await self.storage.delete(keys)


class Service:
    """A live database without a WAL: it polls before each open, and tells the kernel to drop what has changed."""

    past = None

    def statistics(self) -> dict[str, object]:
        return {}

    def __init__(self, kernel: Kernel, replica: Replica, inodes: dict[LiveFile, int]) -> None:
        self.kernel = self
        self._kernel = kernel
        self._replica = replica
        self._inodes = inodes

    @property
    def pos(self) -> Pos:
        return self._replica.snapshot.pos

    def attributes(self, file: LiveFile) -> Attributes:
        return Attributes(size=PAGES * PAGE_SIZE)

    async def invalidate(self, file: LiveFile) -> None:
        await trio.lowlevel.checkpoint()
        self._kernel.pages.pop(self._inodes[file], None)

    async def prepare(self, file: LiveFile) -> None:
        with suppress(LiteReplicaError):  # as the poller does: what is there is served on
            if await self._replica.poll() is not None:
                await self.invalidate(LiveFile.DATABASE)

    async def read(self, file: LiveFile, offset: int, size: int) -> bytes:
        pgnos = np.arange(1, PAGES + 1, dtype=np.uint32)
        snapshot = self._replica.snapshot
        return b"".join(await self._replica.read(pgnos, snapshot.pages.lookup(pgnos)))

    async def reach(self, wanted: WaitFor) -> None:
        while self.pos.txid < (wanted.txid or 0):
            await trio.sleep(1)
            await self._replica.poll()

    def state(self) -> Pos:
        return self.pos

    async def open_own(self, path_of: Callable[[LiveFile], str]) -> None:
        for file in LiveFile:
            path_of(file)
        await trio.lowlevel.checkpoint()

    def close_own(self) -> None:
        """Nothing is open."""

    async def run(self, ready: Callable[[], None], *, device: str | None) -> None:
        ready()
        await self._kernel.bug.wait()
        raise ZeroDivisionError


@dataclass(eq=False)
class Handle:
    """An open file: what the first read saw."""

    number: int
    inode: int
    path: str
    database: PrefixDatabase
    seen: tuple[int, int]


@dataclass
class Kernel:
    """References, names and pages. `names` are (directory, name) → (inode, until when).

    `bug` makes all active databases fail.
    """

    inodes: InodeTable
    references: dict[int, int] = field(default_factory=dict)
    names: dict[tuple[int, bytes], tuple[int, float]] = field(default_factory=dict)
    pages: dict[int, bytes] = field(default_factory=dict)
    open: list[Handle] = field(default_factory=list)
    bug: trio.Event = field(default_factory=trio.Event)

    def know(self, node: Node, where: tuple[int, bytes]) -> None:
        node.remember()
        self.references[node.inode] = self.references.get(node.inode, 0) + 1
        self.names[where] = (node.inode, trio.current_time() + node.attributes().entry_timeout_s)

    async def look_up(self, directory: int, name: bytes) -> Node | None:
        inode, until = self.names.get((directory, name), (0, 0.0))
        if trio.current_time() < until:
            return self.inodes.get(inode)
        node = await self.inodes.get(directory).lookup(name)
        if node is None:
            self.names.pop((directory, name), None)
        else:
            self.know(node, (directory, name))
        return node

    async def walk(self, path: str) -> Node | None:
        node: Node | None = self.inodes.get(ROOT)
        for name in path.split("/"):
            if node is None or not node.attributes().is_directory:
                return None
            node = await self.look_up(node.inode, name.encode())
        return node

    def forget_name(self, directory: int, name: bytes) -> None:
        self.names.pop((directory, name), None)

    def forget(self, inode: int) -> None:
        """Drop an inode that no name and no handle holds, as memory pressure does."""
        self.names = {where: each for where, each in self.names.items() if each[0] != inode}
        if inode in self.references and all(handle.inode != inode for handle in self.open):
            self.inodes.get(inode).forget(self.references.pop(inode))
            self.pages.pop(inode, None)

    async def read(self, inode: int) -> bytes:
        if inode not in self.pages:
            self.pages[inode] = await self.inodes.get(inode).read(0, PAGES * PAGE_SIZE)
        return self.pages[inode]


class ModelActive(ActiveDatabases):
    """Activations whose services need no kernel."""

    model_kernel: Kernel
    since: dict[Any, float]

    def service(self, database: Any, replica: Replica, *, files: Any, clients: Any) -> Any:
        self.since[database] = trio.current_time()
        return Service(self.model_kernel, replica, files)


class PrefixScene:
    """A tree without a kernel, over a store in memory. `running` runs its tasks."""

    def __init__(self, *, max_active: int = 4) -> None:
        self.store = Store()
        self.inodes = InodeTable()
        self.kernel = Kernel(self.inodes)
        self.is_cut = False
        root = LTXStore(FaultStorage(self.store.storage, lambda _: Fault() if self.is_cut else None), Layout.S3)
        self._prefix = Prefix(root, url_of=lambda path: f"memory://test/{path}")
        options = MountOptions(url="memory://test", path=Path("/nowhere"), name="", poll_interval_s=1.0)
        self.active = ModelActive(
            options,
            self._open_replica,
            inodes=self.inodes,
            shielded=ShieldedBlocks(),
            park_after_s=PARK_AFTER_S,
            max_active=max_active,
        )
        self.active.model_kernel, self.active.since = self.kernel, {}
        self.tree = PrefixTree(self.inodes, self._prefix, self.active, forget_name=self.kernel.forget_name)

    @asynccontextmanager
    async def _open_replica(self, path: str) -> AsyncIterator[Replica]:
        async with open_replica(self._prefix.database(path), memory_size=1 << 20) as replica:
            yield replica

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tree.run)
            started = trio.Event()
            nursery.start_soon(self.active.run, None, started.set)
            await started.wait()
            yield
            nursery.cancel_scope.cancel()
