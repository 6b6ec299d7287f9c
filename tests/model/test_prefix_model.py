"""The tree of a prefix mount against a naive model: names are looked up, opened, read, listed and forgotten, databases
are published, deleted and made anew, and time passes, in any order and without a kernel.

Whatever happens, an open sees the newest version of its database and of no other, a database is active while it is
open, an inode that the kernel references is known, and in the end nothing is left.
"""

from __future__ import annotations

import os
import time
from random import Random

import pyfuse3
import pytest
import trio
import trio.testing

from litereplica.errors import LiteReplicaError
from litereplica.fuse.live_nodes import LiveNode
from litereplica.fuse.prefix_database import PrefixDatabase
from tests.fuse.prefix_scene import PAGE_SIZE, ROOT, Handle, PrefixScene

STEPS = int(os.environ.get("PREFIX_MODEL_STEPS", "20000"))
PATHS = ("a.db", "b.db", "eu/c.db", "eu/d.db", "eu/west/e.db", "x/f.db", "x/f.db/g.db")


class Scene(PrefixScene):
    """The mount and the model beside it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.chance = Random(seed)
        self.owners: dict[int, str] = {}
        self.numbers = 0
        self.opened = 0

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
            await node.open(own=False, uid=0)
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
    async with scene.running():
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
