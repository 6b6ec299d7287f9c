"""The files that a live database reads from stay known, however many come and go.

A real replica over a store in memory, below a live database without a kernel. The load updates the same pages again and
again, so that each file is soon used by the base alone.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import pyfuse3
import pytest
import trio
import trio.testing

from litereplica.errors import DamagedFile, FileVanished, TransientStorageError
from litereplica.fuse.kernel_cache import LiveFile, Store
from litereplica.fuse.live import LiveDatabase
from litereplica.fuse.mountpoint import Owner
from litereplica.fuse.nodes import Attributes, InodeTable, Node
from litereplica.fuse.operations import Operations
from litereplica.replica.database import HEAL_PAUSE_S, Replica
from litereplica.replica.next_files import LIST_INTERVAL_S
from litereplica.storage.wrappers.delegate import Call, Operation, WrapperStorage
from litereplica.testing.faults import Fault
from tests.helpers.history import History
from tests.replica.test_database import Bench

FORGET_EVERY = 5
LIMIT_S = 15.0
T = TypeVar("T")


class SilentLists(WrapperStorage):
    """A store that answers everything but LIST, while `silent`."""

    silent = False

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        if self.silent and call.operation is Operation.LIST:
            await trio.sleep_forever()
        return await perform()


class DatabaseNode(Node):
    """The database file of a live database, as the kernel asks for it."""

    def __init__(self, inode: int, live: LiveDatabase) -> None:
        super().__init__(inode)
        self._live = live

    def attributes(self) -> Attributes:
        return Attributes(size=self._live.size(LiveFile.DATABASE))

    async def read(self, offset: int, size: int) -> bytes:
        return await self._live.read(LiveFile.DATABASE, offset, size)


class Context:
    """A request of another process."""

    pid = 1
    uid = 0


class NoKernel:
    """A kernel that caches nothing."""

    async def store(self, stores: Iterable[Store]) -> None:
        for _ in stores:
            pass

    async def invalidate(self, file: LiveFile) -> None:
        pass


@asynccontextmanager
async def live_database(bench: Bench) -> AsyncIterator[tuple[Replica, LiveDatabase]]:
    async with bench.replica() as replica:
        live = LiveDatabase(replica, NoKernel())
        with tempfile.TemporaryFile() as shm:
            await live.activate(shm.fileno())
            yield replica, live


async def page(live: LiveDatabase, pgno: int, page_size: int) -> bytes:
    return await live.read(LiveFile.DATABASE, (pgno - 1) * page_size, page_size)


def require_known(replica: Replica, live: LiveDatabase) -> None:
    """Every location that can be reached names a file of the table, and the table has no file besides."""
    named = set(live.files.base.files().tolist()) | set(live.files.wal.files().tolist())
    named |= set(replica.snapshot.pages.files().tolist())
    files = replica._current.files
    assert all(files.get(file_id) is not None for file_id in named)
    assert named <= files.holders.files()


async def test_a_base_keeps_its_files_while_many_more_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litereplica.fuse.live.CHECKPOINT_FRAMES", 7)
    bench = Bench(memory_size=0, forget_every=FORGET_EVERY)
    await bench.history.commit({pgno: b"first %d" % pgno for pgno in range(1, 9)})
    async with live_database(bench) as (replica, live):
        page_size = replica.snapshot.page_size
        for n in range(100):
            await bench.history.commit({1 + n % 3: b"%d" % n, 5: b"%d" % n})
            await live.apply(await replica.poll())
            require_known(replica, live)
            for pgno in range(2, 9):
                await page(live, pgno, page_size)
            assert replica.statistics().heals == 0, "nothing has vanished, so nothing is to be looked for"
        assert live.statistics().backfills > 10
        assert replica.statistics().files <= 100 // 2
        files = replica._current.files
        files.forget_unused()
        assert len(files) == len(files.holders.files()), "nothing is kept that nobody names"


async def test_page_1_of_the_base_is_at_hand_whatever_caches_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the base has moved to another one, and after its file has given way to others."""
    monkeypatch.setattr("litereplica.fuse.live.CHECKPOINT_FRAMES", 2)
    bench = Bench(memory_size=0)
    await bench.history.commit({1: b"one", 2: b"two"})
    async with live_database(bench) as (replica, live):
        page_size = replica.snapshot.page_size

        async def first_without_store() -> bytes:
            before = bench.meter.statistics().requests
            found = await page(live, 1, page_size)
            assert bench.meter.statistics().requests == before
            return found

        await page(live, 1, page_size)
        await page(live, 2, page_size)
        assert (await first_without_store()).startswith(b"one")
        for n in range(3):
            await bench.history.commit({1: b"one again %d" % n, 2: b"two again"})
            await live.apply(await replica.poll())
        assert live.statistics().backfills
        moved = await first_without_store()
        assert moved.startswith(b"one again")
        await bench.history.snapshot()
        await live.files.heal()
        assert await first_without_store() == moved


# --- versions whose files are deleted --------------------------------------------------------------


async def frame(live: LiveDatabase, number: int, page_size: int) -> bytes:
    """The page in a frame of the WAL."""
    return (await live.read(LiveFile.WAL, live.files.wal.offset(number) + 24, page_size))[:page_size]


@pytest.fixture
def base_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside a client that stays in a transaction."""
    monkeypatch.setattr("litereplica.fuse.live.CHECKPOINT_FRAMES", 10**6)
    monkeypatch.setattr("litereplica.fuse.live.IDLE_CHECKPOINT_S", 1e9)


async def never(*args: object) -> bool:
    return False


async def test_pages_of_the_base_are_found_in_newer_files_while_readers_keep_the_wal_from_restarting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They were moved into the base, and nobody has changed them since: any plan for the current position has them."""
    monkeypatch.setattr("litereplica.fuse.live_files.OLDER_STATES", 0)
    monkeypatch.setattr("litereplica.fuse.live.CHECKPOINT_FRAMES", 1)
    monkeypatch.setattr(LiveDatabase, "_restart", never)
    bench = Bench(memory_size=0)
    await bench.history.commit({pgno: b"first %d" % pgno for pgno in range(1, 9)})
    async with live_database(bench) as (replica, live):
        for pgno in (5, 6):
            await bench.history.commit({pgno: b"again %d" % pgno})
            await live.apply(await replica.poll())
        assert live.statistics().backfills == 2
        assert live.statistics().wal_frames == 2
        await bench.history.compact(1, 1, 3)
        for txid in (1, 2):
            await bench.history.delete(0, txid)
        page_size = replica.snapshot.page_size
        for pgno, content in ((5, b"again 5"), (6, b"again 6"), (7, b"first 7")):
            assert (await page(live, pgno, page_size)).startswith(content)


async def test_versions_that_older_readers_need_are_found_in_files_that_were_merged_meanwhile(
    autojump_clock: trio.testing.MockClock, base_stays: None
) -> None:
    """Of the base and in frames, whatever the current state has. What only the deleted files had is lost."""
    bench = Bench(memory_size=0)
    await bench.history.commit({pgno: b"first %d" % pgno for pgno in range(1, 9)})
    async with live_database(bench) as (replica, live):
        for pgno in (5, 6, 6, 7, 8, 5, 6, 7):  # TXIDs 2 to 9, frames 1 to 8
            await bench.history.commit({pgno: b"at %d" % (bench.history.txid + 1)})
            await live.apply(await replica.poll())
        await bench.history.commit({2: b"last"}, pages=4)
        await live.apply(await replica.poll())
        await bench.history.compact(1, 1, 1)
        await bench.history.compact(1, 2, 5)
        await bench.history.compact(1, 6, 10)
        for txid in range(1, 10):
            await bench.history.delete(0, txid)
        page_size = replica.snapshot.page_size
        for pgno in range(2, 9):
            assert (await page(live, pgno, page_size)).startswith(b"first %d" % pgno)
        found = {}
        for number in range(1, 9):
            try:
                found[number] = (await frame(live, number, page_size)).rstrip(b"\0")
            except FileVanished:
                continue
        assert found == {number: b"at %d" % (number + 1) for number in (1, 3, 4)}


async def test_versions_of_another_history_are_not_looked_for(
    autojump_clock: trio.testing.MockClock, base_stays: None
) -> None:
    """The replica was made anew: what readers of the old one need is gone, and nothing of the new one stands for it."""
    bench = Bench(memory_size=0)
    await bench.history.commit({pgno: b"first %d" % pgno for pgno in range(1, 9)})
    async with live_database(bench) as (replica, live):
        page_size = replica.snapshot.page_size
        anew = History(bench.history.storage)
        await anew.storage.delete([item.key for item in await anew.storage.list("")])
        for n in range(4):
            await anew.commit(dict.fromkeys(range(1, 9), b"anew %d" % n))
        bench.clock.now += 2 * LIST_INTERVAL_S
        while replica.snapshot.pos.txid != anew.txid:
            await live.apply(await replica.poll())
            bench.clock.now += 2 * LIST_INTERVAL_S
        with pytest.raises((FileVanished, DamagedFile)):
            await page(live, 3, page_size)
        with contextlib.suppress(FileVanished):
            await frame(live, 3, page_size)


# --- what a READ waits for when a file has gone ------------------------------------------------------


@pytest.mark.logs("read: not answered within 15 s")
async def test_a_read_that_looks_for_other_files_ends_in_time_and_the_next_one_finds_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench(memory_size=0)
    await bench.history.commit({pgno: b"first %d" % pgno for pgno in range(1, 9)})
    bench.meter._inner = lists = SilentLists(bench.faults)
    async with live_database(bench) as (replica, live):
        await bench.history.snapshot()
        await bench.history.delete(0, 1)
        inodes = InodeTable()
        inodes.allocate()
        node = inodes.add(DatabaseNode(inodes.allocate(), live))
        operations = Operations(inodes, Owner(0, 0), total_size=lambda: 0, limit_s=LIMIT_S)
        operations.open_to_others()
        flags = pyfuse3.FlagT(os.O_RDONLY)
        opened = await operations.open(pyfuse3.InodeT(node.inode), flags, Context())  # type: ignore[arg-type]
        page_size = replica.snapshot.page_size
        lists.silent = True
        started = trio.current_time()
        with pytest.raises(pyfuse3.FUSEError) as failed:
            await operations.read(opened.fh, page_size, page_size)
        assert failed.value.errno == errno.ETIMEDOUT
        assert trio.current_time() - started == pytest.approx(LIMIT_S)
        lists.silent = False
        assert (await operations.read(opened.fh, page_size, page_size)).startswith(b"first 2")


async def test_heals_that_bring_nothing_are_made_once_in_a_while_and_said_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "litereplica.replica.database")
    bench = Bench(memory_size=0)
    await bench.history.commit({1: b"one", 2: b"two"})
    async with live_database(bench) as (replica, live):
        await live.apply(None)
        started = trio.current_time()
        for _ in range(5):
            await live.files.heal()
        assert trio.current_time() - started == pytest.approx(4 * HEAL_PAUSE_S)
        said = [record.getMessage() for record in caplog.records if "no other files" in record.getMessage()]
        assert len(said) == 1
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(live.files.heal)
        assert replica.statistics().heals == 6, "those who wait share one"


async def test_a_read_that_looks_for_other_files_outlives_a_store_that_fails_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench(memory_size=0)
    await bench.history.commit({pgno: b"first %d" % pgno for pgno in range(1, 9)})
    async with live_database(bench) as (replica, live):
        await bench.history.snapshot()
        await bench.history.delete(0, 1)
        back_at = trio.current_time() + 10.0
        bench.faults.plan = lambda request: (
            Fault() if request.call.operation is Operation.LIST and trio.current_time() < back_at else None
        )
        assert (await page(live, 2, replica.snapshot.page_size)).startswith(b"first 2")
        assert trio.current_time() >= back_at


async def test_a_store_without_any_file_is_an_outage_and_not_a_damaged_database(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As an unmounted directory is: the absence of everything is not the absence of one file."""
    bench = Bench(memory_size=0)
    await bench.history.commit({pgno: b"first %d" % pgno for pgno in range(1, 9)})
    async with live_database(bench) as (replica, live):
        past = await replica.past_snapshots().open(1)
        page_size = replica.snapshot.page_size
        objects = bench.history.storage.objects  # type: ignore[attr-defined]
        stored = dict(objects)
        objects.clear()
        with pytest.raises(TransientStorageError, match="has no LTX file at all any more"):
            await page(live, 2, page_size)
        with pytest.raises(TransientStorageError, match="has no LTX file at all any more"):
            await past.read(2, 2)
        bench.clock.now += 2 * LIST_INTERVAL_S
        with pytest.raises(TransientStorageError, match="has no LTX file at all any more"):
            await replica.poll()
        assert "no LTX file" in replica.statistics().last_error
        objects.update(stored)
        await replica.poll()
        assert (await page(live, 2, page_size)).startswith(b"first 2")
        assert (await past.read(2, 2))[0].startswith(b"first 2")
        assert replica.statistics().last_error == ""
