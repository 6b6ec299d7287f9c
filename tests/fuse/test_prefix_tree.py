"""A prefix mount when the store does not answer, when a database has a bug, and when there is too much of something."""

from __future__ import annotations

import errno
import math

import pyfuse3
import pytest
import trio
import trio.testing

from litereplica.control.protocol import WaitFor
from litereplica.errors import DatabaseNotFound, StorageError
from litereplica.fuse import prefix_tree
from litereplica.fuse.nodes import Node
from litereplica.types import Pos
from tests.fuse.prefix_scene import PAGE_SIZE, PAGES, PARK_AFTER_S, PrefixScene


async def open_at(scene: PrefixScene, path: str, handle: int) -> Node:
    node = await scene.kernel.walk(path)
    assert node is not None
    await node.open(own=False, uid=0)
    node.opened(handle, 0)
    return node


async def test_while_the_store_is_cut_what_is_known_stays(autojump_clock: trio.testing.MockClock) -> None:
    scene = PrefixScene()
    for path in ("eu/a.db", "eu/b.db"):
        await scene.store.publish(path)
    async with scene.running():
        node = await open_at(scene, "eu/a.db", 1)
        scene.is_cut = True
        await trio.sleep(prefix_tree.TRUST_S + PARK_AFTER_S)
        started = trio.current_time()
        again = await open_at(scene, "eu/a.db", 2)
        assert again is node
        assert trio.current_time() - started <= 2 * prefix_tree.KNOWN_PATIENCE_S
        assert len(await node.read(0, PAGE_SIZE)) == PAGES * PAGE_SIZE
        with pytest.raises(StorageError):
            await scene.kernel.walk("eu/b.db")
        scene.is_cut = False
        assert await scene.kernel.walk("eu/b.db") is not None


@pytest.mark.logs("has failed")
async def test_a_bug_in_one_database_is_felt_by_its_clients_alone(autojump_clock: trio.testing.MockClock) -> None:
    scene = PrefixScene()
    for path in ("a.db", "b.db"):
        await scene.store.publish(path)
    async with scene.running():
        node = await open_at(scene, "a.db", 1)
        scene.kernel.bug.set()
        await trio.testing.wait_all_tasks_blocked()
        while scene.active.databases:
            await trio.to_thread.run_sync(lambda: None)
        scene.kernel.bug = trio.Event()
        with pytest.raises(pyfuse3.FUSEError) as caught:  # another activation would show it another base
            await node.read(0, PAGE_SIZE)
        assert caught.value.errno == errno.EIO
        with pytest.raises(pyfuse3.FUSEError):
            await open_at(scene, "a.db", 2)
        other = await open_at(scene, "b.db", 3)
        assert await other.read(0, PAGE_SIZE)
        node.release(1)
        await trio.sleep(2)
        assert await (await open_at(scene, "a.db", 4)).read(0, PAGE_SIZE)


@pytest.mark.logs("has failed")
async def test_a_wait_survives_the_activation_that_it_began_with(autojump_clock: trio.testing.MockClock) -> None:
    scene = PrefixScene()
    await scene.store.publish("a.db")
    reached: list[object] = []
    async with scene.running():
        database = await scene.tree.database("a.db")
        assert database is not None

        async def ended() -> None:
            await trio.testing.wait_all_tasks_blocked()
            while scene.active.databases:  # the clock goes on while a thread closes the files
                await trio.to_thread.run_sync(lambda: None)

        async def wait() -> None:
            reached.append(await database.reach(WaitFor(txid=2, time_ms=None, timeout_s=math.inf)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(2 * PARK_AFTER_S)
            assert scene.active.databases, "whoever waits protects it from being parked"
            scene.kernel.bug.set()
            await ended()
            scene.kernel.bug = trio.Event()
            await scene.store.publish("a.db")
        assert [each.txid for each in reached if isinstance(each, Pos)] == [2]
        assert scene.active.statistics().activations == 2
        await trio.sleep(2 * PARK_AFTER_S)
        await ended()
        await scene.store.delete("a.db")
        with pytest.raises(DatabaseNotFound):
            await wait()


async def test_beyond_the_limit_idle_databases_make_room_and_used_ones_do_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = PrefixScene(max_active=3)
    paths = [f"{number}.db" for number in range(6)]
    for path in paths:
        await scene.store.publish(path)
    async with scene.running():
        nodes = [await open_at(scene, path, number) for number, path in enumerate(paths[:3])]
        with pytest.raises(OSError, match="in use") as caught:
            await open_at(scene, paths[3], 3)
        assert caught.value.errno == errno.ENFILE
        nodes[0].release(0)
        await trio.sleep(0.1)
        assert await (await open_at(scene, paths[4], 4)).read(0, PAGE_SIZE)
        assert await nodes[1].read(0, PAGE_SIZE)


async def test_walking_through_a_listing_looks_names_up_ahead(autojump_clock: trio.testing.MockClock) -> None:
    scene = PrefixScene()
    paths = [f"{number:03}.db" for number in range(100)]
    for path in paths:
        await scene.store.publish(path)
    async with scene.running():
        assert [name for name, node in await scene.tree.root.entries() if node is None] == [p.encode() for p in paths]
        assert len(scene.tree) == 0
        for path in paths[:3]:
            await scene.kernel.walk(path)
        await trio.testing.wait_all_tasks_blocked()
        assert 60 <= len(scene.tree) <= 70
        before = scene.tree.prefix.statistics().requests
        for path in paths:
            await scene.kernel.walk(path)
        await trio.testing.wait_all_tasks_blocked()
        assert scene.tree.prefix.statistics().requests - before <= 2 * 40


async def test_the_kernel_is_asked_to_forget_names_that_are_too_many(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_tree, "MAX_UNUSED", 10)
    scene = PrefixScene()
    paths = [f"{number:03}.db" for number in range(30)]
    for path in paths:
        await scene.store.publish(path)
    async with scene.running():
        for path in paths:
            await scene.kernel.walk(path)
        scene.tree.tidy()
        assert len(scene.kernel.names) == 10
        for inode in sorted(scene.kernel.references):
            if inode not in {known for known, _ in scene.kernel.names.values()}:
                scene.kernel.forget(inode)
        await trio.sleep(60)
        assert len(scene.tree) == 10
