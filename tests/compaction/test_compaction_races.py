"""Compaction beside others who compact and delete: files that are there already, and files that vanish."""

from __future__ import annotations

import random

import pytest

from litereplica.compaction.compaction import Compacted, compact_level, run_compaction, snapshot
from litereplica.compaction.levels import Compaction, next_compaction
from litereplica.errors import (
    ConflictError,
    DamagedFile,
    GapError,
    NotFound,
    PreconditionFailed,
)
from litereplica.format.decoder import decode_file
from litereplica.format.ltx import Header
from litereplica.storage.base import Blob, Range
from litereplica.storage.wrappers import Operation
from litereplica.testing.faults import Fault, FaultAt, FaultStorage, When
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.memory import MemoryStorage, StoredObject
from litereplica.types import FileInfo
from tests.compaction.compacting import content, history_of, keys, replica, replica_of_five
from tests.ltxstore.replicas import TIMESTAMP_MS, History, make_file, memory_store, publish, put

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
    assert done == Compacted(compaction, FileInfo(1, 1, 5, len(other), TIMESTAMP_MS), done.checksum, adopted=True)
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
