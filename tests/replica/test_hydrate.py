"""The whole database, fetched in the background."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from litereplica.errors import DamagedFile
from litereplica.format.names import Layout
from litereplica.ltxstore import claimed_files
from litereplica.ltxstore.store import LTXStore
from litereplica.replica import hydrate
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.file_parts import plan_parts
from litereplica.replica.page_map import LOCATION, PageMap
from litereplica.replica.request_costs import Purpose
from litereplica.replica.statistics import HydrationState
from litereplica.storage.wrappers import Operation
from litereplica.testing.faults import Fault, FaultStorage, Request
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.types import Pgno
from tests.helpers.history import History

PAGES = 3000
PAGE_SIZE = 1024
DEADLINE_S = 20.0


def incompressible(n: int) -> bytes:
    return np.random.default_rng(n).bytes(PAGE_SIZE)


class Bench:
    """A database of one large file, and some transactions after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hydrate, "SEGMENT", 256 * 1024)
        monkeypatch.setattr(hydrate, "RETRY_S", 0.01)
        monkeypatch.setattr(hydrate, "START_DELAY_S", 0.0)
        self.history = History(page_size=PAGE_SIZE)
        self.memory = self.history.storage
        assert isinstance(self.memory, MemoryStorage)
        self.objects = self.memory.objects
        self.latency = LatencyStorage(self.memory, 0.0)
        self.faults = FaultStorage(self.latency, lambda request: None)
        self.cache_size = 64 << 20

    async def fill(self) -> None:
        await self.history.commit({pgno: incompressible(pgno) for pgno in range(1, PAGES + 1)})
        for n in range(3):
            await self.history.commit({100 * n + 1: b"changed %d" % n})

    @asynccontextmanager
    async def replica(self, cache_dir: Path | None, *, memory_size: int = 100_000) -> AsyncIterator[Replica]:
        store = LTXStore(self.faults, Layout.S3)
        async with open_replica(
            store, cache_dir=cache_dir, cache_size=self.cache_size, memory_size=memory_size
        ) as replica:
            yield replica

    @asynccontextmanager
    async def hydrated(self, cache_dir: Path | None, **options: object) -> AsyncIterator[Replica]:
        """A replica that has been hydrated, and goes on with it."""
        async with self.replica(cache_dir) as replica, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: replica.hydrate(**options))  # type: ignore[arg-type]
            await until(replica, HydrationState.COMPLETE)
            yield replica
            nursery.cancel_scope.cancel()


async def until(replica: Replica, state: HydrationState) -> None:
    with trio.fail_after(DEADLINE_S):
        while replica.statistics().hydration.state is not state:  # noqa: ASYNC110
            await trio.sleep(0.002)


def gets(replica: Replica, purpose: Purpose) -> int:
    entry = replica.statistics().ledger[purpose].by_operation.get(Operation.GET)
    return entry.requests if entry is not None else 0


async def content(replica: Replica) -> dict[Pgno, bytes]:
    snapshot = replica.snapshot
    pgnos: NDArray[np.uint32] = np.arange(1, snapshot.commit + 1, dtype=np.uint32)
    pages = await replica.read(pgnos, snapshot.pages.lookup(pgnos), around=snapshot.pages)
    return dict(zip(pgnos.tolist(), pages, strict=True))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


# --- the plan ---------------------------------------------------------------------------------


def test_parts_cover_the_file_and_are_cut_between_frames() -> None:
    rows = np.zeros(5000, LOCATION)
    rows["file"], rows["size"] = 1, 700
    rows["offset"] = 100 + 700 * np.arange(5000)
    pages = PageMap.empty(1024).applied(np.arange(1, 5001, dtype=np.uint32), rows, commit=5000)
    newer = rows[:2].copy()
    newer["file"] = 2
    pages = pages.applied(np.array([3, 2000], np.uint32), newer, commit=5000)
    size = 100 + 700 * 5000 + 999
    parts = list(plan_parts(pages, 1, size, part_size=10_000))
    assert [parts[0].start, parts[-1].stop] == [0, size]
    assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert all((part.start - 100) % 700 == 0 for part in parts[1:])
    assert max(part.stop - part.start for part in parts) < 10_000 + 2 * 700
    planned = [pgno for part in parts for pgno in part.pgnos.tolist()]
    assert planned == [pgno for pgno in range(1, 5001) if pgno not in (3, 2000)]
    incomplete = [part for part in parts[1:-1] if not part.has_every_frame]
    assert len(incomplete) == 1
    assert (1999 in incomplete[0].pgnos) or (2001 in incomplete[0].pgnos)


# --- what it brings ---------------------------------------------------------------------------


async def test_afterwards_every_page_is_read_without_a_request(bench: Bench, tmp_path: Path) -> None:
    await bench.fill()
    async with bench.hydrated(tmp_path / "cache") as replica:
        statistics = replica.statistics().hydration
        assert (statistics.pages, statistics.pages_missing, statistics.files_verified) == (PAGES, 0, 1)
        assert gets(replica, Purpose.HYDRATE) == -(-PAGES // 252)  # parts of 256 KiB
        assert await content(replica) == bench.history.at(4)
        assert gets(replica, Purpose.PAGE) == gets(replica, Purpose.AHEAD) == 0


async def test_a_disk_that_is_slower_than_the_store_gets_every_page(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("litereplica.replica.disk_pages.MAX_PENDING", 700 * PAGE_SIZE)
    await bench.fill()
    async with bench.hydrated(tmp_path / "cache") as replica:
        assert await content(replica) == bench.history.at(4)
        assert gets(replica, Purpose.PAGE) == 0


async def test_memory_holds_a_small_database_without_a_disk(bench: Bench) -> None:
    await bench.fill()
    async with bench.replica(None, memory_size=8 << 20) as replica, trio.open_nursery() as nursery:
        nursery.start_soon(replica.hydrate)
        await until(replica, HydrationState.COMPLETE)
        assert await content(replica) == bench.history.at(4)
        assert gets(replica, Purpose.PAGE) == 0
        nursery.cancel_scope.cancel()


async def test_a_database_that_does_not_fit_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    await bench.fill()
    bench.cache_size = PAGES * PAGE_SIZE
    async with bench.replica(tmp_path / "cache") as replica, trio.open_nursery() as nursery:
        nursery.start_soon(replica.hydrate)
        await until(replica, HydrationState.TOO_LARGE)
        assert gets(replica, Purpose.HYDRATE) == 0
        nursery.cancel_scope.cancel()


async def test_after_a_restart_nothing_that_is_at_hand_is_fetched_again(bench: Bench, tmp_path: Path) -> None:
    await bench.fill()
    async with bench.hydrated(tmp_path / "cache"):
        pass
    async with bench.hydrated(tmp_path / "cache") as replica:
        assert gets(replica, Purpose.HYDRATE) == 0
        assert await content(replica) == bench.history.at(4)


@pytest.mark.logs("hydration pauses")
async def test_hydration_that_was_interrupted_goes_on_where_it_stopped_and_still_checks_the_file(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.fill()
    asked = 0

    def fail_from_the_sixth(request: Request) -> Fault | None:
        nonlocal asked
        asked += request.call.key.startswith("0000/")
        return Fault() if asked > 10 else None

    async with bench.replica(tmp_path / "cache") as replica, trio.open_nursery() as nursery:
        bench.faults.plan = fail_from_the_sixth
        nursery.start_soon(replica.hydrate)
        await until(replica, HydrationState.WAITING)
        some = replica.statistics().hydration.pages_fetched
        assert 0 < some < PAGES
        nursery.cancel_scope.cancel()
    bench.faults.plan = lambda request: None
    async with bench.hydrated(tmp_path / "cache") as replica:
        statistics = replica.statistics().hydration
        assert gets(replica, Purpose.HYDRATE) < 12
        assert statistics.files_verified == 1
        assert await content(replica) == bench.history.at(4)


async def test_new_transactions_are_hydrated_too(bench: Bench, tmp_path: Path) -> None:
    await bench.fill()
    async with bench.hydrated(tmp_path / "cache") as replica:
        await bench.history.commit({pgno: incompressible(pgno + 1) for pgno in range(500, 1200)})
        assert await replica.poll() is not None
        with trio.fail_after(DEADLINE_S):
            while replica.statistics().hydration.files_verified < 2:  # noqa: ASYNC110
                await trio.sleep(0.002)
        assert await content(replica) == bench.history.at(5)
        assert gets(replica, Purpose.PAGE) == 0


async def test_of_a_file_that_is_mostly_superseded_only_the_rest_is_fetched(bench: Bench, tmp_path: Path) -> None:
    await bench.fill()
    await bench.history.commit({pgno: incompressible(pgno + 1) for pgno in range(1, PAGES - 20)})
    async with bench.hydrated(tmp_path / "cache") as replica:
        entry = replica.statistics().ledger[Purpose.HYDRATE].by_operation[Operation.GET]
        assert entry.bytes_received < PAGES * PAGE_SIZE * 1.2
        assert replica.statistics().hydration.files_verified == 1
        assert await content(replica) == bench.history.at(5)


async def test_each_of_many_small_files_is_read_once_however_far_apart_its_pages_are(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claimed_files, "KEPT_BYTES", 0)
    await bench.history.commit({1: b"a"}, pages=PAGES)
    for n in range(20):
        await bench.history.commit({pgno: incompressible(n) for pgno in range(n + 1, PAGES, PAGES // 8)})
    async with bench.replica(tmp_path / "opening") as replica:
        files = len(replica.snapshot.pages.files())
    async with bench.hydrated(tmp_path / "cache") as replica:
        assert gets(replica, Purpose.HYDRATE) == files == 21
        assert await content(replica) == bench.history.at(21)
        assert gets(replica, Purpose.PAGE) == 0


@pytest.mark.logs("LTX file checksum is")
async def test_a_small_file_that_is_damaged_does_not_keep_the_others_from_being_fetched(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claimed_files, "KEPT_BYTES", 0)
    await bench.history.commit({1: b"a"}, pages=PAGES)
    for n in range(6):
        await bench.history.commit({n + 1: incompressible(n)})
    async with bench.replica(tmp_path / "cache", memory_size=0) as replica:
        damaged = bench.history.store.key(next(info for info in replica.ltx_files() if info.max_txid == 3))
        stored = bench.objects[damaged]
        bench.objects[damaged] = replace(stored, data=stored.data[:150] + b"x" + stored.data[151:])
        with pytest.raises(DamagedFile):
            await replica._hydrator._pass(replica.snapshot.pages)
        assert (
            gets(replica, Purpose.HYDRATE) == 7 + 2
        )  # the damaged one twice, and its trailer, since its ETag is another
        await bench.history.compact(1, 3, 4)
        assert await replica.poll() is not None  # other files have its pages
        await replica._hydrator._pass(replica.snapshot.pages)
        assert await content(replica) == bench.history.at(7)


async def test_pages_are_offered_to_the_kernel_within_the_budget(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.fill()
    offered: dict[int, bytes] = {}

    async def push(pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        assert (replica.snapshot.pages.lookup(pgnos) == locations).all()
        offered.update(zip(pgnos.tolist(), pages, strict=True))

    for round in range(2):  # the second time they come from the disk
        offered.clear()
        async with bench.replica(tmp_path / "cache") as replica, trio.open_nursery() as nursery:
            nursery.start_soon(partial(replica.hydrate, push=push))
            await until(replica, HydrationState.COMPLETE)
            assert offered == bench.history.at(4)
            assert (gets(replica, Purpose.HYDRATE) == 0) == (round == 1)
            nursery.cancel_scope.cancel()
    offered.clear()
    monkeypatch.setattr(hydrate, "KERNEL_BUDGET", 500 * PAGE_SIZE)
    async with bench.replica(tmp_path / "other") as replica, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: replica.hydrate(push=push))
        await until(replica, HydrationState.COMPLETE)
        assert 200 < len(offered) <= 500
        nursery.cancel_scope.cancel()


# --- manners ----------------------------------------------------------------------------------


async def test_the_rate_limits_the_requests(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    await bench.fill()
    store = bench.objects["0000/0000000000000001-0000000000000001.ltx"]
    started = trio.current_time()
    autojump_clock.autojump_threshold = 0.05  # decoding is in threads
    async with bench.replica(None, memory_size=8 << 20) as replica, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: replica.hydrate(rate=100_000))
        with trio.fail_after(1000):
            while replica.statistics().hydration.state is not HydrationState.COMPLETE:  # noqa: ASYNC110
                await trio.sleep(1)
        assert trio.current_time() - started >= len(store.data) / 100_000
        nursery.cancel_scope.cancel()


async def test_readers_go_first_and_hydration_still_goes_on(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    await bench.fill()
    autojump_clock.autojump_threshold = 0.05
    async with bench.replica(None, memory_size=8 << 20) as replica, trio.open_nursery() as nursery:
        bench.latency._one_way_s = 0.05

        async def read_without_end() -> None:
            while True:
                await replica._reader._fetcher.fetch(
                    np.array([9], np.uint32), replica.snapshot.pages.lookup(np.array([9], np.uint32)), None, window=1
                )

        nursery.start_soon(read_without_end)
        nursery.start_soon(read_without_end)
        await trio.sleep(0.01)
        requests: list[Request] = []
        bench.faults.plan = lambda request: requests.append(request)
        nursery.start_soon(replica.hydrate)
        await trio.sleep(0.1 - 0.02)
        assert requests == []
        with trio.fail_after(30):
            while replica.statistics().hydration.state is not HydrationState.COMPLETE:  # noqa: ASYNC110
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


# --- damage -----------------------------------------------------------------------------------


def flip_a_literal(bench: Bench, key: str) -> None:
    """A bit of a page that LZ4 stores as it is: every frame still decodes."""
    stored = bench.objects[key]
    data = bytearray(stored.data)
    data[600_000] ^= 1
    bench.objects[key] = replace(stored, data=bytes(data))


async def test_a_file_with_a_wrong_crc_is_not_read_any_more_and_others_take_its_place(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.fill()
    await bench.history.snapshot()
    right = bench.history.at(4)
    flip_a_literal(bench, "0009/0000000000000001-0000000000000004.ltx")
    async with bench.replica(tmp_path / "cache") as replica, trio.open_nursery() as nursery:
        nursery.start_soon(replica.hydrate)
        await until(replica, HydrationState.WAITING)
        assert "0009/0000000000000001-0000000000000004.ltx: LTX file checksum" in caplog.text
        with pytest.raises(DamagedFile):
            await content(replica)
        update = await replica.poll()
        assert update is not None
        assert set(range(1, PAGES + 1)) == set(update.changed.tolist())
        assert await content(replica) == right
        await until(replica, HydrationState.COMPLETE)
        assert await content(replica) == right
        nursery.cancel_scope.cancel()


@pytest.mark.logs("LTX file checksum", "hydration pauses")
async def test_pages_at_hand_do_not_keep_a_damaged_file_from_being_found(bench: Bench, tmp_path: Path) -> None:
    """As after a restart in the middle."""
    await bench.fill()
    flip_a_literal(bench, "0000/0000000000000001-0000000000000001.ltx")
    async with bench.replica(tmp_path / "cache") as replica:
        pgnos: NDArray[np.uint32] = np.arange(2000, PAGES + 1, dtype=np.uint32)  # the damaged page is before them
        await replica.read(pgnos, replica.snapshot.pages.lookup(pgnos))
    async with bench.replica(tmp_path / "cache") as replica, trio.open_nursery() as nursery:
        nursery.start_soon(replica.hydrate)
        await until(replica, HydrationState.WAITING)
        with pytest.raises(DamagedFile):
            await content(replica)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cached", [range(300, 1100), range(570, 590), range(0)], ids=["a part", "some pages", "none"])
async def test_a_page_that_was_changed_on_the_way_gives_way_to_the_right_one_and_the_file_is_sound(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture, cached: range
) -> None:
    """Without sums nobody could tell when it came; the check of the whole file does."""
    caplog.set_level(logging.INFO)
    key = "0000/0000000000000001-0000000000000001.ltx"
    await bench.fill()
    right = bench.objects[key]
    flip_a_literal(bench, key)
    if cached:
        async with bench.replica(tmp_path / "cache") as replica:
            pgnos: NDArray[np.uint32] = np.array(cached, np.uint32)
            pages = await replica.read(pgnos, replica.snapshot.pages.lookup(pgnos))
            assert pages != [bench.history.at(4)[pgno] for pgno in pgnos.tolist()]
        bench.objects[key] = right
    parts = 0

    def once(request: Request) -> Fault | None:
        nonlocal parts
        parts += request.call.key == key
        if parts > 2 + -(-PAGES // 252):  # header and index, and the file once
            bench.objects[key] = right
        return None

    bench.faults.plan = once
    async with bench.hydrated(tmp_path / "cache") as replica:
        assert replica.statistics().hydration.files_verified == 1
        assert await content(replica) == bench.history.at(4)
    async with bench.replica(tmp_path / "cache") as replica:
        assert await content(replica) == bench.history.at(4)
    has_share_in_the_check = len(cached) != 20
    assert ("is read once more" in caplog.text) == has_share_in_the_check


@pytest.mark.logs("LTX file checksum", "hydration pauses")
async def test_a_damaged_file_that_nothing_replaces_is_an_error_and_not_wrong_pages(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.fill()
    flip_a_literal(bench, "0000/0000000000000001-0000000000000001.ltx")
    async with bench.replica(tmp_path / "cache") as replica, trio.open_nursery() as nursery:
        nursery.start_soon(replica.hydrate)
        await until(replica, HydrationState.WAITING)
        assert await replica.poll() is None
        with pytest.raises(DamagedFile):
            await content(replica)
        await bench.history.commit({5: b"more"})
        assert await replica.poll() is not None
        nursery.cancel_scope.cancel()


@pytest.mark.logs("hydration pauses")
async def test_a_file_that_vanishes_meanwhile_is_not_the_end_of_hydration(bench: Bench, tmp_path: Path) -> None:
    await bench.fill()
    async with bench.replica(tmp_path / "cache") as replica, trio.open_nursery() as nursery:
        await bench.history.snapshot()
        await bench.history.delete(0, 1)
        nursery.start_soon(replica.hydrate)
        await until(replica, HydrationState.WAITING)
        assert await replica.heal() is not None
        await until(replica, HydrationState.COMPLETE)
        assert await content(replica) == bench.history.at(4)
        nursery.cancel_scope.cancel()
