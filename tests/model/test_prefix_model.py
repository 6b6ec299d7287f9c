"""The tree of a prefix mount against a naive model: names are looked up, opened, read, listed and forgotten, databases
are published, deleted and made anew, and time passes, in any order and without a kernel.

`Kernel` keeps what Linux would: names while they are valid, references, and the pages of a file until it is told to
drop them. Whatever happens, an open sees the newest version of its database and of no other, a database is active while
it is open, an inode that the kernel references is known, and in the end nothing is left.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyfuse3
import pytest
import trio
import trio.testing

from litereplica.errors import LiteReplicaError
from litereplica.format.ltx import Header
from litereplica.format.names import Layout, file_key
from litereplica.fuse.active_databases import ActiveDatabases
from litereplica.fuse.kernel_cache import LiveFile
from litereplica.fuse.live_nodes import LiveNode
from litereplica.fuse.nodes import Attributes, InodeTable, Node
from litereplica.fuse.prefix_database import PrefixDatabase
from litereplica.fuse.prefix_tree import PrefixTree
from litereplica.fuse.session import MountOptions
from litereplica.fuse.shielded import ShieldedBlocks
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.prefix import Prefix
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.memory import MemoryStorage
from litereplica.types import Pos

STEPS = int(os.environ.get("PREFIX_MODEL_STEPS", "20000"))
PAGE_SIZE, PAGES = 512, 3
PATHS = ("a.db", "b.db", "eu/c.db", "eu/d.db", "eu/west/e.db", "x/f.db", "x/f.db/g.db")
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

    async def open_own(self, path_of: Callable[[LiveFile], str]) -> None:
        for file in LiveFile:
            path_of(file)
        await trio.lowlevel.checkpoint()

    def close_own(self) -> None:
        """Nothing is open."""

    async def run(self, ready: Callable[[], None], *, device: str | None) -> None:
        ready()
        await trio.sleep_forever()


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
    """References, names and pages. `names` are (directory, name) → (inode, until when)."""

    inodes: InodeTable
    references: dict[int, int] = field(default_factory=dict)
    names: dict[tuple[int, bytes], tuple[int, float]] = field(default_factory=dict)
    pages: dict[int, bytes] = field(default_factory=dict)
    open: list[Handle] = field(default_factory=list)

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


class Scene:
    """A mount without a kernel, and the model beside it."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.store = Store()
        self.inodes = InodeTable()
        self.kernel = Kernel(self.inodes)
        self.owners: dict[int, str] = {}
        self.numbers = 0
        self.opened = 0
        root = LTXStore(self.store.storage, Layout.S3)
        prefix = Prefix(root, url_of=lambda path: f"memory://test/{path}")
        options = MountOptions(url="memory://test", path=Path("/nowhere"), name="", poll_interval_s=1.0)
        self.active = ModelActive(
            options,
            self._open_replica,
            inodes=self.inodes,
            shielded=ShieldedBlocks(),
            park_after_s=PARK_AFTER_S,
            max_active=4,
        )
        self.active.model_kernel, self.active.since = self.kernel, {}
        self._prefix = prefix
        self.tree = PrefixTree(self.inodes, prefix, self.active, forget_name=self.kernel.forget_name)

    @asynccontextmanager
    async def _open_replica(self, path: str) -> AsyncIterator[Replica]:
        async with open_replica(self._prefix.database(path), memory_size=1 << 20) as replica:
            yield replica

    # --- what clients do ---------------------------------------------------------------------------

    async def open(self, path: str) -> None:
        """Open a database, read it, and compare."""
        truth = self.store.now.get(path)
        try:
            node = await self.kernel.walk(path)
            if node is None or node.attributes().is_directory:
                raise pyfuse3.FUSEError(2)
            assert isinstance(node, LiveNode)
            database = node._source
            assert isinstance(database, PrefixDatabase)
            await node.open(own=False)
        except (pyfuse3.FUSEError, OSError) as exc:
            self._excuse(path, truth, exc)
            return
        self.numbers += 1
        node.opened(self.numbers, 0)
        handle = Handle(self.numbers, node.inode, path, database, (0, 0))
        self.kernel.open.append(handle)
        assert self.owners.setdefault(node.inode, path) == path
        self.opened += 1
        await self.read(handle, fresh=truth)

    def _excuse(self, path: str, truth: tuple[int, int] | None, exc: Exception) -> None:
        """An open may fail if there is no such database, or if its name was or is that of something else."""
        if getattr(exc, "errno", 0) == 23:  # ENFILE
            assert len(self.active.databases) >= 4
            return
        is_stable = truth is not None and self.store.now.get(path) == truth and path not in self.store.before
        others = (*self.store.now, *self.store.before)
        collides = any(path.startswith(f"{each}/") or each.startswith(f"{path}/") for each in others)
        assert not is_stable or collides or self._was_absent(path), (path, exc)

    def _was_absent(self, path: str) -> bool:
        """True if the daemon has believed within half a second that the name does not exist."""
        return any(path == each or path.startswith(f"{each}/") for each in self.tree._absent)

    async def read(self, handle: Handle, *, fresh: tuple[int, int] | None = None) -> None:
        try:
            content = await self.kernel.read(handle.inode)
        except (pyfuse3.FUSEError, LiteReplicaError):
            assert handle.path in self.store.before  # its pages may have gone with it
            return
        pages = {content[start : start + PAGE_SIZE] for start in range(0, len(content), PAGE_SIZE)}
        path, incarnation, version = pages.pop().rstrip(b".").decode().split()
        seen = (int(incarnation), int(version))
        assert not pages, "a mixture"
        assert path == handle.path
        if fresh is not None and seen[0] == fresh[0]:
            assert seen >= fresh
        elif fresh is not None:  # a former database, which was there when this activation began
            assert self.store.died[path, seen[0]] >= self.active.since[handle.database]
        if handle.seen[0] == seen[0]:
            assert seen >= handle.seen
        handle.seen = seen

    def close(self, handle: Handle) -> None:
        self.kernel.open.remove(handle)
        self.inodes.get(handle.inode).release(handle.number)

    async def list(self, path: str) -> None:
        node = await self.kernel.walk(path) if path else self.inodes.get(ROOT)
        if node is None or not node.attributes().is_directory:
            return
        shown = {name.decode() for name, _ in await node.entries()}
        prefix = f"{path}/" if path else ""
        there = {each.removeprefix(prefix).split("/")[0] for each in self.store.now if each.startswith(prefix)}
        assert {name for name in shown if not name.endswith(("-wal", "-shm", "-pos"))} == there

    # --- one step ----------------------------------------------------------------------------------

    async def step(self) -> None:
        path = self.chance.choice(PATHS)
        match self.chance.choices(
            ("open", "read", "close", "publish", "delete", "list", "forget", "wait", "together", "sidecar"),
            (20, 12, 22, 12, 2, 6, 10, 8, 3, 5),
        )[0]:
            case "open":
                await self.open(path)
            case "read" if self.kernel.open:
                await self.read(self.chance.choice(self.kernel.open))
            case "close" if self.kernel.open:
                self.close(self.chance.choice(self.kernel.open))
            case "publish":
                await self.store.publish(path)
            case "delete" if path in self.store.now:
                await self.store.delete(path)
            case "list":
                await self.list(self.chance.choice(("", "eu", "eu/west", "x")))
            case "forget" if self.kernel.references:
                self.kernel.forget(self.chance.choice(sorted(self.kernel.references)))
            case "wait":
                await trio.sleep(self.chance.choice((0.1, 1.5, 3.0, 7.0, 40.0)))
            case "together":
                async with trio.open_nursery() as nursery:
                    for each in self.chance.choices(PATHS, k=4):
                        nursery.start_soon(self.open, each)
            case "sidecar":
                node = await self.kernel.walk(path + self.chance.choice(("-wal", "-shm", "-pos", "-journal")))
                assert node is None or not node.attributes().is_directory

    def check(self) -> None:
        for inode in self.kernel.references:
            assert inode in self.inodes
        for handle in self.kernel.open:
            assert handle.database.is_active
            assert handle.inode in self.inodes
        assert len(self.active.databases) <= 4 + 4  # those that are being parked count


@pytest.mark.slow
@pytest.mark.logs(
    "cannot be read", "no news", "the replica was replaced", "reading the whole database anew", "has no LTX"
)
@pytest.mark.parametrize("seed", range(2))
async def test_any_order_of_events_leads_to_what_the_model_has(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    scene = Scene(seed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.tree.run)
        started = trio.Event()
        nursery.start_soon(scene.active.run, None, started.set)
        await started.wait()
        for _ in range(STEPS // 2):
            await scene.step()
            scene.check()
        assert scene.opened > STEPS // 20
        for handle in list(scene.kernel.open):
            scene.close(handle)
        for inode in sorted(scene.kernel.references):
            scene.kernel.forget(inode)
        await trio.sleep(120)
        while scene.active.databases:  # closing takes a thread, which the clock does not wait for
            await trio.to_thread.run_sync(time.sleep, 0.001)
        await trio.sleep(120)
        statistics = scene.active.statistics()
        assert statistics.activations > STEPS // 100
        assert (len(scene.tree), len(scene.inodes)) == (0, 1)
        nursery.cancel_scope.cancel()
