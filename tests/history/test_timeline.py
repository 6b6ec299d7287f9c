"""Points by their time: against a naive search, at which cost, and when files vanish or are damaged."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock as Clock

from litereplica.errors import DamagedFile, NoReplica, PointNotFound
from litereplica.format import ltx
from litereplica.history.timeline import PARALLEL_HEADERS, PROBES, find_txid, require_point, timestamps
from litereplica.ltxstore.plan import reachable_txids
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Blob, Range
from litereplica.storage.wrappers import MeteredStorage
from litereplica.storage.wrappers.delegate import WrapperStorage
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.types import TXID, FileInfo
from tests.ltxstore.replicas import memory_store

UPLOADED_MS = 5
"""What listings say of every file, as S3 does, which has the time of the upload."""


async def put_header(store: LTXStore, info: FileInfo, timestamp_ms: int) -> FileInfo:
    """A file of which only the header is ever read."""
    header = ltx.Header(
        page_size=512, commit=1, min_txid=info.min_txid, max_txid=info.max_txid, timestamp_ms=timestamp_ms
    )
    await store.put(info, header.encode() + bytes(60), timestamp_ms=UPLOADED_MS)
    return info


async def put_history(store: LTXStore, times: list[int]) -> list[FileInfo]:
    """A file of level 0 for each TXID."""
    return [await put_header(store, FileInfo(0, txid, txid, 160), time) for txid, time in enumerate(times, 1)]


def newest_before(times: dict[TXID, int], before_ms: int) -> TXID | None:
    """By looking at all of them, which must not decrease."""
    return max((txid for txid, time in times.items() if time < before_ms), default=None)


async def test_newest_point_before_a_time_is_found_in_histories_of_all_levels() -> None:
    rng = random.Random(1)
    for _ in range(60):
        store = memory_store()
        time, times, files = 1000, {}, []
        for txid in range(1, rng.randint(2, 60)):
            time += rng.choice((0, 0, 1, 2, 10))
            times[txid] = time
        last = max(times)
        for level in (0, 0, 0, 1, 2, 9):
            for _ in range(rng.randint(0, last)):
                low, high = sorted((rng.randint(1, last), rng.randint(1, last)))
                low = {0: high, 9: 1}.get(level, low)
                files.append(FileInfo(level, low, high, 160))
        files = sorted({*files, FileInfo(0, 1, 1, 160)}, key=str)
        for info in files:
            if not await store.storage.list(store.key(info)):
                await put_header(store, info, times[info.max_txid])
        points = {txid: times[txid] for txid in reachable_txids(files)}
        for before_ms in {*range(998, time + 3, 3), *points.values()}:
            expected = newest_before(points, before_ms)
            if expected is None:
                with pytest.raises(PointNotFound):
                    await find_txid(store, files, before_ms=before_ms)
            else:
                assert await find_txid(store, files, before_ms=before_ms) == expected


async def test_clock_that_was_set_back_gives_a_point_before_the_time_whose_successor_is_not() -> None:
    rng = random.Random(2)
    for _ in range(100):
        store = memory_store()
        times = [rng.randint(1, 40) for _ in range(rng.randint(1, 60))]
        files = await put_history(store, times)
        for before_ms in (5, 20, 41):
            try:
                txid = await find_txid(store, files, before_ms=before_ms)
            except PointNotFound:
                assert times[0] >= before_ms
            else:
                assert times[txid - 1] < before_ms
                assert txid == len(times) or times[txid] >= before_ms


async def test_5000_points_take_few_requests_at_once(autojump_clock: Clock) -> None:
    meter = MeteredStorage(MemoryStorage())
    files = await put_history(memory_store(meter), [1000 + 3 * i for i in range(5000)])
    store = memory_store(LatencyStorage(meter, 0.02))
    before = meter.statistics().requests
    started = trio.current_time()
    assert await find_txid(store, files, before_ms=1000 + 3 * 3333) == 3333
    assert meter.statistics().requests - before <= 4 * PROBES
    assert trio.current_time() - started < 0.2


class OnGet(WrapperStorage):
    """Calls `action` with each key before it is read; counts those under way."""

    def __init__(self, inner: MemoryStorage, action: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(inner)
        self._action = action
        self.running = self.most = 0

    async def get(self, key: str, range: Range | None = None) -> Blob:
        self.running += 1
        self.most = max(self.most, self.running)
        await self._action(key)
        try:
            return await super().get(key, range)
        finally:
            self.running -= 1


async def test_points_that_vanish_during_the_search_are_passed_over() -> None:
    rng = random.Random(3)
    for _ in range(50):
        objects = MemoryStorage()
        files = await put_history(memory_store(objects), list(range(1, 101)))
        gone: set[str] = set()

        async def vanish(key: str, objects: MemoryStorage = objects, gone: set[str] = gone) -> None:
            if rng.random() < 0.3:
                gone.add(key)
                await objects.delete([key])

        store = memory_store(OnGet(objects, vanish))
        before_ms = rng.randint(40, 100)
        txid = await find_txid(store, files, before_ms=before_ms)
        assert txid < before_ms
        assert store.key(files[txid - 1]) not in gone
        assert {store.key(info) for info in files[txid : before_ms - 1]} <= gone


async def test_another_file_with_the_same_end_tells_the_time_of_one_that_has_gone() -> None:
    store = memory_store()
    files = [*await put_history(store, [10, 20, 30]), await put_header(store, FileInfo(1, 1, 2, 160), 20)]
    await store.delete([files[1]])
    assert await find_txid(store, files, before_ms=25) == 2


async def test_all_files_gone_is_no_replica() -> None:
    store = memory_store()
    files = await put_history(store, [10, 20, 30])
    await store.delete(files)
    with pytest.raises(NoReplica):
        await find_txid(store, files, before_ms=25)
    with pytest.raises(NoReplica):
        await find_txid(store, [], before_ms=25)


async def test_damaged_header_matters_only_where_it_decides() -> None:
    objects = MemoryStorage()
    store = memory_store(objects)
    files = await put_history(store, [10 * txid for txid in range(1, 9)])
    await objects.put(store.key(files[4]), b"no header")
    assert await find_txid(store, files, before_ms=35) == 3
    assert await find_txid(store, files, before_ms=65) == 6
    for before_ms in (45, 55):
        with pytest.raises(DamagedFile, match="0000000000000005"):
            await find_txid(store, files, before_ms=before_ms)


async def test_timestamps_are_those_of_headers_few_at_once_without_what_cannot_be_read() -> None:
    objects = MemoryStorage()
    files = await put_history(memory_store(objects), list(range(100, 200)))

    async def wait(key: str) -> None:
        for _ in range(5):
            await trio.lowlevel.checkpoint()

    storage = OnGet(objects, wait)
    store = memory_store(storage)
    await store.delete(files[3:4])
    await objects.put(store.key(files[7]), b"no header")
    found = await timestamps(store, files)
    assert found == {info: 99 + info.max_txid for info in files if info.max_txid not in (4, 8)}
    assert storage.most == PARALLEL_HEADERS


def test_txid_that_is_no_point_is_refused_with_its_neighbours() -> None:
    files = [FileInfo(0, 1, 1, 1), FileInfo(1, 2, 5, 1), FileInfo(0, 7, 7, 1)]
    for txid in (1, 5):
        require_point(files, txid)
    with pytest.raises(PointNotFound, match="nearest: 0000000000000001 and 0000000000000005"):
        require_point(files, 3)
    with pytest.raises(PointNotFound, match=r"nearest: 0000000000000005$"):
        require_point(files, 7)
    with pytest.raises(PointNotFound, match="ltx --level all"):
        require_point([FileInfo(0, 2, 2, 1)], 2)
    with pytest.raises(NoReplica):
        require_point([], 2)


# --- clocks that are wrong ---------------------------------------------------------------------------

HOUR_MS = 3_600_000
NOW_MS = 1_700_000_000_250
"""The machine's clock, which is right."""


async def put_at(storage: MemoryStorage, info: FileInfo, *, dated_ms: int, uploaded_ms: int) -> FileInfo:
    """A file with this time in its header, uploaded at another; listings have whole seconds, as S3's."""
    listed = replace(info, modified_ms=uploaded_ms // 1000 * 1000)
    header = ltx.Header(page_size=512, commit=1, min_txid=info.min_txid, max_txid=info.max_txid, timestamp_ms=dated_ms)
    store = memory_store(storage)
    await store.put(info, header.encode() + bytes(60), timestamp_ms=listed.modified_ms)
    return listed


async def stepped(
    storage: MemoryStorage, *, ahead_ms: int = 3 * HOUR_MS, upload_ms: int | None = None
) -> list[FileInfo]:
    """A point each 10 s, 30 of them up to now; the clock was set forward before the 11th and right again at the 21st.

    The writer does not let times decrease. With `upload_ms` the store's clock differs by that.
    """
    files, last_ms = [], 0
    for txid in range(1, 31):
        true_ms = true_time(txid)
        last_ms = max(last_ms + 1, true_ms + (ahead_ms if 10 < txid <= 20 else 0))
        uploaded_ms = true_ms + 300 if upload_ms is None else last_ms + upload_ms
        files.append(await put_at(storage, FileInfo(0, txid, txid, 160), dated_ms=last_ms, uploaded_ms=uploaded_ms))
    return files


def true_time(txid: TXID) -> int:
    return NOW_MS - (30 - txid) * 10_000


async def found(storage: MemoryStorage, files: list[FileInfo], before_ms: int) -> tuple[TXID, list[str]]:
    said: list[str] = []
    txid = await find_txid(memory_store(storage), files, before_ms=before_ms, now_ms=NOW_MS, warn=said.append)
    return txid, said


async def test_points_dated_in_the_future_are_found_by_their_upload_and_it_is_said() -> None:
    storage = MemoryStorage()
    files = await stepped(storage)
    for txid in range(1, 31):
        before, said = await found(storage, files, true_time(txid) + 5000)
        assert before == txid
        if txid < 10:
            assert not said
        else:
            assert len(said) == 1
            assert "lies 2h58m in the future" in said[0]
            assert said[0].endswith("are found by the time of their upload")


async def test_a_clock_step_that_is_over_does_not_hide_what_was_written_since() -> None:
    """The newest point agrees with its upload again, so the times of the others are believed, too."""
    storage = MemoryStorage()
    files = await stepped(storage)
    end_ms = NOW_MS + 4 * HOUR_MS
    files.append(await put_at(storage, FileInfo(0, 31, 31, 160), dated_ms=end_ms, uploaded_ms=end_ms))
    said: list[str] = []
    for txid in range(1, 31):
        store = memory_store(storage)
        before_ms = true_time(txid) + 5000
        assert await find_txid(store, files, before_ms=before_ms, now_ms=end_ms, warn=said.append) == txid
    assert not said


async def test_compacted_files_count_as_of_the_first_upload_that_has_them() -> None:
    storage = MemoryStorage()
    files = (await stepped(storage))[20:]
    made_ms = true_time(20) + 2000
    compacted = FileInfo(1, 1, 20, 160)
    files.insert(0, await put_at(storage, compacted, dated_ms=true_time(20) + 3 * HOUR_MS, uploaded_ms=made_ms))
    assert (await found(storage, files, true_time(20) + 5000))[0] == 20
    assert (await found(storage, files, true_time(25) + 5000))[0] == 25


async def test_times_in_the_future_that_nothing_corrects_are_said() -> None:
    """As on `file://`, where listings have the time of the header."""
    storage = MemoryStorage()
    files = await stepped(storage, upload_ms=0)
    assert await found(storage, files, true_time(9)) == (8, [])
    before, (said,) = await found(storage, files, NOW_MS - 5000)
    assert before == 10
    assert "in the future, because a clock is or was wrong" in said
    assert "the states after TXID 000000000000000a are found by their TXIDs only" in said
    assert await found(storage, files, NOW_MS + 9 * HOUR_MS) == (30, []), "the newest in any case"


async def test_a_store_whose_clock_is_wrong_is_not_believed() -> None:
    storage = MemoryStorage()
    files = await stepped(storage, ahead_ms=0, upload_ms=-HOUR_MS)
    for txid in range(1, 31):
        assert await found(storage, files, true_time(txid) + 5000) == (txid, [])
