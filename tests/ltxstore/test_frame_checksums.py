"""Sums beside large files: published with them, used at opening and for single frames, deleted with them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from litereplica.compaction.compaction import snapshot
from litereplica.compaction.pruner import Pruner, sweep_frame_checksums
from litereplica.compaction.retention import RetentionPolicy
from litereplica.errors import DamagedFile, FormatError, TransientStorageError
from litereplica.format import frame_checksums as format_sums
from litereplica.format.frame_checksums import ChecksumsHead, crc32c
from litereplica.format.ltx import TAIL_SIZE
from litereplica.format.names import Layout
from litereplica.ltxstore.frame_checksums import (
    FIRST_PAUSE_S,
    FileSums,
    FrameSums,
    frame_checksums_key,
    parse_frame_checksums_key,
)
from litereplica.ltxstore.store import WHOLE_FILE_LIMIT, LTXStore, OpenedFile, open_ltx_store
from litereplica.storage.wrappers import MeteredStorage, Operation
from litereplica.testing.faults import Fault, FaultStorage
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.times import DAY_MS, SteadyClock
from litereplica.types import FileInfo
from tests.helpers.history import History, sums_of_file
from tests.helpers.pruning import prune_due

PAGES = 700
PAGE_SIZE = 512


def incompressible(n: int) -> bytes:
    return np.random.default_rng(n).bytes(PAGE_SIZE)


class Bench:
    """A large file with its sums, in segments of 100 frames, and a store that counts what is asked of it."""

    def __init__(self, *, with_sums: bool = True, round_trip_s: float = 0.0) -> None:
        self.memory = MemoryStorage()
        self.history = History(self.memory, with_sums=with_sums)
        self.faults = FaultStorage(LatencyStorage(self.memory, round_trip_s), lambda request: None)
        self.meter = MeteredStorage(self.faults)
        self.store = LTXStore(self.meter, Layout.S3)
        self.info = FileInfo(0, 1, 1, WHOLE_FILE_LIMIT + 1)

    async def fill(self) -> None:
        await self.history.commit({pgno: incompressible(pgno) for pgno in range(1, PAGES + 1)})

    def gets(self) -> int:
        return self.meter.statistics().by_operation[Operation.GET].requests

    def alter(self, key: str, change: Callable[[bytearray], object]) -> None:
        stored = self.memory.objects[key]
        data = bytearray(stored.data)
        change(data)
        self.memory.objects[key] = replace(stored, data=bytes(data))

    def flip(self, key: str, place: int) -> None:
        def change(data: bytearray) -> None:
            data[place] ^= 1

        self.alter(key, change)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("litereplica.format.frame_checksums", "litereplica.ltxstore.frame_checksums"):
        monkeypatch.setattr(f"{module}.SEGMENT_FRAMES", 100)


def pgnos(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array(numbers, np.uint32)


def has_sums(opened: OpenedFile) -> bool:
    return opened.sums is not None and opened.sums.head is not None


def head_of(opened: OpenedFile) -> ChecksumsHead:
    assert opened.sums is not None
    assert opened.sums.head is not None
    return opened.sums.head


# --- keys -------------------------------------------------------------------------------------


def test_keys_lie_where_no_listing_of_files_looks() -> None:
    key = frame_checksums_key(FileInfo(9, 1, 0xAB, 0))
    assert key == "sums/0009/0000000000000001-00000000000000ab.sums"
    assert parse_frame_checksums_key(key) == (9, 1, 0xAB)
    for other in ("sums/0009/x.sums", f"{key}.tmp", f"a/{key}", "0009/0000000000000001-00000000000000ab.ltx"):
        assert parse_frame_checksums_key(other) is None


# --- opening ----------------------------------------------------------------------------------


async def test_opening_finds_the_sums_in_the_same_round_trip(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench(round_trip_s=1.0)
    await bench.fill()
    started = trio.current_time()
    opened = await bench.store.open(bench.info)
    assert (bench.gets(), trio.current_time() - started) == (3, 1.0)
    assert head_of(opened).frames == PAGES


async def test_a_file_without_sums_costs_one_request_that_finds_nothing() -> None:
    bench = Bench(with_sums=False)
    await bench.fill()
    assert not has_sums(await bench.store.open(bench.info))
    assert bench.gets() == 3


@pytest.mark.logs("cannot be checked")
async def test_sums_of_another_file_and_damaged_ones_are_no_sums() -> None:
    bench = Bench()
    await bench.fill()
    key = frame_checksums_key(bench.info)
    right = bench.memory.objects[key]
    other = History()
    await other.commit({pgno: incompressible(pgno + 1) for pgno in range(1, PAGES + 1)})
    (body,) = (stored.data for stored in other.storage.objects.values())  # type: ignore[attr-defined]
    await bench.memory.put(key, sums_of_file(body))
    assert not has_sums(await bench.store.open(bench.info))
    for damage in (lambda data: data.clear(), lambda data: data.reverse()):
        bench.memory.objects[key] = right
        bench.alter(key, damage)
        opened = await bench.store.open(bench.info)
        assert not has_sums(opened)
        assert len(opened.index) == PAGES


async def test_a_flip_in_header_or_index_of_a_file_with_sums_is_damage() -> None:
    """Without the sums an index may tell of other pages than the file has, and be taken for right."""
    bench = Bench()
    await bench.fill()
    delta = await bench.history.commit({pgno: incompressible(pgno + 1) for pgno in range(2, PAGES, 1)}, pages=PAGES + 9)
    info = FileInfo(0, delta, delta, WHOLE_FILE_LIMIT + 1)
    key = bench.store.key(info)
    right = bench.memory.objects[key]
    index = (await bench.store.open(info)).index
    varints = range(index.frames_end + 6, len(right.data) - TAIL_SIZE)
    for place in [*range(100), *varints[:30], *varints[30::61], *range(varints.stop, len(right.data) - 16)]:
        bench.flip(key, place)
        with pytest.raises(DamagedFile):
            await bench.store.open(info)
        bench.memory.objects[key] = right
    bench.memory.objects.pop(frame_checksums_key(info))
    bench.flip(key, 39)  # the time
    assert (await bench.store.open(info)).header.timestamp_ms != 0


async def test_a_store_that_fails_for_the_sums_fails_the_opening() -> None:
    """Whether there are any is not known then."""
    bench = Bench()
    await bench.fill()
    bench.faults.plan = lambda request: Fault() if request.call.key.startswith("sums/") else None
    with pytest.raises(TransientStorageError):
        await bench.store.open(bench.info)


# --- sums of frames ---------------------------------------------------------------------------


async def expected_sums(bench: Bench, numbers: list[int]) -> list[int]:
    data = bench.memory.objects[bench.store.key(bench.info)].data
    index = (await bench.store.open(bench.info)).index
    rows = np.searchsorted(index.pgno, numbers)
    places = zip(index.offset[rows].tolist(), index.size[rows].tolist(), strict=True)
    return [crc32c(data[offset : offset + size]) for offset, size in places]


async def test_sums_of_frames_take_one_request_for_each_segment_and_none_again() -> None:
    bench = Bench()
    await bench.fill()
    opened = await bench.store.open(bench.info)
    assert opened.sums is not None
    loaded = FrameSums()
    wanted = [3, 99, 100, 101, 650]
    before = bench.gets()
    assert await loaded.of(bench.meter, opened.sums, pgnos(*wanted)) == await expected_sums(bench, wanted)
    before += 3  # of the opening in between
    assert bench.gets() - before == 3
    assert await loaded.of(bench.meter, opened.sums, pgnos(50, 601)) == await expected_sums(bench, [50, 601])
    assert bench.gets() - before == 3 + 3


async def test_pages_of_a_file_that_has_not_all_of_them_are_found_too() -> None:
    bench = Bench()
    await bench.fill()
    some = list(range(5, PAGES, 1))
    txid = await bench.history.commit({pgno: incompressible(pgno + 1) for pgno in some})
    bench.info = replace(bench.info, min_txid=txid, max_txid=txid)
    opened = await bench.store.open(bench.info)
    assert opened.sums is not None
    assert opened.sums.pgnos is not None
    wanted = [5, 104, 105, PAGES - 1]
    assert await FrameSums().of(bench.meter, opened.sums, pgnos(*wanted)) == await expected_sums(bench, wanted)


async def test_those_who_want_the_same_segment_wait_for_one_request(autojump_clock: trio.testing.MockClock) -> None:
    """Also when the one that asked for it gives up."""
    bench = Bench(round_trip_s=1.0)
    await bench.fill()
    opened = await bench.store.open(bench.info)
    expected = await expected_sums(bench, [7])
    loaded, before = FrameSums(), bench.gets()
    results: list[list[int | None]] = []

    async def load(patience_s: float) -> None:
        assert opened.sums is not None
        with trio.move_on_after(patience_s):
            results.append(await loaded.of(bench.meter, opened.sums, pgnos(7)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, 0.5)
        await trio.sleep(0.1)
        for _ in range(4):
            nursery.start_soon(load, 10.0)
    assert results == [expected] * 4
    assert bench.gets() - before == 2


async def test_a_damaged_segment_is_asked_for_twice_with_each_read_until_it_is_repaired_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    await bench.fill()
    opened = await bench.store.open(bench.info)
    assert opened.sums is not None
    key = frame_checksums_key(bench.info)
    right = bench.memory.objects[key]
    bench.flip(key, head_of(opened).segment_place(1)[0] + 5)
    expected = await expected_sums(bench, [50, 150])
    loaded, before = FrameSums(), bench.gets()
    for _ in range(3):
        assert await loaded.of(bench.meter, opened.sums, pgnos(50, 150)) == [expected[0], None]
        assert await loaded.of(bench.meter, opened.sums, pgnos(50)) == expected[:1]
        assert opened.sums.is_damaged, "although another part of it is sound"
    assert bench.gets() - before == 1 + 3 * 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert key in caplog.text
    bench.memory.objects[key] = right
    assert await loaded.of(bench.meter, opened.sums, pgnos(50, 150)) == expected
    assert not opened.sums.is_damaged


async def test_sums_that_have_gone_since_the_opening_are_said_once_and_asked_for_after_a_growing_pause(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    bench = Bench()
    await bench.fill()
    opened = await bench.store.open(bench.info)
    assert opened.sums is not None
    expected = await expected_sums(bench, [50])
    gone = bench.memory.objects.pop(frame_checksums_key(bench.info))
    loaded, before = FrameSums(), bench.gets()
    for asked, pause_s in ((1, FIRST_PAUSE_S), (2, 2 * FIRST_PAUSE_S)):
        for _ in range(3):
            assert await loaded.of(bench.meter, opened.sums, pgnos(50, 150, 650)) == [None, None, None]
        assert bench.gets() - before == asked
        await trio.sleep(pause_s)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    bench.memory.objects[frame_checksums_key(bench.info)] = gone
    assert await loaded.of(bench.meter, opened.sums, pgnos(50)) == expected


async def test_sums_that_the_opening_did_not_find_are_asked_for_later(autojump_clock: trio.testing.MockClock) -> None:
    """A store may answer 404 or 403 by mistake; a file that never has any costs few requests, and no log line."""
    bench = Bench()
    await bench.fill()
    gone = bench.memory.objects.pop(frame_checksums_key(bench.info))
    opened = await bench.store.open(bench.info)
    assert opened.sums is not None
    loaded, before = FrameSums(), bench.gets()
    for asked in range(2):
        for _ in range(3):
            assert await loaded.of(bench.meter, opened.sums, pgnos(50)) == [None]
        assert bench.gets() - before == asked
        await trio.sleep(FIRST_PAUSE_S * 2**asked)
    bench.memory.objects[frame_checksums_key(bench.info)] = gone
    assert await loaded.of(bench.meter, opened.sums, pgnos(50)) == await expected_sums(bench, [50])


@pytest.mark.logs("cannot be checked")
async def test_a_head_that_was_damaged_at_the_opening_and_is_repaired_is_used() -> None:
    bench = Bench()
    await bench.fill()
    key = frame_checksums_key(bench.info)
    right = bench.memory.objects[key]
    bench.flip(key, 0)
    opened = await bench.store.open(bench.info)
    assert bench.gets() == 4
    assert opened.sums is not None
    assert await FrameSums().of(bench.meter, opened.sums, pgnos(50)) == [None]
    bench.memory.objects[key] = right
    assert await FrameSums().of(bench.meter, opened.sums, pgnos(50)) == await expected_sums(bench, [50])


async def test_a_head_that_is_read_late_and_differs_from_the_header_that_was_read_is_damage(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    await bench.fill()
    gone = bench.memory.objects.pop(frame_checksums_key(bench.info))
    bench.flip(bench.store.key(bench.info), 39)  # the time
    opened = await bench.store.open(bench.info)
    bench.memory.objects[frame_checksums_key(bench.info)] = gone
    assert opened.sums is not None
    await trio.sleep(FIRST_PAUSE_S)
    with pytest.raises(FormatError, match="header or page index"):
        await FrameSums().of(bench.meter, opened.sums, pgnos(50))


async def test_a_flip_on_the_way_is_gone_when_it_is_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    await bench.fill()
    opened = await bench.store.open(bench.info)
    assert opened.sums is not None
    key = frame_checksums_key(bench.info)
    right = bench.memory.objects[key]
    bench.flip(key, head_of(opened).segment_place(0)[0])

    asked: list[object] = []

    def repair(request: object) -> None:
        if asked:
            bench.memory.objects[key] = right
        asked.append(request)

    bench.faults.plan = repair
    found = await FrameSums().of(bench.meter, opened.sums, pgnos(5))
    bench.faults.plan = lambda request: None
    assert found == await expected_sums(bench, [5])
    assert not caplog.records


async def test_segments_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litereplica.ltxstore.frame_checksums.KEPT_SEGMENTS", 2)
    bench = Bench()
    await bench.fill()
    opened = await bench.store.open(bench.info)
    assert opened.sums is not None
    loaded = FrameSums()
    every = np.arange(1, PAGES + 1, dtype=np.uint32)
    assert await loaded.of(bench.meter, opened.sums, every) == await expected_sums(bench, every.tolist())
    assert len(loaded._segments) == 2


def test_the_lock_page_has_no_sum_and_those_behind_it_move_up() -> None:
    file = FileSums("key", 1, 2, 3, None, lock_pgno=5)
    assert file.rows(pgnos(1, 4, 6, 9)).tolist() == [0, 3, 4, 7]


# --- publishing -------------------------------------------------------------------------------


async def test_a_compaction_publishes_the_sums_before_the_file() -> None:
    bench = Bench(with_sums=False)
    await bench.fill()
    await bench.history.commit({5: b"five"})
    order: list[str] = []
    bench.faults.plan = lambda request: (
        order.append(request.call.key) if request.call.operation in (Operation.PUT, Operation.PUT_IF_ABSENT) else None
    )
    compacted = await snapshot(bench.store)
    assert compacted is not None
    key = bench.store.key(compacted.info)
    assert order == [frame_checksums_key(compacted.info), key]
    assert bench.memory.objects[order[0]].data == sums_of_file(bench.memory.objects[key].data)
    assert has_sums(await bench.store.open(compacted.info))


async def test_a_small_result_has_none() -> None:
    bench = Bench()
    await bench.history.commit({1: b"one"})
    bench.memory.objects.pop(frame_checksums_key(bench.info))
    await bench.history.commit({1: b"two"}, publish=True)
    bench.memory.objects.pop(frame_checksums_key(FileInfo(0, 2, 2, 0)))
    assert await snapshot(bench.store) is not None
    assert not await bench.store.list_frame_checksums()


async def test_listings_of_files_do_not_see_them() -> None:
    bench = Bench()
    await bench.fill()
    assert len(await bench.store.list_levels()) == 1
    assert [item.key for item in await bench.store.list_frame_checksums()] == [frame_checksums_key(bench.info)]


@pytest.mark.parametrize("layout", ["file", "s3"])
async def test_real_stores_have_them_where_they_are_looked_for(
    layout: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"file://{tmp_path}/replica" if layout == "file" else request.getfixturevalue("s3_bucket").url
    store = open_ltx_store(url)
    history = Bench(with_sums=False)
    await history.fill()
    body = history.memory.objects[history.store.key(history.info)].data
    info = replace(history.info, size=len(body))
    await store.put_frame_checksums(info, sums_of_file(body))
    await store.put(info, body, timestamp_ms=0)
    opened = await store.open(info)
    assert opened.sums is not None
    wanted = [1, 150, PAGES]
    assert await FrameSums().of(store.storage, opened.sums, pgnos(*wanted)) == await expected_sums(history, wanted)
    await store.delete([info])
    assert not await store.list_frame_checksums()
    await store.aclose()


# --- deleting ---------------------------------------------------------------------------------


async def test_a_deleted_file_takes_its_sums_along_and_goes_first() -> None:
    bench = Bench()
    await bench.fill()
    order: list[str] = []
    bench.faults.plan = lambda request: order.append(request.call.key)
    (info,) = await bench.store.list_levels()
    await bench.store.delete([info])
    assert order[-2:] == [bench.store.key(info), frame_checksums_key(info)]
    assert not bench.memory.objects


async def test_sums_without_a_file_are_swept_when_they_are_a_day_old() -> None:
    bench = Bench()
    await bench.fill()
    gone = FileInfo(9, 1, 77, 0)
    await bench.store.put_frame_checksums(gone, b"of a file that somebody else deleted")
    now_ms = bench.memory.objects[frame_checksums_key(gone)].modified_ms
    assert await sweep_frame_checksums(bench.store, now_ms + DAY_MS) == []
    assert await sweep_frame_checksums(bench.store, now_ms + DAY_MS + 1) == [frame_checksums_key(gone)]
    assert sorted(bench.memory.objects) == [bench.store.key(bench.info), frame_checksums_key(bench.info)]
    assert await sweep_frame_checksums(bench.store, now_ms + DAY_MS + 1) == []


async def test_retention_sweeps_once_a_day_when_it_deletes_something() -> None:
    bench = Bench()
    for n in range(4):
        await bench.history.commit({1: b"%d" % n})
    await bench.history.compact(1, 1, 3)
    await bench.store.put_frame_checksums(FileInfo(9, 1, 77, 0), b"of a file that somebody else deleted")
    far_ms = bench.memory.objects[frame_checksums_key(FileInfo(9, 1, 77, 0))].modified_ms + 10 * DAY_MS
    clock = SteadyClock(lambda: far_ms, lambda: 0)
    retention = Pruner(bench.store, RetentionPolicy(l0_ms=1), clock)
    assert len(await prune_due(retention)) == 3
    assert frame_checksums_key(FileInfo(9, 1, 77, 0)) not in bench.memory.objects
    await bench.history.compact(1, 1, 4)
    await bench.store.put_frame_checksums(FileInfo(9, 1, 78, 0), b"of another one")
    await bench.history.commit({1: b"more"})
    assert len(await prune_due(retention)) == 1
    assert frame_checksums_key(FileInfo(9, 1, 78, 0)) in bench.memory.objects


def test_the_head_has_a_fixed_size() -> None:
    assert len(ChecksumsHead(1, 2, 3, 4).encode()) == format_sums.HEAD_SIZE
