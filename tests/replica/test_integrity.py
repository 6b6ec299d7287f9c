"""What is read by range is checked: a flipped bit is never served, wherever it is, when a file has sums beside it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from litereplica.errors import DamagedFile, FileVanished, TransientStorageError
from litereplica.format.decoder import decode_file
from litereplica.format.names import Layout
from litereplica.ltxstore.frame_checksums import FIRST_PAUSE_S, frame_checksums_key
from litereplica.ltxstore.store import WHOLE_FILE_LIMIT, LTXStore
from litereplica.replica import file_reader, hydrate
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.statistics import HydrationState
from litereplica.storage.base import Blob, ByteRange, Range
from litereplica.storage.wrappers import WrapperStorage
from litereplica.testing.faults import Fault, FaultStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo, Pgno
from tests.helpers.history import PAGE_SIZE, History

PAGES = 700
DEADLINE_S = 20.0


class FlippingStorage(WrapperStorage):
    """Flips a bit of the answers to some requests, on their way."""

    def __init__(self, inner: MemoryStorage) -> None:
        super().__init__(inner)
        self.flips = 0
        self.answered: set[tuple[str, Range | None]] | None = None  # to flip the first answer of each request
        self.gets: list[tuple[str, Range | None]] = []

    async def get(self, key: str, range: Range | None = None) -> Blob:
        self.gets.append((key, range))
        blob = await super().get(key, range)
        first = self.answered is not None and (key, range) not in self.answered
        if self.answered is not None:
            self.answered.add((key, range))
        if (self.flips or first) and not key.startswith("sums/"):
            self.flips = max(0, self.flips - 1)
            data = bytearray(blob.data)
            data[len(data) // 2] ^= 1
            return replace(blob, data=bytes(data))
        return blob


class Bench:
    """A database of one large file and one small one."""

    def __init__(self, *, with_sums: bool = True) -> None:
        self.memory = MemoryStorage()
        self.history = History(self.memory, with_sums=with_sums)
        self.flipping = FlippingStorage(self.memory)
        self.faults = FaultStorage(self.flipping, lambda request: None)
        self.store = LTXStore(self.faults, Layout.S3)

    async def fill(self) -> None:
        await self.history.commit({pgno: incompressible(pgno) for pgno in range(1, PAGES + 1)})
        await self.history.commit({7: b"seven", 300: b"three hundred"})

    @property
    def large(self) -> str:
        return self.store.key(FileInfo(0, 1, 1, 0))

    @property
    def small(self) -> str:
        return self.store.key(FileInfo(0, 2, 2, 0))

    def flip(self, key: str, place: int, bit: int = 0) -> None:
        stored = self.memory.objects[key]
        data = bytearray(stored.data)
        data[place] ^= 1 << bit
        self.memory.objects[key] = replace(stored, data=bytes(data))

    def place_of(self, key: str, pgno: Pgno) -> int:
        """The middle of a page's frame in a file: a literal of LZ4, so that the frame decodes all the same."""
        index = decode_file(self.memory.objects[key].data).index
        row = index.position(pgno)
        assert row is not None
        return int(index.offset[row]) + int(index.size[row]) // 2

    @asynccontextmanager
    async def replica(self, *, memory_size: int = 0, cache_dir: Path | None = None) -> AsyncIterator[Replica]:
        async with open_replica(self.store, memory_size=memory_size, cache_dir=cache_dir) as replica:
            yield replica


def incompressible(n: int) -> bytes:
    return np.random.default_rng(n).bytes(PAGE_SIZE)


async def read(replica: Replica, *numbers: Pgno) -> list[bytes]:
    pgnos: NDArray[np.uint32] = np.array(numbers, np.uint32)
    return await replica.read(pgnos, replica.snapshot.pages.lookup(pgnos), around=replica.snapshot.pages)


async def never_wrong(replica: Replica, right: dict[Pgno, bytes]) -> set[Pgno]:
    """Read every page, healing as a mount does; those that can be read are right. Returns the others."""
    failed = set()
    for pgno in right:
        try:
            (page,) = await read(replica, pgno)
        except DamagedFile:
            try:
                await replica.heal()
                (page,) = await read(replica, pgno)
            except DamagedFile:
                failed.add(pgno)
                continue
        assert page == right[pgno]
    return failed


async def test_wherever_a_bit_of_a_large_file_is_flipped_no_wrong_page_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    await bench.fill()
    right = bench.history.at(2)
    whole = bench.memory.objects[bench.large]
    index = decode_file(whole.data).index
    some = {pgno: right[pgno] for pgno in (1, 2, 7, 350, PAGES - 1, PAGES)}
    frames = [int(index.offset[pgno - 1]) + at for pgno in some for at in (0, 3, 5, 9, 12, 200)]
    regions = [*range(0, 100, 9), *frames, *range(index.frames_end, len(whole.data), 977), len(whole.data) - 5]
    refused = damaged = 0
    for place in regions:
        bench.flip(bench.large, place, bit=place % 8)
        try:
            async with bench.replica() as replica:
                damaged += len(await never_wrong(replica, some))
        except DamagedFile:
            refused += 1
        bench.memory.objects[bench.large] = whole
    assert damaged >= len(frames) - 6  # the frame of page 7 is not read from there
    assert refused > 10
    assert "the sums beside the file" in caplog.text


async def test_a_damaged_page_is_read_from_another_file_and_the_log_names_key_and_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    await bench.fill()
    await bench.history.snapshot()
    snapshot_key = bench.store.key(FileInfo(9, 1, 2, 0))
    bench.flip(snapshot_key, bench.place_of(snapshot_key, 350))
    async with bench.replica() as replica:
        with pytest.raises(DamagedFile, match=f"{snapshot_key}: page 350"):
            await read(replica, 350)
        assert await replica.heal() is not None
        right = bench.history.at(2)
        assert await read(replica, *right) == list(right.values())
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [f"{snapshot_key}: page 350" in record.getMessage() for record in errors] == [True]


async def test_without_sums_the_same_damage_is_served_until_the_file_has_been_read_whole() -> None:
    """The limit of what can be known of files that others have published."""
    bench = Bench(with_sums=False)
    await bench.fill()
    bench.flip(bench.large, bench.place_of(bench.large, 350))
    async with bench.replica() as replica:
        (page,) = await read(replica, 350)
        assert page != bench.history.at(2)[350]


@pytest.mark.logs("cannot be checked", "page 350")
@pytest.mark.parametrize("part", ["head", "segment"])
async def test_sums_that_were_damaged_once_and_repaired_find_damage_of_the_file_afterwards(part: str) -> None:
    """Damage is not the final word about the sums, whichever part of them it was in, nor when it was met."""
    bench = Bench()
    await bench.fill()
    key = frame_checksums_key(FileInfo(0, 1, 1, 0))
    right = bench.memory.objects[key]
    bench.flip(key, 0 if part == "head" else len(right.data) - 1)
    async with bench.replica() as replica:
        assert await read(replica, 350) == [bench.history.at(2)[350]]
        bench.memory.objects[key] = right
        bench.flip(bench.large, bench.place_of(bench.large, 350))
        assert await never_wrong(replica, {350: bench.history.at(2)[350]}) == {350}


@pytest.mark.logs("cannot be checked", "LTX file checksum")
async def test_while_its_sums_are_damaged_a_file_is_read_whole_and_checked_unless_it_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    await bench.fill()
    bench.flip(frame_checksums_key(FileInfo(0, 1, 1, 0)), 0)
    bench.flip(bench.large, bench.place_of(bench.large, 350))
    right = bench.history.at(2)
    async with bench.replica() as replica:
        assert await never_wrong(replica, {350: right[350]}) == {350}
    monkeypatch.setattr(file_reader, "WHOLE_IF_DAMAGED_LIMIT", WHOLE_FILE_LIMIT)
    async with bench.replica() as replica:
        (page,) = await read(replica, 350)
        assert page != right[350]


@pytest.mark.logs("header or page index")
async def test_an_index_that_was_damaged_in_transit_before_its_sums_were_found_is_read_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    await bench.fill()
    key = frame_checksums_key(FileInfo(0, 1, 1, 0))
    gone = bench.memory.objects.pop(key)
    whole = bench.memory.objects[bench.large]
    bench.flip(bench.large, 39)  # the time in the header
    async with bench.replica() as replica:
        bench.memory.objects[key] = gone
        bench.memory.objects[bench.large] = whole
        await trio.sleep(FIRST_PAUSE_S)
        with pytest.raises(DamagedFile, match="header or page index"):
            await read(replica, 350)
        await replica.heal()
        assert await read(replica, 350) == [bench.history.at(2)[350]]


async def test_a_flip_on_the_way_is_asked_for_again_and_no_damage(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    await bench.fill()
    async with bench.replica() as replica:
        for pgno in (350, 7):  # of the large file, of the small one
            bench.flipping.flips = 1
            assert await read(replica, pgno) == [bench.history.at(2)[pgno]]
    assert not caplog.records


async def test_a_flip_on_the_way_to_an_index_or_a_new_file_is_asked_for_again_and_the_file_is_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    await bench.fill()
    bench.flipping.answered = set()  # header and index of the large file, all of the small one
    async with bench.replica() as replica:
        assert len(bench.flipping.answered) >= 3
        bench.flipping.answered = None
        await bench.history.commit({8: b"eight"})
        bench.flipping.flips = 1
        assert await replica.poll() is not None
        await replica.heal()  # by a plan of all files: there are no others
        assert await read(replica, 7, 8, 350) == [bench.history.at(3)[pgno] for pgno in (7, 8, 350)]
    assert not caplog.records


@pytest.mark.logs("page 7: ")
async def test_a_file_damaged_on_the_way_twice_is_asked_for_again_when_no_other_holds_its_pages() -> None:
    """A merge of small files, which are deleted later: avoiding it for good would make reads fail for good."""
    bench = Bench()
    await bench.fill()
    await bench.history.commit({8: b"eight"})
    await bench.history.compact(1, 2, 3)
    async with bench.replica() as replica:
        bench.flipping.flips = 2  # the only two requests for the merged file
        with pytest.raises(DamagedFile):
            await read(replica, 7)
        await replica.heal()
        assert await read(replica, 7, 8) == [bench.history.at(3)[pgno] for pgno in (7, 8)]
        for txid in (2, 3):
            await bench.memory.delete([bench.store.key(FileInfo(0, txid, txid, 0))])
        with pytest.raises(FileVanished):
            await read(replica, 7)
        await replica.heal()
        assert await read(replica, 7, 8) == [bench.history.at(3)[pgno] for pgno in (7, 8)]


@pytest.mark.logs("LTX file checksum")
async def test_a_small_file_is_read_whole_and_checked_each_time_it_is_needed() -> None:
    bench = Bench(with_sums=False)
    await bench.fill()
    async with bench.replica() as replica:
        bench.flipping.gets.clear()
        assert await read(replica, 7) == [bench.history.at(2)[7]]
        size = len(bench.memory.objects[bench.small].data)
        assert bench.flipping.gets == [(bench.small, ByteRange(0, size))]
        bench.flip(bench.small, bench.place_of(bench.small, 7))
        with pytest.raises(DamagedFile, match="page 7: LTX file checksum"):
            await read(replica, 7)


async def test_the_sums_of_a_block_are_asked_for_once_and_at_the_same_time_as_its_frames() -> None:
    bench = Bench()
    await bench.fill()
    async with bench.replica() as replica:
        bench.flipping.gets.clear()
        await read(replica, 100)
        assert sorted(key for key, _ in bench.flipping.gets) == [bench.large, frame_checksums_key(FileInfo(0, 1, 1, 0))]
        await read(replica, 600)
        assert {key for key, _ in bench.flipping.gets[2:]} == {bench.large}


async def test_pages_are_not_used_while_the_sums_that_a_file_has_cannot_be_had(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    await bench.fill()
    async with bench.replica() as replica:
        bench.faults.plan = lambda request: Fault() if request.call.key.startswith("sums/") else None
        with pytest.raises(TransientStorageError):
            await read(replica, 100)
        bench.faults.plan = lambda request: None
        assert await read(replica, 100) == [bench.history.at(2)[100]]


async def test_an_object_that_has_been_exchanged_since_the_opening_is_not_read() -> None:
    """The etag of the opening decides, not that of the first block."""
    bench = Bench(with_sums=False)
    await bench.fill()
    async with bench.replica() as replica:
        data = bytearray(bench.memory.objects[bench.large].data)
        data[-4] ^= 1  # in its trailer, by which it is known
        await bench.memory.put(bench.large, bytes(data))
        with pytest.raises(FileVanished, match="has been replaced"):
            await read(replica, 100)


@pytest.mark.logs("page 350: frame is not as", "hydration pauses")
async def test_hydration_serves_no_damaged_page_and_fetches_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hydrate, "RETRY_S", 0.01)
    monkeypatch.setattr(hydrate, "START_DELAY_S", 0.0)
    monkeypatch.setattr(hydrate, "SEGMENT", 64 * 1024)
    bench = Bench()
    await bench.fill()
    assert len(bench.memory.objects[bench.large].data) > WHOLE_FILE_LIMIT
    bench.flip(bench.large, bench.place_of(bench.large, 350))
    right = bench.history.at(2)
    async with bench.replica(cache_dir=tmp_path / "cache") as replica, trio.open_nursery() as nursery:
        nursery.start_soon(replica.hydrate)
        with trio.fail_after(DEADLINE_S):
            while replica.statistics().hydration.state is not HydrationState.COMPLETE:  # noqa: ASYNC110
                await trio.sleep(0.002)
        fetched = replica.statistics().pages_from_store
        others = {pgno: page for pgno, page in right.items() if pgno != 350}
        assert not await never_wrong(replica, others)
        assert replica.statistics().pages_from_store == fetched
        assert await never_wrong(replica, right) == {350}
        nursery.cancel_scope.cancel()
