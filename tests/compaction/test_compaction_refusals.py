"""Nothing wrong is ever published by a compaction: damaged inputs, failing stores and machines, cancellation."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import trio

from litereplica.compaction import merge
from litereplica.compaction.compaction import compact_level, run_compaction, snapshot
from litereplica.compaction.levels import Compaction, next_compaction
from litereplica.errors import (
    DamagedFile,
    EnvironmentProblem,
    FileVanished,
    NotFound,
    TransientStorageError,
)
from litereplica.format.decoder import decode_file
from litereplica.ltxstore.spooled_file import SpooledFile
from litereplica.storage.base import Blob, ByteRange, Range
from litereplica.testing.faults import Fault, FaultAt, FaultStorage, When
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from tests.compaction.compacting import content, history_of, keys, replica, replica_of_five
from tests.ltxstore.replicas import make_file, memory_store, put


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
            made, right = decode_file(await content(store, done.info)), decode_file(history.file(1, 5))
            assert (made.header, made.pages) == (right.header, right.pages)
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
    with pytest.raises(DamagedFile, match="differ from its name") as error:
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
    monkeypatch.setattr(merge, "PIECE_BYTES", 100)
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
    write = SpooledFile.write

    def flipped(self: SpooledFile, pieces: Iterable[bytes]) -> None:
        write(
            self, (bytes([piece[0] ^ 1, *piece[1:]]) if number == 2 else piece for number, piece in enumerate(pieces))
        )

    monkeypatch.setattr(SpooledFile, "write", flipped)
    store, storage, _ = await replica_of_five()
    with pytest.raises(EnvironmentProblem, match="was not published"):
        await run_compaction(store, Compaction(1, 1, tuple(await store.list_level(0))), spool_dir=spool_dir)
    assert keys(storage, 1) == []


async def test_result_with_another_header_than_the_plans_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    store, storage, history = await replica_of_five()
    monkeypatch.setattr(merge, "compact", lambda inputs: iter([history.file(1, 4)]))
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
    monkeypatch.setattr(merge, "PIECE_BYTES", 300)
    history = history_of(random.Random(1), 6)
    for after in range(6):  # every file takes a request at least
        storage = _HaltingStorage(after)
        store = await replica(history, storage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(compact_level, store, 1, spool_dir=spool_dir))
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
