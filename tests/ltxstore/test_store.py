"""Access to a replica's files: how many requests each takes, what is ignored, and what is not believed."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest
import trio
from trio.testing import MockClock as Clock

from litereplica.errors import DamagedFile, FileVanished, NotFound, PreconditionFailed
from litereplica.format import ltx
from litereplica.format.names import Layout
from litereplica.ltxstore.store import TAIL_READ, WHOLE_FILE_LIMIT, LTXStore
from litereplica.storage.base import Blob, Range, Suffix
from litereplica.storage.wrappers.delegate import WrapperStorage
from litereplica.storage.wrappers.metering import MeteredStorage
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from tests.ltxstore.replicas import History, make_file, memory_store, publish, put

ROUND_TRIP_S = 1.0


@dataclass(frozen=True, slots=True)
class Fixture:
    """A store whose requests are counted, and which is a second away."""

    objects: MemoryStorage
    meter: MeteredStorage
    store: LTXStore

    def requests(self) -> int:
        return self.meter.statistics().requests


@pytest.fixture
def distant() -> Fixture:
    objects = MemoryStorage()
    meter = MeteredStorage(LatencyStorage(objects, ROUND_TRIP_S))
    return Fixture(objects, meter, memory_store(meter))


def incompressible_file(pages: int, *, page_size: int = 512) -> bytes:
    rng = random.Random(pages)
    content = {pgno: rng.randbytes(page_size) for pgno in range(1, pages + 1)}
    return make_file(content, commit=pages, low=1, high=1, page_size=page_size)


async def cost(store: Fixture, action: Callable[[], Awaitable[object]]) -> tuple[int, float]:
    """(requests, round trips) of an action."""
    before, start = store.requests(), trio.current_time()
    await action()
    return store.requests() - before, (trio.current_time() - start) / ROUND_TRIP_S


async def test_small_file_takes_one_request_and_brings_its_pages(autojump_clock: Clock, distant: Fixture) -> None:
    history = History()
    history.commit(3)
    info = await publish(distant.store, history, 0, 1, 1)
    assert await cost(distant, lambda: distant.store.open(info)) == (1, 1.0)
    opened = await distant.store.open(info)
    assert opened.pages is not None
    assert b"".join(opened.pages) == history.database(1)


async def test_large_file_takes_three_requests_in_one_round_trip(autojump_clock: Clock, distant: Fixture) -> None:
    data = incompressible_file(800)
    assert len(data) > WHOLE_FILE_LIMIT
    info = await put(distant.store, 9, 1, 1, data)
    assert await cost(distant, lambda: distant.store.open(info)) == (3, 1.0)
    opened = await distant.store.open(info)
    assert opened.pages is None
    assert opened.index.pgno.tolist() == list(range(1, 801))
    assert opened.header == ltx.Header.decode(data)


async def test_large_index_takes_one_more_request(autojump_clock: Clock, distant: Fixture) -> None:
    pages = 20_000
    data = make_file({pgno: bytes(512) for pgno in range(1, pages + 1)}, commit=pages, low=1, high=1)
    index_size = ltx.decode_index_size(data[-ltx.TAIL_SIZE :], file_size=len(data))
    assert index_size > TAIL_READ
    info = await put(distant.store, 9, 1, 1, data)
    assert await cost(distant, lambda: distant.store.open(info)) == (4, 2.0)
    assert len((await distant.store.open(info)).index) == pages


async def test_all_levels_are_listed_in_one_round_trip(autojump_clock: Clock, distant: Fixture) -> None:
    assert await cost(distant, distant.store.list_levels) == (10, 1.0)


async def test_poll_for_the_next_transaction_takes_one_request(autojump_clock: Clock, distant: Fixture) -> None:
    history = History()
    history.commit(2)
    await publish(distant.store, history, 0, 1, 1)
    assert await cost(distant, lambda: distant.store.next_l0(1)) == (1, 1.0)
    assert (await cost(distant, lambda: distant.store.next_l0(2)))[0] == 1
    found = await distant.store.next_l0(1)
    assert found is not None
    assert found.info.size > 0
    assert await distant.store.next_l0(2) is None


async def test_poll_that_finds_a_large_transaction_reads_its_index(autojump_clock: Clock, distant: Fixture) -> None:
    data = incompressible_file(800)
    await put(distant.store, 0, 1, 1, data)
    found = await distant.store.next_l0(1)
    assert found is not None
    assert (found.info.size, len(found.index), found.pages) == (len(data), 800, None)


async def test_listing_ignores_every_name_that_is_not_an_ltx_file() -> None:
    store = memory_store()
    good = "0000/0000000000000001-0000000000000001.ltx"
    strange = [
        "0000/000000000000000A-000000000000000A.ltx",
        "0000/0000000000000002-0000000000000001.ltx",
        "0000/0000000000000000-0000000000000001.ltx",
        "0000/0000000000000001-0000000000000001.ltx.tmp",
        "0000/0000000000000001-0000000000000001.LTX",
        "0000/x/0000000000000001-0000000000000001.ltx",
        "0000/1-1.ltx",
        "00000/0000000000000001-0000000000000001.ltx",
        "lock.json",
    ]
    for key in [good, *strange]:
        await store.storage.put(key, b"x")
    assert [(info.min_txid, info.max_txid) for info in await store.list_level(0)] == [(1, 1)]
    assert len(await store.list_levels()) == 1


async def test_listing_after_a_position_keeps_a_file_that_straddles_it() -> None:
    store = memory_store()
    history = History()
    for _ in range(6):
        history.commit(2, 1)
    for txid in range(1, 7):
        await publish(store, history, 0, txid, txid)
    for low, high in ((1, 1), (2, 5), (6, 6)):
        await publish(store, history, 1, low, high)
    assert [info.max_txid for info in await store.list_level(0, after=3)] == [4, 5, 6]
    assert [str(info) for info in await store.list_level(1, after=3)] == [
        str(FileInfo(1, 2, 5, 0)),
        str(FileInfo(1, 6, 6, 0)),
    ]


@pytest.mark.parametrize("claimed", [0, 1, WHOLE_FILE_LIMIT, WHOLE_FILE_LIMIT + 1, 1 << 40])
@pytest.mark.parametrize("pages", [3, 800])
async def test_size_that_a_listing_claims_is_not_believed(pages: int, claimed: int) -> None:
    store = memory_store()
    data = incompressible_file(pages)
    info = await put(store, 0, 1, 1, data)
    opened = await store.open(replace(info, size=claimed))
    assert len(opened.index) == pages
    assert opened.info.size == len(data)


async def test_file_under_another_name_is_damaged() -> None:
    store = memory_store()
    for pages in (3, 800):
        info = await put(store, 1, 1, 2, incompressible_file(pages))
        with pytest.raises(DamagedFile, match="differ from its name") as error:
            await store.open(info)
        assert error.value.key == store.key(info)
        await store.delete([info])


@pytest.mark.parametrize("size", [0, 1, 99, 100, 123, WHOLE_FILE_LIMIT + 1])
async def test_truncated_file_is_damaged(size: int) -> None:
    store = memory_store()
    info = await put(store, 0, 1, 1, incompressible_file(800)[:size])
    for claimed in (size, WHOLE_FILE_LIMIT + 1):
        with pytest.raises(DamagedFile):
            await store.open(replace(info, size=claimed))


@pytest.mark.parametrize("claim", [1 << 63, (1 << 64) - 256, 1 << 40, 0, 300_000])
async def test_index_length_that_cannot_be_is_refused_before_it_is_read(
    autojump_clock: Clock, distant: Fixture, claim: int
) -> None:
    data = bytearray(incompressible_file(800))
    data[-ltx.TAIL_SIZE : -ltx.TRAILER_SIZE] = claim.to_bytes(8, "big")
    info = await put(distant.store, 0, 1, 1, bytes(data))
    before = distant.requests()
    with pytest.raises(DamagedFile):
        await distant.store.open(info)
    assert distant.requests() - before == 2 * 3, "once more, as the damage may have happened in transit"


class ReplacingStorage(WrapperStorage):
    """Replaces the object when its beginning has been read, and before its end is."""

    def __init__(self, inner: MemoryStorage) -> None:
        super().__init__(inner)
        self._replaced = trio.Event()

    async def get(self, key: str, range: Range | None = None) -> Blob:
        if isinstance(range, Suffix):
            await self._replaced.wait()
            return await super().get(key, range)
        blob = await super().get(key, range)
        await self._inner.put(key, incompressible_file(900))
        self._replaced.set()
        return blob


async def test_file_replaced_between_two_requests_counts_as_vanished() -> None:
    store = memory_store(ReplacingStorage(MemoryStorage()))
    info = await put(store, 0, 1, 1, incompressible_file(800))
    with pytest.raises(FileVanished, match="replaced"):
        await store.open(info)


async def test_missing_file_is_one_plain_error_for_small_and_large() -> None:
    store = memory_store()
    for size in (100, WHOLE_FILE_LIMIT + 1):
        with pytest.raises(NotFound):
            await store.open(FileInfo(0, 1, 1, size))


async def test_publishing_never_replaces_a_file() -> None:
    store = memory_store()
    info = await put(store, 0, 1, 1, incompressible_file(3))
    with pytest.raises(PreconditionFailed):
        await store.put(info, b"other", timestamp_ms=0)
    assert (await store.open(info)).pages is not None


async def test_listing_tells_the_time_that_the_header_has() -> None:
    store = memory_store()
    await put(store, 0, 1, 1, incompressible_file(3))
    assert [info.modified_ms for info in await store.list_level(0)] == [1_700_000_000_000]


@pytest.mark.parametrize("layout", list(Layout))
async def test_one_listing_of_everything_shows_what_those_of_the_levels_do(layout: Layout) -> None:
    layout_store = LTXStore(MemoryStorage(), layout)
    for level, low, high in ((0, 1, 1), (0, 2, 2), (1, 1, 2), (9, 1, 1)):
        await layout_store.storage.put(layout_store.key(FileInfo(level, low, high, 0)), b"x" * (level + 1))
    below = "below.db/0000/0000000000000003-0000000000000003.ltx"
    for key in ("sums/0/x.sums", "lock.json", "0000/x.ltx", "ltx/0/x", below, f"0000/{below}", f"ltx/0/{below}"):
        await layout_store.storage.put(key, b"x")
    for after in (0, 1, 2):
        assert await layout_store.list_at_once(after=after) == await layout_store.list_levels(after=after)
