"""Merging files of a replica, against applying them one by one."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from litereplica.compaction import merge
from litereplica.compaction.compaction import Compacted, compact_level, run_compaction, snapshot
from litereplica.compaction.levels import Compaction, next_compaction
from litereplica.format.decoder import decode_file
from litereplica.format.ltx import Header
from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.restore import restore
from litereplica.storage.base import Blob, Range
from litereplica.storage.file import FileStorage
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from tests.compaction.compacting import content, history_of, keys, replica
from tests.ltxstore.replicas import TIMESTAMP_MS, History, memory_store, publish


@settings(deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_compacted_file_is_the_fold_of_its_inputs(seed: int, data: st.DataObject) -> None:
    async def check() -> None:
        history = history_of(random.Random(seed), 8)
        store = await replica(history)
        cuts = [*sorted(data.draw(st.sets(st.integers(1, 7), max_size=4))), 8]
        low = 1
        for high in cuts:
            inputs = tuple([info for info in await store.list_level(0) if low <= info.max_txid <= high])
            done = await run_compaction(store, Compaction(1, low, inputs))
            assert await content(store, done.info) == history.file(low, high)
            low = high + 1
        done_above = await compact_level(store, 2)
        assert done_above is not None
        assert [info.level for info in done_above.compaction.inputs] == [1] * len(cuts)
        assert await content(store, done_above.info) == history.file(1, 8)

    trio.run(check)


async def test_snapshot_is_the_whole_database_whatever_levels_it_is_made_from() -> None:
    history = history_of(random.Random(3), 12)
    store = memory_store()
    for level, low, high in ((9, 1, 3), (2, 4, 6), (1, 6, 9), (0, 10, 10), (0, 11, 11), (0, 12, 12)):
        await publish(store, history, level, low, high)
    done = await snapshot(store)
    assert done is not None
    assert done == Compacted(
        done.compaction, FileInfo(9, 1, 12, done.info.size, TIMESTAMP_MS), done.checksum, adopted=False
    )
    file = decode_file(await content(store, done.info))
    assert b"".join(file.pages) == history.database(12)
    assert file.file_checksum == done.checksum
    assert await snapshot(store) is None


async def test_input_that_straddles_the_level_is_named_from_behind_its_end(tmp_path: Path) -> None:
    """ls#1460, ls#1464. The result begins behind 1-5 and makes the same of the database."""
    history = history_of(random.Random(4), 9)
    store = memory_store()
    for level, low, high in ((2, 1, 5), (1, 4, 8), (1, 9, 9)):
        await publish(store, history, level, low, high)
    done = await compact_level(store, 2)
    assert done is not None
    assert (done.info.min_txid, done.info.max_txid) == (6, 9)
    await store.delete([FileInfo(1, 4, 8, 0), FileInfo(1, 9, 9, 0)])
    assert (await restore(store, tmp_path / "out.db")).txid == 9
    assert (tmp_path / "out.db").read_bytes() == history.database(9)


async def test_overlapping_files_of_a_level_are_folded() -> None:
    """ls#847: files 1-5, 3-7 and 6-9 in one level."""
    history = history_of(random.Random(847), 9)
    store = memory_store()
    for low, high in ((1, 5), (3, 7), (6, 9)):
        await publish(store, history, 1, low, high)
    done = await compact_level(store, 2)
    assert done is not None
    assert await content(store, done.info) == history.file(1, 9)


async def test_timestamp_of_the_last_input_survives_all_levels() -> None:
    storage = MemoryStorage()
    store = memory_store(storage)
    for txid in range(1, 6):
        header = Header(page_size=512, commit=1, min_txid=txid, max_txid=txid, timestamp_ms=1_000_000 + txid)
        await store.put(FileInfo(0, txid, txid, 0), encode_file(header, [(1, bytes(512))]), timestamp_ms=5)
    for level in (1, 2, 3):
        done = await compact_level(store, level)
        assert done is not None
        assert done.info.modified_ms == 1_000_005
    await snapshot(store)
    for level in (1, 2, 3, 9):
        (key,) = keys(storage, level)
        assert storage.objects[key].modified_ms == 1_000_005
        assert decode_file(storage.objects[key].data).header.timestamp_ms == 1_000_005


@pytest.mark.parametrize("txids", [9, 10, 33, 34, 35])
async def test_more_inputs_than_are_merged_at_once_make_the_same_file(
    txids: int, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "FAN_IN", 3)
    monkeypatch.setattr(merge, "SPOOL_MEMORY_BYTES", 1500)  # some of the rounds lie on disk
    history = history_of(random.Random(txids), txids)
    store = await replica(history)
    compaction = next_compaction(await store.list_levels(), 1)
    assert compaction is not None
    assert len(compaction.inputs) == txids
    done = await run_compaction(store, compaction, spool_dir=spool_dir)
    assert await content(store, done.info) == history.file(1, txids)
    assert done.info.size == len(history.file(1, txids))


async def test_large_files_are_fetched_in_pieces_several_at_a_time(
    spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "PIECE_BYTES", 1000)
    monkeypatch.setattr(merge, "SPOOL_MEMORY_BYTES", 1000)
    history = History()
    history.commit(300)
    history.commit(200, 1)
    storage = _CountingStorage()
    store = await replica(history, storage)
    told: list[int] = []
    done = await run_compaction(
        store,
        Compaction(9, 1, tuple(await store.list_level(0))),
        spool_dir=spool_dir,
        progress=lambda total: _Told(total, told),
    )
    assert b"".join(decode_file(await content(store, done.info)).pages) == history.database(2)
    assert done.info.size == len(await content(store, done.info))
    assert storage.most_under_way >= 5
    assert told[0] == sum(told[1:]) == done.compaction.size


class _CountingStorage(MemoryStorage):
    under_way = most_under_way = 0

    async def get(self, key: str, range: Range | None = None) -> Blob:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await trio.sleep(0.0005)
        self.under_way -= 1
        return await super().get(key, range)


class _Told:
    """A progress bar that writes down what it is told."""

    def __init__(self, total: int, told: list[int]) -> None:
        self._told = told
        told.append(total)

    def __enter__(self) -> Callable[[int], None]:
        return self._told.append

    def __exit__(self, *exc: object) -> None:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("compressible", [True, False])
async def test_memory_does_not_follow_the_files(tmp_path: Path, spool_dir: Path, compressible: bool) -> None:
    """A dozen large files and many small ones, 105 MB of pages: in the files a 250th of that, or all of it."""
    page_size, pages, large, small = 16384, 500, 12, 40
    rng = random.Random(1)
    store = LTXStore(FileStorage(tmp_path / "replica"), Layout.FILE)
    for txid in range(1, large + small + 1):
        header = Header(page_size=page_size, commit=pages, min_txid=txid, max_txid=txid, timestamp_ms=TIMESTAMP_MS)
        pgnos = range(1, (pages if txid <= large else 10) + 1)
        content = bytes(page_size)
        body = encode_file(header, ((pgno, content if compressible else rng.randbytes(page_size)) for pgno in pgnos))
        await store.put(FileInfo(0, txid, txid, 0), body, timestamp_ms=TIMESTAMP_MS)
    compaction = next_compaction(await store.list_levels(), 1)
    assert compaction is not None
    tracemalloc.start()
    try:
        done = await run_compaction(store, compaction, spool_dir=spool_dir)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len((await store.open(done.info)).index) == pages
    print(peak / 1e6)
    assert peak < 80 << 20
