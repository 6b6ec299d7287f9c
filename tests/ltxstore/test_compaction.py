"""Merging files of a replica, against applying them one by one; and that nothing wrong is ever published."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from litereplica.errors import (
    ConflictError,
    DamagedFile,
    EnvironmentProblem,
    FileVanished,
    GapError,
    NotFound,
    PreconditionFailed,
    TransientStorageError,
)
from litereplica.format.decoder import decode_file
from litereplica.format.encoder import encode_file
from litereplica.format.ltx import Header
from litereplica.format.names import Layout
from litereplica.ltxstore import merge
from litereplica.ltxstore.compaction import Compacted, compact_level, run_compaction, snapshot
from litereplica.ltxstore.levels import Compaction, next_compaction
from litereplica.ltxstore.restore import restore
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Blob, ByteRange, Range
from litereplica.storage.file import FileStorage
from litereplica.storage.memory import MemoryStorage, StoredObject
from litereplica.storage.wrappers import Fault, FaultAt, FaultStorage, Operation, When
from litereplica.types import FileInfo
from tests.ltxstore.replicas import TIMESTAMP_MS, History, make_file, memory_store, publish, put


def history_of(rng: random.Random, txids: int) -> History:
    """Transactions that grow, shrink and rewrite."""
    history = History()
    for _ in range(txids):
        size = rng.randint(1, 12)
        history.commit(size, *(rng.randint(1, size) for _ in range(rng.randint(0, 3))))
    return history


async def replica(history: History, storage: MemoryStorage | None = None) -> LTXStore:
    """All of it in level 0."""
    store = memory_store(storage)
    for txid in range(1, history.txid + 1):
        await publish(store, history, 0, txid, txid)
    return store


async def replica_of_five() -> tuple[LTXStore, MemoryStorage, History]:
    history, storage = history_of(random.Random(5), 5), MemoryStorage()
    return await replica(history, storage), storage, history


def keys(storage: MemoryStorage, level: int) -> list[str]:
    return sorted(key for key in storage.objects if key.startswith(f"{level:04x}/"))


async def content(store: LTXStore, info: FileInfo) -> bytes:
    return (await store.get(info)).data


@pytest.fixture
def spool_dir(tmp_path: Path) -> Iterator[Path]:
    """A place for temporary files, of which none may be left."""
    directory = tmp_path / "spool"
    directory.mkdir()
    yield directory
    assert list(directory.iterdir()) == []


# --- the result ------------------------------------------------------------------------------


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
    assert done == Compacted(done.compaction, FileInfo(9, 1, 12, done.info.size, TIMESTAMP_MS), adopted=False)
    file = decode_file(await content(store, done.info))
    assert b"".join(file.pages) == history.database(12)
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
    monkeypatch.setattr(merge, "MAX_CHUNK_BYTES", 1000)
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

    def __enter__(self) -> object:
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


# --- what must not be published --------------------------------------------------------------


@pytest.mark.parametrize("txid", range(1, 6))
async def test_damaged_input_is_named_and_nothing_is_published(txid: int) -> None:
    """Bits flipped anywhere. A few leave the same pages, since LZ4 can say one thing in many ways."""
    store, storage, history = await replica_of_five()
    compaction = next_compaction(await store.list_levels(), 1)
    assert compaction is not None
    key = keys(storage, 0)[txid - 1]
    whole = storage.objects[key].data
    blamed = []
    for bit in random.Random(txid).sample(range(len(whole) * 8), 60):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        await storage.put(key, bytes(damaged))
        try:
            done = await run_compaction(store, compaction)
        except DamagedFile as error:
            blamed.append(error.key)
        else:
            assert await content(store, done.info) == history.file(1, 5)
            await store.delete([done.info])
        assert len(storage.objects) == 5
    assert set(blamed) == {key}
    assert len(blamed) >= 55


@pytest.mark.parametrize("size", [0, 1, 99, 100, 123])
async def test_input_of_a_few_bytes_is_damaged(size: int) -> None:
    """ls#1431."""
    store, storage, _ = await replica_of_five()
    key = keys(storage, 0)[2]
    await storage.put(key, storage.objects[key].data[:size])
    with pytest.raises(DamagedFile) as error:
        await compact_level(store, 1)
    assert error.value.key == key
    assert keys(storage, 1) == []


async def test_input_that_is_another_file_than_its_name_says_is_damaged() -> None:
    store, storage, _ = await replica_of_five()
    first, second, *_ = keys(storage, 0)
    await storage.put(second, storage.objects[first].data)
    with pytest.raises(DamagedFile, match="unlike its name") as error:
        await compact_level(store, 1)
    assert error.value.key == second


@pytest.mark.parametrize("txid", range(1, 6))
async def test_missing_input_is_named_and_nothing_is_published(txid: int) -> None:
    store, storage, _ = await replica_of_five()
    compaction = next_compaction(await store.list_levels(), 1)
    assert compaction is not None
    key = keys(storage, 0)[txid - 1]
    await storage.delete([key])
    with pytest.raises(NotFound) as error:
        await run_compaction(store, compaction)
    assert error.value.key == key
    assert len(storage.objects) == 4


async def test_input_that_is_not_the_one_that_was_listed_has_vanished() -> None:
    store, storage, history = await replica_of_five()
    compaction = next_compaction(await store.list_levels(), 1)
    assert compaction is not None
    await storage.put(keys(storage, 0)[4], history.file(1, 5))
    with pytest.raises(FileVanished):
        await run_compaction(store, compaction)
    assert keys(storage, 1) == []


async def test_input_that_is_replaced_while_it_is_read_has_vanished(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one of the same size, in the middle of several requests."""
    monkeypatch.setattr(merge, "MAX_CHUNK_BYTES", 100)
    monkeypatch.setattr(merge, "PARALLELISM", 2)
    storage = MemoryStorage()
    store = memory_store(storage)
    info = await put(store, 2, 1, 3, make_file({1: random.Random(1).randbytes(512)}, commit=1, low=1, high=3))
    other = make_file({1: random.Random(2).randbytes(512)}, commit=1, low=1, high=3)
    assert len(other) == info.size
    get = storage.get

    async def replacing(key: str, range: Range | None = None) -> Blob:
        if isinstance(range, ByteRange) and range.start == 300:
            await storage.put(key, other)
        return await get(key, range)

    monkeypatch.setattr(storage, "get", replacing)
    with pytest.raises(FileVanished, match="replaced while it was read"):
        await run_compaction(store, Compaction(3, 1, (info,)))
    assert keys(storage, 3) == []


async def test_files_that_do_not_add_up_to_a_snapshot_are_refused() -> None:
    """The database grew from 3 to 5 pages, but the file has only one of the new ones."""
    storage = MemoryStorage()
    store = memory_store(storage)
    await put(store, 0, 1, 1, make_file({pgno: bytes(512) for pgno in (1, 2, 3)}, commit=3, low=1, high=1))
    await put(store, 0, 2, 2, make_file({4: bytes(512)}, commit=5, low=2, high=2))
    with pytest.raises(DamagedFile, match="snapshot has 4 pages, expected 5"):
        await snapshot(store)
    assert keys(storage, 9) == []


async def test_files_of_unlike_page_sizes_are_refused() -> None:
    store, storage, _ = await replica_of_five()
    await put(store, 0, 6, 6, make_file({1: bytes(1024)}, commit=1, low=6, high=6, page_size=1024))
    with pytest.raises(DamagedFile, match="page sizes 512 and 1024"):
        await compact_level(store, 1)
    assert keys(storage, 1) == []


async def test_gap_is_refused() -> None:
    store, storage, _ = await replica_of_five()
    files = tuple([info for info in await store.list_levels() if info.max_txid != 3])
    with pytest.raises(DamagedFile, match="not contiguous"):
        await run_compaction(store, Compaction(1, 1, files))
    assert keys(storage, 1) == []


@pytest.mark.parametrize("limit", [1 << 20, 100])
async def test_result_that_fails_its_check_is_not_published(
    limit: int, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit flips in this machine's memory or on its disk."""
    monkeypatch.setattr(merge, "SPOOL_MEMORY_BYTES", limit)
    fill = merge.Spool.fill

    def flipped(self: merge.Spool, pieces: Iterator[bytes]) -> None:
        fill(self, (bytes([piece[0] ^ 1, *piece[1:]]) if number == 2 else piece for number, piece in enumerate(pieces)))

    monkeypatch.setattr(merge.Spool, "fill", flipped)
    store, storage, _ = await replica_of_five()
    with pytest.raises(EnvironmentProblem, match="was not published"):
        await run_compaction(store, Compaction(1, 1, tuple(await store.list_level(0))), spool_dir=spool_dir)
    assert keys(storage, 1) == []


async def test_result_with_another_header_than_the_plans_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "compact", lambda inputs: iter([history.file(1, 4)]))
    store, storage, history = await replica_of_five()
    with pytest.raises(EnvironmentProblem, match="expected Header"):
        await compact_level(store, 1)
    assert keys(storage, 1) == []


async def test_no_room_for_temporary_files_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "SPOOL_MEMORY_BYTES", 100)
    store, storage, _ = await replica_of_five()
    with pytest.raises(EnvironmentProblem, match=r"temporary file in .*missing"):
        await compact_level(store, 1, spool_dir=tmp_path / "missing")
    assert keys(storage, 1) == []


@pytest.mark.parametrize("for_good", [True, False])
@pytest.mark.parametrize("when", When)
async def test_request_that_fails_leaves_all_or_nothing(when: When, for_good: bool, spool_dir: Path) -> None:
    """Every request of a compaction in turn."""
    failures = 0
    for number in range(1, 40):
        _, storage, history = await replica_of_five()
        plan = FaultAt(number, fault=Fault(when, TransientStorageError), for_good=for_good)
        store = memory_store(FaultStorage(storage, plan))
        try:
            await compact_level(store, 1, spool_dir=spool_dir)
        except TransientStorageError:
            failures += 1
        else:
            assert keys(storage, 1) == [store.key(FileInfo(1, 1, 5, 0))]
        for key in keys(storage, 1):
            assert storage.objects[key].data == history.file(1, 5)
    assert failures >= 16  # ten listings, five files and the result


async def test_cancelled_compaction_leaves_nothing(spool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "SPOOL_MEMORY_BYTES", 100)
    monkeypatch.setattr(merge, "MAX_CHUNK_BYTES", 300)
    history = history_of(random.Random(1), 6)
    for after in range(6):  # every file takes a request at least
        storage = _HaltingStorage(after)
        store = await replica(history, storage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda store=store: compact_level(store, 1, spool_dir=spool_dir))
            await storage.halted.wait()
            nursery.cancel_scope.cancel()
        assert keys(storage, 1) == []


class _HaltingStorage(MemoryStorage):
    """Answers so many GETs, and no more."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.halted = trio.Event()
        self._answers = answers

    async def get(self, key: str, range: Range | None = None) -> Blob:
        self._answers -= 1
        if self._answers < 0:
            self.halted.set()
            await trio.sleep_forever()
        return await super().get(key, range)


# --- a file that has the name already --------------------------------------------------------


async def test_file_of_another_compactor_with_the_same_pages_is_adopted() -> None:
    """Its bytes may differ: another compressor made them."""
    store, storage, history = await replica_of_five()
    compaction = next_compaction(await store.list_levels(), 1)
    assert compaction is not None
    file = decode_file(history.file(1, 5))
    header = Header(page_size=512, commit=file.header.commit, min_txid=1, max_txid=5, timestamp_ms=7, node_id=8)
    other = encode_file(header, zip(file.index.pgno.tolist(), file.pages, strict=True))
    await put(store, 1, 1, 5, other)
    done = await run_compaction(store, compaction)
    assert done == Compacted(compaction, FileInfo(1, 1, 5, len(other), TIMESTAMP_MS), adopted=True)
    assert storage.objects[store.key(done.info)].data == other


@pytest.mark.parametrize("change", ["page", "more", "fewer", "commit"])
async def test_file_of_the_name_with_other_pages_is_a_conflict(change: str) -> None:
    history = History()
    history.commit(4)
    history.commit(4, 2, 3)
    history.commit(4, 3)
    store = await replica(history)
    pages = {2: history.changes[1][2], 3: history.changes[2][3]}
    match change:
        case "page":
            pages[2] = bytes(512)
        case "more":
            pages[4] = bytes(512)
        case "fewer":
            del pages[3]
    other = make_file(pages, commit=5 if change == "commit" else 4, low=2, high=3)
    info = await put(store, 1, 2, 3, other)
    with pytest.raises(ConflictError, match=store.key(info)):
        await run_compaction(store, Compaction(1, 2, tuple(await store.list_level(0))[1:]))
    assert await content(store, info) == other


async def test_damaged_file_of_the_name_is_said_to_be_damaged() -> None:
    store, _, history = await replica_of_five()
    info = await put(store, 1, 1, 5, history.file(1, 5)[:-1])
    with pytest.raises(DamagedFile) as error:
        await run_compaction(store, Compaction(1, 1, tuple(await store.list_level(0))))
    assert error.value.key == store.key(info)


async def test_own_file_whose_answer_was_lost_is_adopted() -> None:
    _, storage, history = await replica_of_five()
    lost = Fault(When.AFTER_EFFECT, PreconditionFailed)  # what a retry of ours is told
    store = memory_store(FaultStorage(storage, FaultAt(1, Operation.PUT_IF_ABSENT, lost)))
    done = await compact_level(store, 1)
    assert done is not None
    assert done.adopted
    assert await content(store, done.info) == history.file(1, 5)


# --- between plan and read -------------------------------------------------------------------


class _MovingStorage(MemoryStorage):
    """The first GET finds that another process has compacted and deleted since the listing."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[tuple[str, bytes | None]] = []

    async def get(self, key: str, range: Range | None = None) -> Blob:
        moves, self.moves = self.moves, []
        for moved, data in moves:
            if data is None:
                del self.objects[moved]
            else:
                self.objects[moved] = StoredObject(data, TIMESTAMP_MS)
        return await super().get(key, range)


async def test_files_compacted_and_deleted_between_plan_and_read_are_planned_again(autojump_clock: object) -> None:
    """ls#1270, ls#1307."""
    history = history_of(random.Random(1270), 8)
    storage = _MovingStorage()
    store = await replica(history, storage)
    storage.moves = [(store.key(FileInfo(1, 1, 5, 0)), history.file(1, 5))]
    storage.moves += [(store.key(FileInfo(0, txid, txid, 0)), None) for txid in range(1, 6)]
    done = await snapshot(store)
    assert done is not None
    assert [str(info)[:2] for info in done.compaction.inputs] == ["L1", "L0", "L0", "L0"]
    assert b"".join(decode_file(await content(store, done.info)).pages) == history.database(8)


async def test_level_that_another_compactor_has_made_meanwhile_leaves_nothing_to_do(autojump_clock: object) -> None:
    history = history_of(random.Random(1), 4)
    storage = _MovingStorage()
    store = await replica(history, storage)
    storage.moves = [(store.key(FileInfo(1, 1, 4, 0)), history.file(1, 4)), (store.key(FileInfo(0, 2, 2, 0)), None)]
    assert await compact_level(store, 1) is None
    assert len(keys(storage, 1)) == 1


async def test_replica_that_keeps_losing_files_is_given_up(autojump_clock: object) -> None:
    history = history_of(random.Random(1), 20)
    storage = MemoryStorage()
    store = await replica(history, storage)

    async def get(info: FileInfo, range: Range | None = None) -> Blob:
        raise NotFound("gone", key=store.key(info))

    store.get = get  # type: ignore[method-assign]  # every file of the listing has gone
    with pytest.raises(NotFound):
        await compact_level(store, 1)


async def test_damaged_file_is_got_around_where_others_have_its_transactions(autojump_clock: object) -> None:
    history = history_of(random.Random(2), 9)
    storage = MemoryStorage()
    store = await replica(history, storage)
    for low, high in ((1, 3), (4, 6), (7, 9)):
        await publish(store, history, 1, low, high)
    await storage.put(keys(storage, 1)[1], b"damaged")
    done = await compact_level(store, 2)
    assert done is not None
    assert await content(store, done.info) == history.file(1, 9)
    assert [info.level for info in done.compaction.inputs] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize("level", [1, 9])
async def test_newest_transaction_in_a_damaged_file_only_is_not_left_out_silently(
    level: int, autojump_clock: object
) -> None:
    store, storage, _ = await replica_of_five()
    key = keys(storage, 0)[4]
    await storage.put(key, b"damaged")
    with pytest.raises(DamagedFile) as error:
        await (compact_level(store, level) if level == 1 else snapshot(store))
    assert error.value.key == key
    assert keys(storage, level) == []


async def test_first_file_damaged_is_damage_and_not_a_gap(autojump_clock: object) -> None:
    store, storage, _ = await replica_of_five()
    await storage.put(keys(storage, 0)[0], b"damaged")
    with pytest.raises(DamagedFile):
        await snapshot(store)
    await storage.delete(keys(storage, 0)[:1])
    with pytest.raises(GapError):
        await snapshot(store)
