"""A replica at the newest TXID: opening, polling, healing and reading, over a store in memory."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from litereplica.errors import (
    DamagedFile,
    FileVanished,
    GapError,
    NoReplica,
    PageSizeChanged,
    ReplicaError,
    StaleReplica,
    TransientStorageError,
)
from litereplica.format.encoder import Encoder
from litereplica.format.ltx import Header
from litereplica.format.names import Layout
from litereplica.format.sqlite import lock_pgno
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.current import FORGET_EVERY
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.file_holders import HeldFiles
from litereplica.replica.next_files import LIST_INTERVAL_S
from litereplica.replica.page_map import LOCATION
from litereplica.replica.snapshot import Snapshot
from litereplica.storage.wrappers import MeteredStorage, Operation
from litereplica.testing.faults import Fault, FaultStorage
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.times import asleep_s
from litereplica.types import FileInfo, Pgno
from tests.helpers.history import History
from tests.replica.observer import Observer


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A history, and the storage through which a replica sees it: metered, and failing on demand."""

    history: History = field(default_factory=History)
    clock: Clock = field(default_factory=Clock)
    round_trip_s: float = 0.0
    read_timeout_s: float = 30.0
    memory_size: int = 1 << 20
    forget_every: int = FORGET_EVERY

    def __post_init__(self) -> None:
        self.faults = FaultStorage(LatencyStorage(self.history.storage, self.round_trip_s), lambda request: None)
        self.meter = MeteredStorage(self.faults)

    @asynccontextmanager
    async def replica(self, cache_dir: Path | None = None) -> AsyncIterator[Replica]:
        async with open_replica(
            LTXStore(self.meter, Layout.S3),
            cache_dir=cache_dir,
            memory_size=self.memory_size,
            read_timeout_s=self.read_timeout_s,
            forget_every=self.forget_every,
            clock=self.clock,
        ) as replica:
            yield replica

    def requests(self) -> dict[str, int]:
        counts = self.meter.statistics().by_operation
        return {each.value: counts[each].requests for each in (Operation.GET, Operation.LIST)}

    @contextmanager
    def spending(self, *, get: int, list: int) -> Iterator[None]:
        """The body makes exactly so many requests."""
        before = self.requests()
        yield
        after = self.requests()
        assert {name: after[name] - before[name] for name in after} == {"get": get, "list": list}


async def content(replica: Replica, snapshot: Snapshot | None = None) -> dict[Pgno, bytes]:
    """The whole database of a snapshot, as it is read through the replica."""
    snapshot = snapshot or replica.snapshot
    pgnos: NDArray[np.uint32] = np.arange(1, snapshot.commit + 1, dtype=np.uint32)
    pages = await replica.read(pgnos, snapshot.pages.lookup(pgnos), around=snapshot.pages)
    return dict(zip(pgnos.tolist(), pages, strict=True))


async def read_one(replica: Replica, pgno: Pgno, *, around: bool = False) -> bytes:
    (page,) = await replica.read(*at(replica, pgno), around=replica.snapshot.pages if around else None)
    return page


def at(replica: Replica, pgno: Pgno) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
    """What `read` wants to know of one page."""
    pgnos = np.array([pgno], np.uint32)
    return pgnos, replica.snapshot.pages.lookup(pgnos)


def incompressible(n: int, size: int = 512) -> bytes:
    return np.random.default_rng(n).bytes(size)


async def large(history: History, pages: int = 1500) -> None:
    """A first file that is too large to be read whole."""
    await history.commit({pgno: incompressible(pgno) for pgno in range(1, pages + 1)})


# --- opening ----------------------------------------------------------------------------------


async def test_an_empty_store_has_no_replica() -> None:
    with pytest.raises(NoReplica):
        async with open_replica(History().store):
            raise AssertionError("opened")


async def test_opening_takes_snapshot_compacted_and_new_files_together() -> None:
    bench = Bench()
    for n in range(1, 11):
        await bench.history.commit({n: b"%d" % n, 1: b"first %d" % n})
        if n == 4:
            await bench.history.snapshot()
    await bench.history.compact(1, 5, 8)
    for n in range(1, 9):
        await bench.history.delete(0, n)
    async with bench.replica() as replica:
        assert replica.snapshot.pos.txid == 10
        assert await content(replica) == bench.history.at(10)


async def test_a_file_that_vanishes_while_opening_is_done_without(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench(round_trip_s=1.0)
    for n in range(1, 6):
        await bench.history.commit({n: b"%d" % n})
    await bench.history.compact(1, 1, 4)
    plain_list = bench.history.storage.list

    async def list_then_lose(prefix: str, *, start_after: str | None = None) -> object:
        found = await plain_list(prefix, start_after=start_after)
        if prefix == "0001/":
            await bench.history.delete(1, 1, 4)
        return found

    bench.history.storage.list = list_then_lose  # type: ignore[method-assign, assignment]  # the store changes its mind
    async with bench.replica() as replica:
        assert await content(replica) == bench.history.at(5)


async def test_a_listing_that_still_shows_deleted_files_does_not_stop_the_opening() -> None:
    bench = Bench()
    for n in range(1, 6):
        await bench.history.commit({n: b"%d" % n})
    await bench.history.compact(1, 1, 4)
    shown = await bench.history.storage.list("")
    await bench.history.delete(1, 1, 4)

    async def old_list(prefix: str, *, start_after: str | None = None) -> object:
        return [item for item in shown if item.key.startswith(prefix) and item.key > (start_after or "")]

    bench.history.storage.list = old_list  # type: ignore[method-assign, assignment]  # a store whose listings lag
    async with bench.replica() as replica:
        assert await content(replica) == bench.history.at(5)


async def test_a_file_that_lacks_a_page_is_avoided_at_the_start() -> None:
    history = History()
    await history.commit({1: b"a"})
    history.databases[1][3] = history.databases[1][1]
    await history.commit({1: b"b", 2: b"c"})
    history.commits[2] = 3
    await history.publish(0, 2, 2)
    async with open_replica(history.store) as replica:
        assert replica.snapshot.pos.txid == 1


async def test_a_file_that_claims_to_be_huge_is_refused_and_the_old_state_is_served() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a", 2: b"b"})
    async with bench.replica() as replica:
        page = bench.history.at(1)[1]
        encoder = Encoder(Header(page_size=len(page), commit=0xFFFFFFFE, min_txid=2, max_txid=2, timestamp_ms=2))
        data = encoder.start() + encoder.page(1, page) + encoder.finish()
        await bench.history.storage.put(bench.history.store.key(FileInfo(0, 2, 2, len(data))), data)
        tracemalloc.start()
        with pytest.raises(DamagedFile, match="page 3 is in no file"):
            await replica.poll()
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()
        assert replica.snapshot.pos.txid == 1
        assert await content(replica) == bench.history.at(1)


async def test_opening_begins_where_the_page_size_changed() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a", 2: b"b"})
    bench.history.page_size = 1024
    bench.history.databases[1] = {}
    bench.history.commits[1] = 0
    await bench.history.commit({1: b"A"}, pages=2)
    async with bench.replica() as replica:
        assert replica.snapshot.page_size == 1024
        assert await content(replica) == bench.history.at(2)


async def test_a_damaged_file_is_avoided_while_others_cover_it() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    await bench.history.commit({2: b"b"})
    await bench.history.compact(1, 1, 2)
    damage(bench.history, FileInfo(1, 1, 2, 0), 150)
    async with bench.replica() as replica:
        assert await content(replica) == bench.history.at(2)
    damage(bench.history, FileInfo(0, 1, 1, 0), 150)
    with pytest.raises(DamagedFile, match=r"0000000000000001-000000000000000[12]"):
        async with bench.replica():
            raise AssertionError("opened")


# --- polling ----------------------------------------------------------------------------------


async def test_a_poll_applies_all_that_is_new() -> None:
    history = History()
    await history.commit({1: b"a", 2: b"b"})
    async with open_replica(history.store) as replica:
        assert await content(replica) == history.at(1)
        assert await replica.poll() is None
        await history.commit({2: b"c"})
        await history.commit({2: b"d"}, pages=4)
        update = await replica.poll()
        assert update is not None
        assert update.snapshot is replica.snapshot
        assert update.changed.tolist() == [2, 3, 4]
        assert not update.relocated
        assert replica.snapshot.pos.txid == 3
        assert await content(replica) == history.at(3)


async def test_an_idle_poll_is_one_get_and_a_listing_comes_now_and_then() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        with bench.spending(get=20, list=0):
            for _ in range(20):
                assert await replica.poll() is None
        bench.clock.now += LIST_INTERVAL_S
        with bench.spending(get=2, list=1):
            assert await replica.poll() is None
            assert await replica.poll() is None


async def test_a_poll_with_one_new_file_takes_two_gets_and_its_pages_none() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a", 2: b"b"})
    async with bench.replica() as replica:
        await bench.history.commit({2: b"c"})
        with bench.spending(get=2, list=0):
            assert await replica.poll() is not None
            assert await content(replica) == bench.history.at(2)


async def test_many_waiting_files_are_one_update(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench(round_trip_s=1.0)
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        for n in range(100):
            await bench.history.commit({n + 2: b"%d" % n})
        started = trio.current_time()
        update = await replica.poll()
        assert update is not None
        assert update.snapshot.pos.txid == 101
        assert update.changed.tolist() == list(range(2, 102))
        assert trio.current_time() - started < 30


@pytest.mark.parametrize(
    ("first", "last"), [pytest.param(1, 5, id="bridged by a snapshot"), pytest.param(2, 5, id="straddled by L1")]
)
async def test_a_pruned_l0_is_found_in_another_level(first: int, last: int) -> None:
    bench = Bench()
    for n in range(1, 4):
        await bench.history.commit({n: b"%d" % n})
    async with bench.replica() as replica:
        for n in range(4, 7):
            await bench.history.commit({n: b"%d" % n})
        await bench.history.publish(9 if first == 1 else 1, first, last)
        for n in (1, 2, 3, 4, 5):
            await bench.history.delete(0, n)
        assert await replica.poll() is None
        bench.clock.now += LIST_INTERVAL_S
        update = await replica.poll()
        assert update is not None
        assert replica.snapshot.pos.txid == 6
        assert {4, 5, 6} <= set(update.changed.tolist())
        assert await content(replica) == bench.history.at(6)


async def test_a_file_that_leads_on_is_preferred_to_a_snapshot_that_changes_every_page() -> None:
    bench = Bench()
    await bench.history.commit({}, pages=20)
    async with bench.replica() as replica:
        for n in range(2, 5):
            await bench.history.commit({n: b"%d" % n})
        await bench.history.snapshot()
        await bench.history.compact(1, 2, 4)
        await bench.history.delete(0, 2)
        bench.clock.now += LIST_INTERVAL_S
        update = await replica.poll()
        assert update is not None
        assert update.changed.tolist() == [2, 3, 4]
        assert await content(replica) == bench.history.at(4)


async def test_a_gap_is_told_of_until_it_is_bridged() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        for n in range(3):
            await bench.history.commit({1: b"%d" % n})
        await bench.history.delete(0, 2)
        for _ in range(3):
            bench.clock.now += LIST_INTERVAL_S
            assert await replica.poll() is None
        statistics = replica.statistics()
        assert statistics.polls_behind == 3
        assert statistics.newest_txid == 4
        assert "0000000000000001" in statistics.reason
        await bench.history.compact(1, 2, 3)
        bench.clock.now += LIST_INTERVAL_S
        assert await replica.poll() is not None
        assert replica.snapshot.pos.txid == 4
        assert (replica.statistics().polls_behind, replica.statistics().reason) == (0, "")


async def test_a_poll_that_fails_changes_nothing() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        before = replica.snapshot
        await bench.history.commit({1: b"b"})
        bench.faults.plan = lambda request: None if request.call.operation is Operation.LIST else Fault()
        with pytest.raises(TransientStorageError):
            await replica.poll()
        assert replica.snapshot is before
        assert await content(replica) == bench.history.at(1)
        assert replica.statistics().last_error
        bench.faults.plan = lambda request: None
        assert await replica.poll() is not None
        assert await content(replica) == bench.history.at(2)
        assert not replica.statistics().last_error


async def test_a_damaged_l0_stops_the_poll_until_another_file_covers_it() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        await bench.history.commit({1: b"b"})
        await bench.history.commit({1: b"c"})
        damage(bench.history, FileInfo(0, 2, 2, 0), 150)
        with pytest.raises(DamagedFile, match="0000000000000002-0000000000000002"):
            await replica.poll()
        assert replica.snapshot.pos.txid == 1
        await bench.history.compact(1, 2, 3)
        bench.clock.now += LIST_INTERVAL_S
        assert await replica.poll() is not None
        assert await content(replica) == bench.history.at(3)


async def test_a_new_file_that_was_seen_half_written_is_used_like_any_other_once_it_is_whole() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        await bench.history.commit({1: b"b"})
        assert isinstance(bench.history.storage, MemoryStorage)
        objects = bench.history.storage.objects
        key = bench.history.store.key(FileInfo(0, 2, 2, 0))
        whole = objects[key]
        objects[key] = replace(whole, data=whole.data[:150])
        with pytest.raises(DamagedFile):
            await replica.poll()
        objects[key] = whole
        assert await replica.poll() is not None
        await replica.heal()  # by a plan of all files: nothing else covers this one
        assert await content(replica) == bench.history.at(2)


async def test_a_change_of_the_page_size_is_told() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        bench.history.page_size = 1024
        await bench.history.commit({1: b"A"})
        with pytest.raises(PageSizeChanged) as caught:
            await replica.poll()
        assert (caught.value.before, caught.value.after) == (512, 1024)
        assert replica.snapshot.pos.txid == 1


async def test_a_store_that_fell_behind_is_said_once_and_what_is_there_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    for n in range(5):
        await bench.history.commit({1: b"%d" % n, 2: b"%d" % n})
    async with bench.replica() as replica:
        old = await content(replica)
        made_anew(bench.history)
        await bench.history.commit({1: b"other"}, pages=2)
        for _ in range(3):
            bench.clock.now += LIST_INTERVAL_S
            assert await replica.poll() is None
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert replica.snapshot.pos.txid == 5
        assert await content(replica) == old
        for n in range(5):
            await bench.history.commit({1: b"other %d" % n})
        bench.clock.now += LIST_INTERVAL_S
        update = await replica.poll()
        assert update is not None
        assert update.changed.tolist() == [1, 2]
        assert await content(replica) == bench.history.at(6)


@pytest.mark.logs("was replaced or restored", "reading the whole database anew")
async def test_a_replica_made_anew_up_to_the_same_txid_is_read_anew() -> None:
    bench = Bench()
    for n in range(3):
        await bench.history.commit({1: b"%d" % n, 2: b"%d" % n})
    async with bench.replica() as replica:
        bench.clock.now += LIST_INTERVAL_S
        assert await replica.poll() is None
        made_anew(bench.history)
        for n in range(3):
            await bench.history.commit({1: b"other %d" % n}, pages=4)
        bench.clock.now += LIST_INTERVAL_S
        update = await replica.poll()
        assert update is not None
        assert update.changed.tolist() == [1, 2, 3, 4]
        assert await content(replica) == bench.history.at(3)


# --- healing ----------------------------------------------------------------------------------


async def test_vanished_files_are_healed_at_the_same_position() -> None:
    bench = Bench(memory_size=0)
    for n in range(1, 6):
        await bench.history.commit({n: b"%d" % n})
    async with bench.replica() as replica:
        before = replica.snapshot
        await bench.history.snapshot()
        for n in range(1, 5):
            await bench.history.delete(0, n)
        with pytest.raises(FileVanished):
            await read_one(replica, 1)
        update = await replica.heal()
        assert update is not None
        assert (update.snapshot.pos, update.changed.tolist(), update.relocated) == (before.pos, [], True)
        assert await content(replica) == bench.history.at(5)


async def test_healing_goes_on_to_a_later_position_where_ours_is_no_longer_the_end_of_a_file() -> None:
    bench = Bench(memory_size=0)
    for n in range(1, 4):
        await bench.history.commit({n: b"%d" % n})
    async with bench.replica() as replica:
        await bench.history.commit({2: b"new"})
        await bench.history.compact(1, 1, 4)
        for n in range(1, 4):
            await bench.history.delete(0, n)
        update = await replica.heal()
        assert update is not None
        assert replica.snapshot.pos.txid == 4
        assert 2 in update.changed.tolist()
        assert await content(replica) == bench.history.at(4)


async def test_healing_to_a_later_position_does_not_take_old_pages_for_new_ones(tmp_path: Path) -> None:
    bench = Bench()
    await large(bench.history)
    async with bench.replica(tmp_path / "cache") as replica:
        await content(replica)
        await bench.history.commit({5: b"new"})
        await bench.history.compact(1, 1, 2)
        await bench.history.delete(0, 1)
        assert await replica.heal() is not None
        assert replica.snapshot.pos.txid == 2
        assert await content(replica) == bench.history.at(2)


async def test_the_poll_after_healing_looks_for_a_gap_at_once() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        for n in range(3):
            await bench.history.commit({1: b"%d" % n})
        await bench.history.compact(1, 2, 3)
        await bench.history.delete(0, 2)
        assert await replica.poll() is None
        assert await replica.heal() is not None
        assert await replica.poll() is not None
        assert await content(replica) == bench.history.at(4)


async def test_a_poll_that_gets_no_answer_is_in_the_status_before_it_fails() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica, trio.open_nursery() as nursery:
        bench.meter._inner = LatencyStorage(MemoryStorage(), 1e9)
        nursery.start_soon(replica.poll)
        await trio.testing.wait_all_tasks_blocked()
        assert replica.statistics().last_error == ""
        bench.clock.now += 4
        assert replica.statistics().last_error == "a poll has been under way for 4 s"
        nursery.cancel_scope.cancel()
    assert replica.statistics().last_error == ""


async def test_those_who_heal_at_the_same_time_share_it(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench(round_trip_s=1.0)
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        updates = []

        async def heal() -> None:
            updates.append(await replica.heal())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(heal)
        assert sorted(update is None for update in updates) == [False, True, True, True, True]
        assert replica.statistics().heals == 1


async def test_healing_without_a_way_back_to_the_position_changes_nothing() -> None:
    bench = Bench()
    for n in range(1, 4):
        await bench.history.commit({n: b"%d" % n})
    async with bench.replica() as replica:
        before = replica.snapshot
        await bench.history.delete(0, 3)
        with pytest.raises(GapError) as caught:
            await replica.heal()
        assert (caught.value.have, caught.value.want) == (2, 3)
        assert replica.snapshot is before


async def test_pages_at_hand_stay_at_hand_when_their_files_are_replaced(tmp_path: Path) -> None:
    bench = Bench()
    await large(bench.history)
    await bench.history.commit({5: b"new"})
    async with bench.replica(tmp_path / "cache") as replica:
        await content(replica)
        await bench.history.snapshot()
        await bench.history.delete(0, 1)
        assert await replica.heal() is not None
        with bench.spending(get=0, list=0):
            assert await content(replica) == bench.history.at(2)
    bench.memory_size = 0
    async with bench.replica(tmp_path / "cache") as replica:
        with bench.spending(get=0, list=0):
            assert await content(replica) == bench.history.at(2)


# --- reading ----------------------------------------------------------------------------------


async def test_pages_come_in_the_order_asked_however_often() -> None:
    bench = Bench()
    await bench.history.commit({n: b"%d" % n for n in range(1, 9)})
    async with bench.replica() as replica:
        pgnos = np.array([7, 1, 7, 3], np.uint32)
        pages = await replica.read(pgnos, replica.snapshot.pages.lookup(pgnos))
        assert [page.rstrip(b"\0") for page in pages] == [b"7", b"1", b"7", b"3"]


async def test_the_lock_page_is_zeroes_and_any_other_absent_page_an_error() -> None:
    history = History(page_size=65536)
    await history.commit({1: b"a"})
    lock = lock_pgno(65536)
    nowhere = np.zeros(1, LOCATION)
    async with open_replica(history.store) as replica:
        assert await replica.read(np.array([lock], np.uint32), nowhere) == [bytes(65536)]
        with pytest.raises(ReplicaError, match="page 2"):
            await replica.read(np.array([2], np.uint32), nowhere)


async def test_a_cold_page_brings_its_neighbours_in_one_request() -> None:
    bench = Bench()
    await large(bench.history)
    async with bench.replica() as replica:
        blocks: list[list[int]] = []
        replica.subscribe(Observer(on_block=blocks.append))
        with bench.spending(get=1, list=0):
            await read_one(replica, 100, around=True)
            await read_one(replica, 101)
            await read_one(replica, 300)
        assert len(blocks) == 1
        assert {1, 100, 101, 300} <= set(blocks[0])
        with bench.spending(get=1, list=0):
            await read_one(replica, 1400)
        assert blocks[1:] == [[1400]]


async def test_a_whole_database_is_read_in_few_requests() -> None:
    bench = Bench()
    await large(bench.history, 8000)
    async with bench.replica() as replica:
        with bench.spending(get=5, list=0):  # 4.2 MB in requests of up to 1 MiB
            assert len(await content(replica)) == 8000


async def test_readers_of_the_same_pages_share_one_request(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench(round_trip_s=1.0)
    await large(bench.history)
    async with bench.replica() as replica:
        seen = []

        async def read(pgno: int) -> None:
            seen.append(await read_one(replica, pgno, around=True))

        with bench.spending(get=1, list=0):
            async with trio.open_nursery() as nursery:
                for pgno in (10, 10, 10, 10, 10, 10):
                    nursery.start_soon(read, pgno)
        assert len(seen) == 6


async def test_neighbours_that_are_on_their_way_are_not_asked_for_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench(round_trip_s=1.0)
    await large(bench.history)
    async with bench.replica() as replica:
        brought: list[int] = []
        replica.subscribe(Observer(on_block=brought.extend))
        with bench.spending(get=2, list=0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_one, replica, 10)
                await trio.sleep(0.1)
                assert await read_one(replica, 11, around=True) == bench.history.at(1)[11]
        assert len(brought) == len(set(brought)) > 100


async def test_a_reader_that_is_cancelled_leaves_the_others_their_pages(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench(round_trip_s=2.0)
    await large(bench.history)
    async with bench.replica() as replica:
        with bench.spending(get=1, list=0):
            async with trio.open_nursery() as nursery:

                async def impatient() -> None:
                    with trio.move_on_after(1):
                        await read_one(replica, 10, around=True)
                        raise AssertionError("answered too early")

                nursery.start_soon(impatient)
                await trio.sleep(0.5)
                assert await read_one(replica, 10) == bench.history.at(1)[10]


async def test_an_uncached_read_of_a_silent_store_fails_in_time(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench(read_timeout_s=30)
    await large(bench.history)
    async with bench.replica() as replica:
        await read_one(replica, 10, around=True)
        silent = LatencyStorage(MemoryStorage(), 1e9)
        bench.faults._inner = silent
        started = trio.current_time()
        with pytest.raises(TransientStorageError):
            await read_one(replica, 1400)
        assert trio.current_time() - started <= 30
        assert await read_one(replica, 10) == bench.history.at(1)[10]


async def test_a_replica_becomes_stale_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    history = History()
    await history.commit({1: b"one"})
    async with open_replica(history.store) as replica:
        await replica.poll()
        replica.require_fresh(60)
        asleep = asleep_s()
        monkeypatch.setattr("litereplica.replica.database.asleep_s", lambda: asleep + 3600.0)
        assert 3600 <= replica.staleness_s < 3660
        with pytest.raises(StaleReplica):
            replica.require_fresh(60)
        await replica.poll()
        replica.require_fresh(60)


async def test_who_comes_when_the_store_is_back_does_not_fail_with_those_who_waited_in_vain(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench(read_timeout_s=30)
    await large(bench.history)
    async with bench.replica() as replica:
        working = bench.faults._inner
        bench.faults._inner = LatencyStorage(MemoryStorage(), 1e9)

        async def wait_in_vain() -> None:
            with pytest.raises(TransientStorageError):
                await read_one(replica, 1400)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_vain)
            await trio.sleep(29)
            bench.faults._inner = working
            assert await read_one(replica, 1400) == bench.history.at(1)[1400]


async def test_a_damaged_frame_is_an_error_that_names_file_and_page_and_healing_avoids_the_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    await large(bench.history)
    async with bench.replica() as replica:
        file_offset = int(replica.snapshot.pages.lookup(np.array([700], np.uint32))["offset"][0])
        damage(bench.history, FileInfo(0, 1, 1, 0), file_offset)
        for _ in range(2):
            with pytest.raises(DamagedFile, match=r"0000000000000001-0000000000000001\.ltx: page 700") as caught:
                await read_one(replica, 700, around=True)
        assert caught.value.key == "0000/0000000000000001-0000000000000001.ltx"
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert await read_one(replica, 701) == bench.history.at(1)[701]
        await bench.history.snapshot()
        assert await replica.heal() is not None
        assert await read_one(replica, 700) == bench.history.at(1)[700]


@pytest.mark.logs("reading the whole database anew")
async def test_a_file_that_was_replaced_under_its_name_is_not_read() -> None:
    bench = Bench(memory_size=0)
    await large(bench.history)
    async with bench.replica() as replica:
        await read_one(replica, 10)
        made_anew(bench.history)
        await bench.history.commit({pgno: incompressible(pgno + 1) for pgno in range(1, 1501)})
        with pytest.raises(FileVanished):
            await read_one(replica, 10)
        update = await replica.heal()
        assert update is not None
        assert len(update.changed) == 1500
        assert await read_one(replica, 10) == bench.history.at(1)[10]


async def test_pages_survive_a_restart_in_the_cache_directory(tmp_path: Path) -> None:
    bench = Bench()
    await large(bench.history)
    async with bench.replica(tmp_path / "cache") as replica:
        await content(replica)
    bench.memory_size = 0
    async with bench.replica(tmp_path / "cache") as replica:
        with bench.spending(get=0, list=0):
            assert await content(replica) == bench.history.at(1)
        assert replica.statistics().pages_from_disk == 1500


async def test_files_that_nobody_needs_are_forgotten() -> None:
    bench = Bench(forget_every=10)
    await bench.history.commit({1: b"a", 2: b"b"})
    async with bench.replica() as replica:
        pinned = replica.snapshot
        for n in range(100):
            await bench.history.commit({1: b"%d" % n})
            await replica.poll()
        assert replica.statistics().files <= 2 + 10
        assert await content(replica, pinned) == bench.history.at(1)
        del pinned
        txid = replica.snapshot.pos.txid
        held = replica.snapshot.pages.lookup(np.array([1], np.uint32))
        holder = HeldFiles(held["file"].tolist(), replica.holders)
        for n in range(30):
            await bench.history.commit({1: b"%d" % n})
            await replica.poll()
        assert await replica.read(np.array([1], np.uint32), held) == [bench.history.at(txid)[1]]
        del holder
        for n in range(30):
            await bench.history.commit({1: b"%d" % n})
            await replica.poll()
        with pytest.raises(FileVanished):
            await replica.read(np.array([1], np.uint32), held)


async def test_statistics_tell_where_pages_came_from(tmp_path: Path) -> None:
    bench = Bench()
    await large(bench.history)
    async with bench.replica() as replica:
        await read_one(replica, 1)
        await read_one(replica, 1)
        statistics = replica.statistics()
        assert (statistics.pages_from_store, statistics.pages_from_memory, statistics.pages_from_disk) == (1, 1, 0)
        assert (statistics.pos.txid, statistics.commit, statistics.page_size) == (1, 1500, 512)
        assert statistics.requests == bench.meter.statistics()


def damage(history: History, info: FileInfo, position: int) -> None:
    """Overwrite bytes of a file, as a bad disk does."""
    storage = history.storage
    assert isinstance(storage, MemoryStorage)
    key = history.store.key(info)
    stored = storage.objects[key]
    data = stored.data[:position] + bytes(8) + stored.data[position + 8 :]
    storage.objects[key] = replace(stored, data=data)


def made_anew(history: History) -> None:
    """Someone deletes the replica and starts again from TXID 1."""
    assert isinstance(history.storage, MemoryStorage)
    history.storage.objects.clear()
    history.txid = 0
    history.databases = {0: {}}
    history.commits = {0: 0}
    history.supplied = {}
    history.wal_salts = (history.wal_salts[0] + 1, 7)
    history.clock_ms += 1000
    history.lineage += 1000 if history.lineage else 0
