"""Restoring from parts of large files: the same database, fewer bytes, and damage found in what is read."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import trio
from trio.testing import MockClock as Clock

from litereplica.errors import DamagedFile, GapError, NotFound, PointNotFound
from litereplica.format.decoder import decode_file
from litereplica.format.frame_checksums import FrameChecksumsEncoder
from litereplica.format.ltx import HEADER_SIZE, PageIndex
from litereplica.ltxstore import range_plan
from litereplica.ltxstore import store as store_module
from litereplica.ltxstore.frame_checksums import frame_checksums_key
from litereplica.ltxstore.plan import plan_restore, reachable_txids
from litereplica.ltxstore.range_plan import plan_spans
from litereplica.ltxstore.store import LTXStore
from litereplica.restore import plan_reader
from litereplica.restore.restore import preview, restore
from litereplica.storage.base import Blob, Range
from litereplica.storage.wrappers.delegate import WrapperStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from tests.ltxstore.replicas import PAGE_SIZE, History, memory_store, publish

HISTORIES = 40
SCHEDULES = 150
LAST_ACTION = 6
"""Changes of the store in one schedule: fewer than the plans that a restore makes."""


@pytest.fixture(autouse=True)
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a kilobyte count as large, and are read in many requests."""
    monkeypatch.setattr(plan_reader, "WHOLE_FILE_LIMIT", 900)
    monkeypatch.setattr(store_module, "WHOLE_FILE_LIMIT", 900)
    monkeypatch.setattr(store_module, "TAIL_READ", 300)
    monkeypatch.setattr(plan_reader, "PIECE_BYTES", 600)
    monkeypatch.setattr(range_plan, "MAX_GAP", 60)
    monkeypatch.setattr(range_plan, "MAX_SPAN_PAGES_BYTES", 20 * PAGE_SIZE)


def history_of(rng: random.Random, transactions: int) -> History:
    """Growth, shrink, regrowth, and rewrites of much or little."""
    history = History()
    history.commit(rng.randint(1, 90))
    while history.txid < transactions:
        size = max(1, history.sizes[-1] + rng.choice((-40, -9, -1, 0, 0, 1, 5, 40)))
        changed = rng.sample(range(1, size + 1), min(size, rng.choice((0, 1, 2, size // 2, size))))
        history.commit(size, 1, *changed)
    return history


async def publish_some(store: LTXStore, history: History, rng: random.Random) -> None:
    """All of level 0, and some files of the others."""
    for txid in range(1, history.txid + 1):
        await rng.choice((publish, publish_summed))(store, history, 0, txid, txid)
    for level in (1, 1, 2, 3, 9):
        await compact_some(store, history, rng, level)


async def publish_summed(store: LTXStore, history: History, level: int, low: int, high: int) -> FileInfo:
    """A file with its sums, as our writer and compaction publish it."""
    info = await publish(store, history, level, low, high)
    await store.put_frame_checksums(info, sums_of(history.file(low, high)))
    return info


def sums_of(data: bytes) -> bytes:
    index = decode_file(data).index
    sums = FrameChecksumsEncoder()
    sums.feed(data[:HEADER_SIZE])
    for start, size in zip(index.offset.tolist(), index.size.tolist(), strict=True):
        sums.feed(data[start : start + size])
    sums.feed(data[index.frames_end :])
    return sums.finish()


async def compact_some(store: LTXStore, history: History, rng: random.Random, level: int) -> FileInfo:
    high = rng.choice(reachable_txids(await store.list_levels()))
    low = 1 if level == 9 else rng.randint(1, high)
    existing = [info for info in await store.list_level(level) if (info.min_txid, info.max_txid) == (low, high)]
    return existing[0] if existing else await publish_summed(store, history, level, low, high)


@pytest.mark.slow
async def test_every_txid_of_many_histories_is_restored_exactly(tmp_path: Path) -> None:
    ranged = whole = 0
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        history = history_of(rng, 12)
        store = memory_store()
        await publish_some(store, history, rng)
        for txid in range(1, history.txid + 1):
            foreseen = await preview(store, target=txid)
            result = await restore(store, tmp_path / "out.db", target=txid, force=True)
            assert (tmp_path / "out.db").read_bytes() == history.database(txid), (seed, txid)
            assert foreseen.bytes == result.bytes_read
            assert (foreseen.txid, foreseen.pages, foreseen.size) == (txid, result.pages, result.size)
            ranged += sum(not read.whole for read in foreseen.reads)
            whole += sum(read.whole and read.info.size > 900 for read in foreseen.reads)
    assert min(ranged, whole) > 50


async def test_only_what_ends_up_in_the_database_is_read(tmp_path: Path) -> None:
    history = History()
    history.commit(400)
    history.commit(400, *range(1, 350))
    store = memory_store()
    old, new = [await publish_summed(store, history, 0, txid, txid) for txid in (1, 2)]
    result = await restore(store, tmp_path / "out.db")
    assert (tmp_path / "out.db").read_bytes() == history.database(2)
    assert new.size < result.bytes_read < new.size + 0.2 * old.size


def test_spans_hold_the_wanted_frames_once_and_join_what_lies_near() -> None:
    rng = random.Random(1)
    for _ in range(300):
        count = rng.randint(1, 80)
        size = np.array([rng.randint(10, 90) for _ in range(count)], np.uint32)
        offset = 100 + np.concatenate(([0], np.cumsum(size[:-1], dtype=np.uint64)))
        index = PageIndex(np.arange(1, count + 1, dtype=np.uint32), offset.astype(np.uint64), size)
        rows = np.array(sorted(rng.sample(range(count), rng.randint(1, count))), np.intp)
        spans = plan_spans(index, rows, page_size=PAGE_SIZE, max_bytes=600)
        assert np.concatenate([span.rows for span in spans]).tolist() == rows.tolist()
        for span in spans:
            assert span.start == offset[span.rows[0]]
            assert span.stop == offset[span.rows[-1]] + size[span.rows[-1]]
            assert len(span.rows) <= 20
            assert span.stop - span.start <= 600
        for before, after in itertools.pairwise(spans):
            near = after.start - before.stop <= 60
            full = len(before.rows) == 20 or index_end(index, after.rows[0]) - before.start > 600
            assert full or not near


def index_end(index: PageIndex, row: int) -> int:
    return int(index.offset[row]) + int(index.size[row])


def flip(objects: MemoryStorage, key: str, offset: int) -> None:
    data = bytearray(objects.objects[key].data)
    data[offset] ^= 0xFF
    objects.objects[key] = type(objects.objects[key])(bytes(data), 0)


@pytest.mark.parametrize("place", [0, 3, 12, 25])
async def test_damaged_frame_of_a_range_is_named_or_avoided(autojump_clock: Clock, tmp_path: Path, place: int) -> None:
    """Also where the frame is still one: in the bytes of the page."""
    history = History()
    history.commit(400)
    history.commit(400, *range(1, 300))
    objects = MemoryStorage()
    store = memory_store(objects)
    first, _ = [await publish_summed(store, history, 0, txid, txid) for txid in (1, 2)]
    index = (await store.open(first)).index
    flip(objects, store.key(first), int(index.offset[350]) + place)
    output = tmp_path / "out.db"
    with pytest.raises(DamagedFile, match="page 351 is not as the sums"):
        await restore(store, output)
    assert not output.exists()
    await publish(store, history, 1, 1, 1)
    await restore(store, output)
    assert output.read_bytes() == history.database(2)


@pytest.mark.parametrize("harm", ["none", "other", "gone", "segment"])
@pytest.mark.logs("cannot be checked until the file has been read whole")
async def test_file_without_its_sums_is_read_whole(autojump_clock: Clock, tmp_path: Path, harm: str) -> None:
    history = History()
    history.commit(400)
    history.commit(400, *range(1, 300))
    objects = MemoryStorage()
    store = memory_store(objects)
    first, _ = [await publish_summed(store, history, 0, txid, txid) for txid in (1, 2)]
    key = frame_checksums_key(first)
    match harm:
        case "other":
            await objects.put(key, sums_of(history.file(1, 2)))
        case "gone":
            await objects.delete([key])
        case "segment":
            flip(objects, key, len(objects.objects[key].data) - 5)
    foreseen = await preview(store)
    assert [read.whole for read in foreseen.reads] == [harm in ("other", "gone"), True]
    result = await restore(store, tmp_path / "out.db")
    assert (tmp_path / "out.db").read_bytes() == history.database(2)
    assert (result.bytes_read > first.size) == (harm != "none")


class Changing(WrapperStorage):
    """A store that compacts and deletes at chosen requests."""

    def __init__(self, inner: MemoryStorage, history: History, rng: random.Random) -> None:
        super().__init__(inner)
        self.store = memory_store(inner)
        self._history = history
        self._rng = rng
        self._due = set(rng.sample(range(1, 30), rng.randint(1, LAST_ACTION)))
        self._requests = 0
        self._lock = trio.Lock()

    async def get(self, key: str, range: Range | None = None) -> Blob:
        await self._tick()
        return await super().get(key, range)

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[object]:  # type: ignore[override]
        await self._tick()
        return list(await super().list(prefix, start_after=start_after))

    async def _tick(self) -> None:
        self._requests += 1
        if self._requests in self._due:
            async with self._lock:
                await self._change()

    async def _change(self) -> None:
        made = await compact_some(self.store, self._history, self._rng, self._rng.choice((1, 2, 3, 9)))
        covered = [
            info
            for info in await self.store.list_levels()
            if info.level < made.level and made.min_txid <= info.min_txid and info.max_txid <= made.max_txid
        ]
        await self.store.delete([info for info in covered if self._rng.random() < 0.9])


async def test_restore_races_give_exactly_the_txid_asked_for_or_say_that_it_has_gone(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Compactions and deletions between and during listing, opening and reading."""
    outcomes = {"restored": 0, "gone": 0}
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        history = history_of(rng, 10)
        objects = MemoryStorage()
        await publish_some(memory_store(objects), history, rng)
        target = rng.choice((None, rng.randint(1, history.txid)))
        changing = Changing(objects, history, rng)
        output = tmp_path / f"{seed}.db"
        try:
            result = await restore(memory_store(changing), output, target=target, parallelism=rng.choice((1, 4, 12)))
        except (NotFound, PointNotFound, GapError):
            assert target not in reachable_txids(await changing.store.list_levels()), seed
            assert target is not None, seed
            assert not output.exists()
            outcomes["gone"] += 1
        else:
            assert target in (None, result.txid)
            assert output.read_bytes() == history.database(result.txid), seed
            outcomes["restored"] += 1
    assert list(outcomes.values()) > [SCHEDULES // 2, 5], outcomes


async def test_newest_txid_is_that_of_the_plan(tmp_path: Path) -> None:
    history = history_of(random.Random(3), 8)
    store = memory_store()
    await publish_some(store, history, random.Random(4))
    result = await restore(store, tmp_path / "out.db")
    assert result.files == tuple(plan_restore(await store.list_levels()))
    assert result.txid == history.txid
