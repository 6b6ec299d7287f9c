"""The points of a history: which there are, what is told of each, and how many requests and bytes that takes."""

from __future__ import annotations

import pytest

from litereplica.errors import NoReplica
from litereplica.format import ltx
from litereplica.history import points as history_module
from litereplica.history.points import Point, Selection, read_points, select_points
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.wrappers import MeteredStorage
from litereplica.storage.wrappers.delegate import Operation
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from tests.ltxstore.replicas import TIMESTAMP_MS, History, memory_store, page_of, publish, put


async def fill(store: LTXStore, count: int, *, every_ms: int = 1000) -> None:
    """L0 files 1 to `count`, a page each, so many milliseconds apart."""
    for txid in range(1, count + 1):
        header = ltx.Header(
            page_size=512, commit=1, min_txid=txid, max_txid=txid, timestamp_ms=TIMESTAMP_MS + txid * every_ms
        )
        await put(store, 0, txid, txid, encode_file(header, [(1, page_of(1, txid))]))


async def read(store: LTXStore, selection: Selection, *, count_pages: bool = True) -> list[Point]:
    points: list[Point] = []

    async def keep(point: Point) -> None:
        points.append(point)

    await read_points(store, selection, keep, count_pages=count_pages)
    return points


@pytest.fixture
def history() -> History:
    made = History()
    for size, changed in ((6, ()), (9, (1, 3)), (4, (2,)), (400, (1,)), (400, (1, 5))):
        made.commit(size, *changed)
    return made


async def test_each_point_tells_of_the_database_and_of_its_files(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "SMALL_FILE_BYTES", 2000)
    store = memory_store()
    for level, low, high in ((0, 3, 3), (0, 4, 4), (0, 5, 5), (1, 1, 3), (1, 4, 5), (9, 1, 3)):
        await publish(store, history, level, low, high)
    points = await read(store, await select_points(store))
    assert [(point.txid, point.levels, point.commit, point.size, point.changed) for point in points] == [
        (3, (0, 1, 9), 4, 4 * 512, 1),
        (4, (0,), 400, 400 * 512, None),  # a large file is not read for its index
        (5, (0, 1), 400, 400 * 512, 2),
    ]
    assert [point.published for point in points] == [len(history.file(txid, txid)) for txid in (3, 4, 5)]
    assert {(point.timestamp_ms, point.page_size) for point in points} == {(TIMESTAMP_MS, 512)}


async def test_a_snapshot_does_not_tell_what_changed(history: History) -> None:
    store = memory_store()
    await publish(store, history, 9, 1, 3)
    (point,) = await read(store, await select_points(store))
    assert (point.levels, point.commit, point.changed) == ((9,), 4, None)


async def test_only_what_can_be_restored_is_a_point(history: History) -> None:
    store = memory_store()
    for txid in (1, 2, 4, 5):
        await publish(store, history, 0, txid, txid)
    assert [point.txid for point in await read(store, await select_points(store))] == [1, 2]


async def test_newest_points_within_the_times() -> None:
    store = memory_store()
    await fill(store, 50)

    async def txids(*, since: int | None = None, until: int | None = None, limit: int | None = None) -> list[int]:
        at = [None if txid is None else TIMESTAMP_MS + txid * 1000 for txid in (since, until)]
        return list((await select_points(store, since_ms=at[0], until_ms=at[1], limit=limit)).ending)

    assert await txids() == list(range(1, 51))
    assert await txids(limit=3) == [48, 49, 50]
    assert await txids(since=20, until=22) == [20, 21, 22]
    assert await txids(since=20, until=40, limit=2) == [39, 40]
    assert await txids(since=-100, until=100) == list(range(1, 51))
    assert await txids(since=100) == []
    assert await txids(until=-100) == []
    assert (await select_points(store, limit=3)).total == 50


async def test_no_files_are_no_replica() -> None:
    with pytest.raises(NoReplica):
        await select_points(memory_store())


async def test_a_point_costs_a_request_and_a_drawn_one_100_bytes() -> None:
    metered = MeteredStorage(MemoryStorage())
    store = memory_store(metered)
    await fill(store, 120)
    selection = await select_points(store, limit=70)
    before = metered.statistics().by_operation[Operation.GET]
    points = await read(store, selection, count_pages=False)
    after = metered.statistics().by_operation[Operation.GET]
    assert len(points) == after.requests - before.requests == 70
    assert after.bytes_received - before.bytes_received == 70 * 100
    assert {point.changed for point in points} == {None}
    assert {point.changed for point in await read(store, selection)} == {1}
    assert metered.statistics().by_operation[Operation.GET].requests - after.requests == 70


async def test_pages_are_not_counted_for_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "COUNTED_POINTS", 10)
    store = memory_store()
    await fill(store, 11)
    assert {point.changed for point in await read(store, await select_points(store))} == {None}
    assert {point.changed for point in await read(store, await select_points(store, limit=10))} == {1}


async def test_a_file_that_has_gone_is_replaced_by_another_that_ends_there(history: History) -> None:
    store = memory_store()
    for level, low, high in ((0, 1, 1), (0, 2, 2), (0, 3, 3), (1, 1, 2)):
        await publish(store, history, level, low, high)
    selection = await select_points(store)
    await store.delete([FileInfo(0, 2, 2, 0), FileInfo(0, 3, 3, 0)])
    points = await read(store, selection)
    assert [(point.txid, point.commit) for point in points] == [(1, 6), (2, 9)]


async def test_a_damaged_header_leaves_a_point_untold(history: History) -> None:
    store = memory_store()
    for txid in (1, 2, 3):
        await publish(store, history, 0, txid, txid)
    await store.storage.put(store.key(FileInfo(0, 2, 2, 0)), b"x" * 300)
    points = await read(store, await select_points(store))
    assert [(point.txid, point.timestamp_ms, point.size) for point in points][1] == (2, None, None)
    assert len(points) == 3
