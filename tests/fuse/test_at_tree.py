"""Past states as inodes: how they come, how long they stay, and that none is ever mistaken for another."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pyfuse3
import pytest
import trio
import trio.testing

from litereplica.errors import TransientStorageError
from litereplica.format.names import Layout
from litereplica.format.sqlite import with_journal_mode
from litereplica.fuse import at_tree
from litereplica.fuse.at_names import txid_name
from litereplica.fuse.at_tree import AtDirectory
from litereplica.fuse.nodes import InodeTable, Node
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.database import Replica, open_replica
from litereplica.testing.faults import Fault, FaultStorage
from litereplica.types import TXID
from tests.helpers.history import FIRST_TIMESTAMP_MS, History

IDLE_S = 60.0
NAME = b"app.db"


@dataclass
class Wall:
    """Seconds since the epoch."""

    now: float = FIRST_TIMESTAMP_MS / 1000 + 1e6

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Seen:
    """A node as the kernel knows it."""

    inode: int
    size: int
    mtime_ns: int


def seen(node: Node) -> Seen:
    attributes = node.attributes()
    return Seen(node.inode, attributes.size, attributes.mtime_ns)


@dataclass
class Scene:
    """A tree over a replica of a history; it stands in for a kernel that has forgotten nothing yet."""

    history: History
    faults: list[Fault]
    replica: Replica
    inodes: InodeTable
    tree: AtDirectory
    wall: Wall
    forgotten: list[bytes] = field(default_factory=list)
    told: dict[int, int] = field(default_factory=dict)

    @property
    def at(self) -> int:
        return self.tree.inode

    def node(self, inode: int) -> Seen:
        """What GETATTR answers."""
        return seen(self.inodes.get(inode))

    async def lookup(self, parent: int, name: bytes) -> Seen | None:
        node = await self.inodes.get(parent).lookup(name)
        if node is None:
            return None
        node.remember()
        self.told[node.inode] = self.told.get(node.inode, 0) + 1
        return seen(node)

    async def list(self, inode: int) -> list[tuple[bytes, Seen]]:
        return [(name, seen(node)) for name, node in await self.inodes.get(inode).entries() if node is not None]

    async def open(self, inode: int) -> None:
        await self.inodes.get(inode).open(own=False, uid=0)

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        return await self.inodes.get(inode).read(offset, size)

    def release(self, inode: int) -> None:
        self.inodes.get(inode).release(0)

    def forget(self, inode: int, count: int) -> None:
        self.inodes.get(inode).forget(count)

    async def directory(self, name: bytes) -> Seen:
        node = await self.lookup(self.at, name)
        assert node is not None
        return node

    async def file(self, name: bytes) -> Seen:
        node = await self.lookup((await self.directory(name)).inode, NAME)
        assert node is not None
        return node

    async def content(self, name: bytes) -> bytes:
        node = await self.file(name)
        await self.open(node.inode)
        content = await self.read(node.inode, 0, node.size)
        self.release(node.inode)
        return content

    def forget_all(self) -> None:
        for inode, count in self.told.items():
            self.forget(inode, count)
        self.told.clear()

    def open_txids(self) -> set[TXID]:
        return {each.txid for each in self.tree.statistics()}

    def database(self, txid: TXID) -> bytes:
        pages = self.history.at(txid)
        return with_journal_mode(pages[1], wal=False) + b"".join(pages[pgno] for pgno in range(2, len(pages) + 1))


@asynccontextmanager
async def opened(txids: int = 12, *, max_unused: int = 3, max_names: int = 1000) -> AsyncIterator[Scene]:
    history, wall = History(), Wall()
    for txid in range(1, txids + 1):
        await history.commit({1: b"at %d" % txid, 1 + txid % 7: b"changed at %d" % txid}, pages=8 + txid % 3)
    faults: list[Fault] = []
    storage = FaultStorage(history.storage, lambda request: faults[0] if faults else None)
    forgotten: list[bytes] = []
    async with open_replica(LTXStore(storage, Layout.S3)) as replica, trio.open_nursery() as nursery:
        inodes = InodeTable()
        assert inodes.allocate() == pyfuse3.ROOT_INODE
        tree = AtDirectory(
            inodes,
            replica.past_snapshots(),
            name="app.db",
            idle_s=IDLE_S,
            max_unused=max_unused,
            max_names=max_names,
            wall_s=wall,
            forget_name=lambda inode, name: forgotten.append(name) if inode == tree.inode else None,
        )
        inodes.add(tree)
        nursery.start_soon(tree.run)
        yield Scene(history, faults, replica, inodes, tree, wall, forgotten)
        nursery.cancel_scope.cancel()


def time_name(txid: TXID, add_ms: int = 1) -> bytes:
    milliseconds = FIRST_TIMESTAMP_MS + txid + add_ms
    return b"2023-11-14T22:13:%02d.%03dZ" % (milliseconds // 1000 % 60, milliseconds % 1000)


async def test_each_state_is_a_file_of_rollback_mode(autojump_clock: trio.testing.MockClock) -> None:
    async with opened() as scene:
        for txid in (1, 5, 12):
            assert await scene.content(txid_name(txid)) == scene.database(txid)
            assert await scene.content(time_name(txid)) == scene.database(txid)
        node = await scene.file(txid_name(5))
        assert (node.size, node.mtime_ns) == (len(scene.database(5)), (FIRST_TIMESTAMP_MS + 5) * 1_000_000)


async def test_a_read_is_answered_in_full_wherever_it_begins(autojump_clock: trio.testing.MockClock) -> None:
    async with opened() as scene:
        node = await scene.file(txid_name(4))
        await scene.open(node.inode)
        content = scene.database(4)
        for offset, size in ((0, 20), (10, 512), (511, 2), (512, 1024), (node.size - 5, 100), (node.size + 512, 7)):
            expected = content[offset : offset + size].ljust(size, b"\0")
            assert await scene.read(node.inode, offset, size) == expected


async def test_only_the_database_is_in_a_directory(autojump_clock: trio.testing.MockClock) -> None:
    async with opened() as scene:
        directory = await scene.directory(txid_name(4))
        for name in (b"app.db-journal", b"app.db-wal", b"other"):
            assert await scene.lookup(directory.inode, name) is None
        assert scene.inodes.get(directory.inode).stays_absent(b"app.db-journal")
        assert not scene.tree.stays_absent(b"txid-1")
        ((name, node),) = await scene.list(directory.inode)
        assert (name, node.size) == (NAME, len(scene.database(4)))


async def test_listed_names_lead_to_their_points_and_nothing_is_opened_for_a_listing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened() as scene:
        listed = await scene.list(scene.at)
        assert [name for name, _ in listed] == [txid_name(txid) for txid in range(1, 13)]
        assert [node.mtime_ns // 1_000_000 - FIRST_TIMESTAMP_MS for _, node in listed] == list(range(1, 13))
        assert scene.open_txids() == set()
        for name, node in listed:
            assert (await scene.directory(name)).inode == node.inode


async def test_lookups_at_the_same_time_get_one_inode(autojump_clock: trio.testing.MockClock) -> None:
    async with opened() as scene:
        inodes: set[int] = set()

        async def look() -> None:
            inodes.add((await scene.directory(time_name(6))).inode)
            inodes.add((await scene.file(time_name(6))).inode)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(look)
        assert len(inodes) == 2
        assert scene.at not in inodes


# --- how long they stay ------------------------------------------------------------------------


async def test_an_unused_state_is_closed_and_opened_again_under_the_same_inode(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened() as scene:
        before = await scene.file(txid_name(3))
        await trio.sleep(2 * IDLE_S)
        assert scene.open_txids() == set()
        assert scene.node(before.inode) == before, "the kernel may ask for what it knows at any time"
        await scene.open(before.inode)
        assert scene.open_txids() == {3}
        assert await scene.read(before.inode, 0, before.size) == scene.database(3)


async def test_an_open_state_stays_open(autojump_clock: trio.testing.MockClock) -> None:
    async with opened() as scene:
        node = await scene.file(txid_name(3))
        await scene.open(node.inode)
        for txid in (4, 5, 6, 7, 8):
            await scene.content(txid_name(txid))
        await trio.sleep(10 * IDLE_S)
        assert scene.open_txids() == {3}
        scene.release(node.inode)
        await trio.sleep(2 * IDLE_S)
        assert scene.open_txids() == set()


async def test_of_the_unused_the_last_ones_stay_open(autojump_clock: trio.testing.MockClock) -> None:
    async with opened(max_unused=3) as scene:
        for txid in (1, 2, 3, 4, 1, 5):
            await scene.content(txid_name(txid))
            await trio.sleep(1)
        assert scene.open_txids() == {4, 1, 5}


async def test_no_more_than_a_number_are_in_use_at_a_time(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_tree, "MAX_IN_USE", 2)
    async with opened() as scene:
        nodes = [await scene.file(txid_name(txid)) for txid in (1, 2, 3)]
        await scene.open(nodes[0].inode)
        await scene.open(nodes[1].inode)
        with pytest.raises(OSError) as refused:
            await scene.open(nodes[2].inode)
        assert refused.value.errno == errno.ENFILE
        scene.release(nodes[0].inode)
        await scene.open(nodes[2].inode)


async def test_what_the_kernel_has_forgotten_is_gone_and_its_inode_is_not_given_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened() as scene:
        directory, file = await scene.directory(txid_name(3)), await scene.file(txid_name(3))
        scene.forget_all()
        await trio.sleep(3 * IDLE_S)
        for inode in (directory.inode, file.inode):
            with pytest.raises(OSError) as gone:
                scene.node(inode)
            assert gone.value.errno == errno.ESTALE
        assert (await scene.directory(txid_name(3))).inode > file.inode
        assert (await scene.file(txid_name(3))).inode > file.inode


async def test_a_file_stays_as_long_as_the_kernel_knows_it_although_its_directory_is_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened() as scene:
        directory, file = await scene.directory(txid_name(3)), await scene.file(txid_name(3))
        scene.forget(directory.inode, scene.told[directory.inode])
        await trio.sleep(3 * IDLE_S)
        with pytest.raises(OSError):
            scene.node(directory.inode)
        assert scene.node(file.inode) == file
        assert (await scene.file(txid_name(3))).inode == file.inode


async def test_the_kernel_is_asked_to_forget_the_oldest_names_when_there_are_many(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(max_names=4) as scene:
        for txid in range(1, 8):
            await scene.file(txid_name(txid))
            await trio.sleep(1)
        assert scene.forgotten == []
        await trio.sleep(1.5 * IDLE_S)
        assert set(scene.forgotten) == {txid_name(txid) for txid in (1, 2, 3)}


# --- what a name means -------------------------------------------------------------------------


async def test_a_time_is_decided_once_while_it_is_in_use_and_again_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(5) as scene:
        name = time_name(9)
        node = await scene.file(name)
        assert node.size == len(scene.database(5))
        await scene.open(node.inode)
        await scene.history.commit({1: b"made before that time, published after it"})
        await trio.sleep(10 * IDLE_S)
        assert (await scene.file(name)).inode == node.inode
        scene.release(node.inode)
        await trio.sleep(2 * IDLE_S)
        assert await scene.content(name) == scene.database(6)
        assert (await scene.file(name)).inode != node.inode
        assert scene.node(node.inode) == node


async def test_a_time_to_come_is_not_there_yet(autojump_clock: trio.testing.MockClock) -> None:
    async with opened(5) as scene:
        scene.wall.now = (FIRST_TIMESTAMP_MS + 6) / 1000
        assert await scene.lookup(scene.at, time_name(6)) is None
        assert (await scene.file(time_name(5))).size == len(scene.database(5))
        scene.wall.now += 1
        assert (await scene.file(time_name(6))).size == len(scene.database(5))


async def test_a_point_that_retention_took_is_not_there_any_more(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened() as scene:
        node = await scene.file(txid_name(5))
        await scene.history.snapshot()
        for txid in range(1, 12):
            await scene.history.delete(0, txid)
        await trio.sleep(2 * IDLE_S)
        assert await scene.lookup(scene.at, txid_name(5)) is None
        with pytest.raises(OSError) as gone:
            await scene.open(node.inode)
        assert gone.value.errno == errno.ENOENT
        assert await scene.lookup(scene.at, txid_name(12)) is not None
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_state_of_which_pages_are_lost_is_left_to_those_who_have_it_open(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as scene:
        node = await scene.file(txid_name(5))
        await scene.open(node.inode)
        await scene.history.snapshot()
        for txid in range(1, 12):
            await scene.history.delete(0, txid)
        scene.replica._current.pages._memory.clear()
        for _ in range(3):
            with pytest.raises(pyfuse3.FUSEError) as failed:
                await scene.read(node.inode, 0, node.size)
            assert failed.value.errno == errno.EIO
        assert await scene.lookup((await scene.directory(txid_name(5))).inode, NAME) is None
        with pytest.raises(OSError) as gone:
            await scene.open(node.inode)
        assert gone.value.errno == errno.ENOENT
        assert [each.error != "" for each in scene.tree.statistics()] == [True]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "0000000000000005" in errors[0].getMessage()


async def test_states_with_another_page_size_are_not_there_and_the_log_says_what_to_do(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(3) as scene:
        directory = await scene.directory(txid_name(2))
        scene.history.page_size = 1024
        scene.history.databases[3] = {}
        await scene.history.commit({1: b"one", 2: b"two"}, pages=2)
        await trio.sleep(1)
        after = await scene.directory(txid_name(4))
        assert await scene.lookup(after.inode, NAME) is None
        assert await scene.lookup(directory.inode, NAME) is not None
    assert "--txid" in caplog.text


async def test_a_replica_made_anew_gets_inodes_of_its_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened() as scene:
        old = await scene.file(txid_name(5))
        for info in await scene.history.store.list_levels():
            await scene.history.store.delete([info])
        other = History(storage=scene.history.storage, clock_ms=FIRST_TIMESTAMP_MS + 5000)
        for txid in range(1, 14):
            await other.commit({1: b"another %d" % txid}, pages=8 + txid % 3)
        await trio.sleep(2 * IDLE_S)
        scene.history = other
        assert await scene.content(txid_name(5)) == scene.database(5)
        new = await scene.file(txid_name(5))
        assert new.inode != old.inode
        with pytest.raises(OSError) as gone:
            await scene.open(old.inode)
        assert gone.value.errno == errno.ENOENT


async def test_a_store_that_fails_is_not_taken_for_a_point_that_is_not_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened() as scene:
        known = await scene.file(txid_name(5))
        scene.faults.append(Fault())
        with pytest.raises(TransientStorageError):
            await scene.lookup(scene.at, time_name(4))
        assert (await scene.file(txid_name(5))).inode == known.inode, "what is open needs no store"
