"""Past states beside the live one: what they contain, what they cost, and what happens to the files under them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import pytest
import trio
import trio.testing

from litereplica.errors import DamagedFile, FileVanished, GapError, PageSizeChanged, ReplicaError
from litereplica.format.names import Layout
from litereplica.format.sqlite import lock_pgno
from litereplica.ltxstore.plan import plan_restore
from litereplica.ltxstore.store import LTXStore
from litereplica.replica import past_snapshots
from litereplica.replica.current import FORGET_EVERY
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.page_key import page_key
from litereplica.replica.past_catalog import Point
from litereplica.replica.past_snapshots import PastDatabase, PastSnapshots
from litereplica.replica.request_costs import Purpose
from litereplica.storage.wrappers import Operation
from litereplica.types import TXID, FileInfo, Pgno
from tests.helpers.history import FIRST_TIMESTAMP_MS, History

PAGES = 1500
"""Of a first file that is not read whole when it is opened."""


@dataclass
class Scene:
    """A history, a replica of it, and its past."""

    history: History
    replica: Replica
    past: PastSnapshots

    async def check(self, *txids: TXID) -> None:
        for txid in txids:
            assert await content(await self.past.open(txid)) == self.history.at(txid), txid

    @contextmanager
    def page_requests(self, count: int) -> Iterator[None]:
        """The body makes so many requests for pages."""
        before = self.requests(Operation.GET, Purpose.PAGE, Purpose.AHEAD)
        yield
        assert self.requests(Operation.GET, Purpose.PAGE, Purpose.AHEAD) - before == count

    def is_in_memory(self, pgno: Pgno, location: np.void) -> bool:
        current = self.replica._current
        file = current.files.get(int(location["file"]))
        return file is not None and current.pages.get(page_key(file.checksum, pgno)) is not None

    def requests(self, operation: Operation, *purposes: Purpose) -> int:
        ledger = self.replica.statistics().ledger
        entries = [ledger[purpose].by_operation.get(operation) for purpose in purposes]
        return sum(entry.requests for entry in entries if entry is not None)


async def content(past: PastDatabase) -> dict[Pgno, bytes]:
    pages = await past.read(1, past.snapshot.commit)
    assert past.read_now(1, past.snapshot.commit, past.snapshot.pages) in (None, b"".join(pages))
    return dict(enumerate(pages, 1))


async def read_live(replica: Replica) -> dict[Pgno, bytes]:
    pgnos = np.arange(1, replica.snapshot.commit + 1, dtype=np.uint32)
    pages = replica.snapshot.pages
    return dict(enumerate(await replica.read(pgnos, pages.lookup(pgnos), around=pages), 1))


@asynccontextmanager
async def opened(
    history: History, *, memory_size: int = 4 << 20, forget_every: int = FORGET_EVERY
) -> AsyncIterator[Scene]:
    store = LTXStore(history.storage, Layout.S3)
    async with open_replica(store, memory_size=memory_size, forget_every=forget_every) as replica:
        yield Scene(history, replica, replica.past_snapshots())


async def varied(txids: int = 12) -> History:
    """Growth, shrinking, growing again, pages that change often and never."""
    history = History()
    sizes = [5, 9, 9, 4, 4, 8, 12, 12, 3, 3, 10, 10]
    for txid in range(1, txids + 1):
        size = sizes[(txid - 1) % len(sizes)]
        await history.commit({1: b"at %d" % txid, 1 + txid % size: b"changed at %d" % txid}, pages=size)
    return history


async def large(txids: int) -> History:
    """A first file of which only the index is read when it is opened, and small ones after it."""
    history = History()
    await history.commit({pgno: np.random.default_rng(pgno).bytes(512) for pgno in range(1, PAGES + 1)})
    for txid in range(2, txids + 1):
        await history.commit({1: b"at %d" % txid, txid: b"changed at %d" % txid})
    return history


# --- content -----------------------------------------------------------------------------------


async def test_every_point_is_what_the_database_was() -> None:
    async with opened(await varied()) as scene:
        await scene.check(*range(1, 13))


async def test_several_points_are_open_side_by_side() -> None:
    async with opened(await varied()) as scene:
        pasts = {txid: await scene.past.open(txid) for txid in (3, 11, 7, 12)}
        for txid, past in pasts.items():
            assert await content(past) == scene.history.at(txid)
        assert await scene.past.open(7) is pasts[7]


async def test_those_who_open_a_point_at_the_same_time_get_the_same() -> None:
    async with opened(await large(5)) as scene:
        found: list[PastDatabase] = []

        async def open_point() -> None:
            found.append(await scene.past.open(3))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(open_point)
        assert found[0] is found[1] is found[2]


async def test_the_lock_page_of_a_past_state_is_zeroes() -> None:
    history = History(page_size=65536)
    lock = lock_pgno(65536)
    await history.commit({1: b"one"}, pages=3)
    await history.commit({1: b"two"}, pages=4)
    first = {pgno: history.databases[1][1] for pgno in range(1, lock + 2) if pgno != lock}
    history.databases[1], history.commits[1], history.supplied[1] = first, lock + 1, set(first)
    await history.publish(0, 1, 1)
    async with opened(history) as scene:
        past = await scene.past.open(1)
        assert await past.read(lock - 1, lock + 1) == [first[1], bytes(65536), first[1]]


async def test_a_txid_that_no_file_ends_at_is_no_point() -> None:
    history = await varied()
    await history.compact(1, 1, 4)
    for txid in range(1, 5):
        await history.delete(0, txid)
    async with opened(history) as scene:
        assert await scene.past.point(4) == Point(4, FIRST_TIMESTAMP_MS + 4)
        for txid in (1, 3, 13):
            assert await scene.past.point(txid) is None
            with pytest.raises(GapError):
                await scene.past.open(txid)
        await scene.check(4, 5, 12)


async def test_points_with_another_page_size_than_the_live_database_are_refused() -> None:
    history = await varied(3)
    history.page_size = 1024
    history.databases[3] = {}
    await history.commit({1: b"new size", 2: b"two"}, pages=2)
    async with opened(history) as scene:
        with pytest.raises(PageSizeChanged):
            await scene.past.open(2)
        await scene.check(4)


# --- names and times ---------------------------------------------------------------------------


async def test_a_time_is_the_newest_point_before_it() -> None:
    async with opened(await varied()) as scene:
        assert await scene.past.before(FIRST_TIMESTAMP_MS + 6) == Point(5, FIRST_TIMESTAMP_MS + 5)
        assert await scene.past.before(FIRST_TIMESTAMP_MS + 7) == Point(6, FIRST_TIMESTAMP_MS + 6)
        assert await scene.past.before(FIRST_TIMESTAMP_MS + 10**6) == Point(12, FIRST_TIMESTAMP_MS + 12)
        assert await scene.past.before(FIRST_TIMESTAMP_MS + 1) is None


async def test_the_newest_points_are_listed_with_their_times() -> None:
    async with opened(await varied()) as scene:
        assert await scene.past.points(3) == [Point(txid, FIRST_TIMESTAMP_MS + txid) for txid in (10, 11, 12)]
        assert [point.txid for point in await scene.past.points(100)] == list(range(1, 13))


async def test_a_listing_serves_for_a_while_and_headers_are_read_once() -> None:
    async with opened(await varied()) as scene:
        await scene.past.points(12)
        lists, gets = (scene.requests(each, Purpose.PAST) for each in (Operation.LIST, Operation.GET))
        assert (lists, gets) == (10, 12)
        for txid in range(1, 12):
            await scene.past.point(txid)
        assert scene.requests(Operation.GET, Purpose.PAST) == gets
        assert scene.requests(Operation.LIST, Purpose.PAST) == lists


async def test_what_a_listing_does_not_show_yet_is_looked_for_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litereplica.replica.past_catalog.DOUBT_S", 0.0)
    async with opened(await varied(8)) as scene:
        assert await scene.past.point(9) is None
        await scene.history.commit({1: b"nine"})
        assert await scene.past.point(9) == Point(9, FIRST_TIMESTAMP_MS + 9)
        await scene.history.commit({1: b"ten"})
        await scene.check(10)


# --- what is at hand ---------------------------------------------------------------------------


async def test_pages_that_the_live_database_has_are_not_fetched_though_the_plan_names_another_file() -> None:
    history = await large(8)
    async with opened(history) as scene:
        await read_live(scene.replica)
        for txid in (5, 8):
            await history.publish(9, 1, txid)  # the plan for 5 and 8 is one file, the live map has not heard of it
        with scene.page_requests(0):
            unchanged = [pgno for pgno in range(2, PAGES + 1) if not 5 < pgno <= 8]
            past = await scene.past.open(5)
            for pgno in unchanged:
                assert await past.read(pgno, pgno) == [history.databases[5][pgno]]
                assert bytes(past.read_now(pgno, pgno, past.snapshot.pages) or b"") == history.databases[5][pgno]
        await scene.check(5)


async def test_pages_that_another_past_state_has_are_not_fetched_either() -> None:
    history = await large(6)
    await history.commit(dict.fromkeys(range(1, PAGES + 1), b"all new"))
    async with opened(history) as scene:
        fifth = await scene.past.open(5)
        await content(fifth)
        await history.publish(9, 1, 3)
        scene.past._listed.forget()
        third = await scene.past.open(3)
        with scene.page_requests(0):
            for pgno in range(6, PAGES + 1):
                assert await third.read(pgno, pgno) == [history.databases[3][pgno]]
        assert await content(third) == history.at(3)


async def test_pages_that_came_with_an_index_are_not_fetched_again() -> None:
    async with opened(await large(8)) as scene:
        past = await scene.past.open(5)
        with scene.page_requests(0):
            assert await past.read(1, 5) == [scene.history.databases[5][pgno] for pgno in range(1, 6)]


async def test_the_large_file_that_points_begin_with_is_looked_into_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litereplica.replica.past_catalog.INDEX_MEMORY", 0)
    async with opened(await large(8)) as scene:
        first = await scene.past.open(4)
        before = scene.requests(Operation.GET, Purpose.PAST)
        second = await scene.past.open(5)
        small_files = 4  # TXIDs 2 to 5
        assert scene.requests(Operation.GET, Purpose.PAST) - before == small_files
        assert await content(first) == scene.history.at(4)
        assert await content(second) == scene.history.at(5)


async def test_the_point_of_the_live_database_costs_nothing() -> None:
    async with opened(await large(5)) as scene:
        live = await read_live(scene.replica)
        with scene.page_requests(0):
            assert await content(await scene.past.open(5)) == live
        assert scene.requests(Operation.GET, Purpose.PAST) == scene.requests(Operation.LIST, Purpose.PAST) == 0


async def test_points_that_share_files_read_their_indexes_once() -> None:
    async with opened(await large(20)) as scene:
        held = [await scene.past.open(txid) for txid in range(2, 20)]
        assert scene.requests(Operation.LIST, Purpose.PAST) == 10
        indexes = 3 + 18  # header, tail and checksums' place of the first file; the small ones whole
        vouching = 1  # the trailer of the newest file that the live database reads from
        assert scene.requests(Operation.GET, Purpose.PAST) <= indexes + vouching
        assert len(held) == 18


async def test_maps_of_points_share_what_is_the_same_in_them() -> None:
    history = await large(4)
    async with opened(history) as scene:
        chunks = scene.replica.snapshot.pages._chunks
        past = await scene.past.open(3)
        assert past.snapshot.pages._chunks[1] is chunks[1]


async def test_what_the_live_database_moves_to_other_files_moves_for_past_states_too() -> None:
    history = await large(8)
    async with opened(history) as scene:
        past = await scene.past.open(5)
        await read_live(scene.replica)
        await history.publish(9, 1, 8)
        for txid in range(1, 8):
            await history.delete(0, txid)
        assert await scene.replica.heal() is not None
        with scene.page_requests(0):
            for pgno in (2, 4, 5, *range(9, PAGES + 1)):
                assert await past.read(pgno, pgno) == [history.databases[5][pgno]]


async def test_a_stream_in_a_past_state_is_read_ahead_although_the_live_one_is_read_there_too() -> None:
    history, count = History(), 8000
    for seed in (1, 2):
        await history.commit({pgno: np.random.default_rng(seed * pgno).bytes(512) for pgno in range(1, count + 1)})
    async with opened(history, memory_size=16 << 20) as scene:
        past = await scene.past.open(1)
        live = scene.replica.snapshot
        last = 2000
        for first in range(1, last, 256):
            pgnos = np.arange(first, first + 256, dtype=np.uint32)
            await scene.replica.read(pgnos, live.pages.lookup(pgnos), around=live.pages)
            await past.read(first, first + 255)
        await trio.testing.wait_all_tasks_blocked(0.1)
        rows = past.snapshot.pages.lookup(np.arange(last + 100, last + 1000, dtype=np.uint32))
        assert all(scene.is_in_memory(pgno, row) for pgno, row in enumerate(rows, last + 100))


# --- files that go away ------------------------------------------------------------------------


async def test_files_vanish_under_an_open_point_whose_pages_lie_in_others() -> None:
    history = await large(8)
    async with opened(history, memory_size=0) as scene:
        past = await scene.past.open(5)
        await history.compact(1, 1, 5)
        for txid in range(1, 6):
            await history.delete(0, txid)
        assert await content(past) == history.at(5)
        assert past.error is None


async def test_a_point_that_nothing_leads_to_any_more_fails_and_asks_the_store_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history = await large(8)
    async with opened(history, memory_size=0) as scene:
        past = await scene.past.open(5)
        await history.publish(9, 1, 8)
        for txid in range(1, 8):
            await history.delete(0, txid)
        with pytest.raises(GapError):
            await past.read(1, 10)
        lists = scene.requests(Operation.LIST, Purpose.PAST)
        for _ in range(5):
            with pytest.raises(GapError):
                await past.read(1, 10)
        assert scene.requests(Operation.LIST, Purpose.PAST) == lists
        assert past.error is not None
        assert await scene.past.point(5) is None

        await history.publish(1, 1, 5)
        monkeypatch.setattr(past_snapshots, "LOST_FOR_S", 0.0)
        assert await content(past) == history.at(5)
        assert past.error is None


async def test_those_who_miss_the_same_files_look_for_others_once() -> None:
    history = await large(8)
    async with opened(history, memory_size=0) as scene:
        past = await scene.past.open(5)
        await history.compact(1, 1, 5)
        for txid in range(1, 6):
            await history.delete(0, txid)
        lists = scene.requests(Operation.LIST, Purpose.PAST)
        async with trio.open_nursery() as nursery:
            for first in range(1, PAGES, 300):
                nursery.start_soon(past.read, first, first + 299)
        assert scene.requests(Operation.LIST, Purpose.PAST) == lists + 10


async def test_a_damaged_file_is_left_for_others_that_have_its_pages(caplog: pytest.LogCaptureFixture) -> None:
    history = await large(6)
    snapshot = await history.publish(9, 1, 4)
    await history.commit(dict.fromkeys(range(1, PAGES + 1), b"all new"))
    async with opened(history, memory_size=0) as scene:
        past = await scene.past.open(4)
        key = history.store.key(snapshot)
        data = bytearray((await history.storage.get(key)).data)
        data[1000:200_000] = bytes(199_000)
        await history.storage.put(key, bytes(data))
        assert await content(past) == history.at(4)


async def test_points_that_failed_to_open_are_not_listed_until_they_can_be_opened() -> None:
    history = await varied(6)
    async with opened(history, memory_size=0) as scene:
        key = history.store.key(FileInfo(0, 4, 4, 0))
        sound = (await history.storage.get(key)).data
        await history.storage.put(key, sound[:-1] + bytes([sound[-1] ^ 1]))
        with pytest.raises(DamagedFile):
            await scene.past.open(5)
        assert [point.txid for point in await scene.past.points(100)] == [1, 2, 3]
        await history.storage.put(key, sound)
        await scene.check(5)
        assert [point.txid for point in await scene.past.points(100)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("vouched", "later"), [(True, True), (False, False), (False, True)])
async def test_snapshots_with_a_time_of_their_own_are_taken_when_the_live_database_vouches_for_them(
    vouched: bool, later: bool
) -> None:
    """`later`: as Litestream makes them, with the time of the snapshot, not that of the transaction."""
    history = await large(6)
    async with opened(history, memory_size=0) as scene:
        past = await scene.past.open(4)
        if later:
            history.timestamps[4] += 12345
        await history.publish(9, 1, 4)
        for txid in range(1, 5 if vouched else 7):
            await history.delete(0, txid)
        if vouched or not later:
            assert await content(past) == history.at(4)
            return
        with pytest.raises(ReplicaError, match="is not the state that it was"):
            await content(past)


@pytest.mark.parametrize("noticed", [False, True])
@pytest.mark.logs("was replaced or restored", "reading the whole database anew")
async def test_a_replica_made_anew_is_not_mixed_with_what_was_opened_before(
    noticed: bool,
) -> None:
    history = await large(6)
    async with opened(history, memory_size=0) as scene:
        past = await scene.past.open(4)
        await content(past)
        for info in await history.store.list_levels():
            await history.store.delete([info])
        other = History(storage=history.storage, wal_salts=(2, 2), clock_ms=FIRST_TIMESTAMP_MS + 12345)
        await other.commit({pgno: np.random.default_rng(7 * pgno).bytes(512) for pgno in range(1, PAGES + 1)})
        for txid in range(2, 8):
            await other.commit({1: b"another %d" % txid, 50 + txid: b"changed at %d" % txid})
        if noticed:
            await scene.replica.poll()
            assert await read_live(scene.replica) == other.at(7)
        with pytest.raises(ReplicaError):
            await content(past)
        del past
        newer = await scene.past.open(3)
        assert await content(newer) == other.at(3)


async def test_files_of_a_past_state_are_not_forgotten() -> None:
    history = await large(4)
    async with opened(history, memory_size=0, forget_every=3) as scene:
        past = await scene.past.open(3)
        for txid in range(5, 40):
            await history.commit(dict.fromkeys(range(1, 60), b"at %d" % txid))
            await scene.replica.poll()
        lists = scene.requests(Operation.LIST, Purpose.PAST)
        assert await content(past) == history.at(3)
        assert scene.requests(Operation.LIST, Purpose.PAST) == lists, "nothing had to be looked for again"
        files = scene.replica.statistics().files
        del past
        for txid in range(40, 80):
            await history.commit(dict.fromkeys(range(1, 60), b"at %d" % txid))
            await scene.replica.poll()
        assert scene.replica.statistics().files <= files + 3


# --- everything together -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 25))])
async def test_whatever_happens_to_the_files_a_past_state_is_right_or_an_error(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past_snapshots, "LOST_FOR_S", 0.0)
    monkeypatch.setattr("litereplica.replica.past_catalog.DOUBT_S", -1.0)
    monkeypatch.setattr("litereplica.ltxstore.store.WHOLE_FILE_LIMIT", 1200)
    chance = random.Random(seed)
    history = await varied(6)
    async with opened(history, memory_size=chance.choice((0, 20_000, 1 << 20))) as scene:
        pasts: dict[TXID, PastDatabase] = {}
        reads = 0
        for _ in range(120):
            step = chance.randrange(10)
            if step <= 2:
                pages = max(1, history.commits[history.txid] + chance.randrange(-3, 4))
                await history.commit({chance.randint(1, pages): b"%d" % chance.random().__hash__()}, pages=pages)
            elif step == 3:
                low = chance.randint(1, history.txid)
                await history.publish(chance.randint(1, 3), low, chance.randint(low, history.txid))
            elif step == 4:
                await history.publish(9, 1, chance.randint(1, history.txid))
            elif step == 5:
                files = [info for info in await history.store.list_levels() if info.max_txid < history.txid - 1]
                await history.store.delete(chance.sample(files, min(2, len(files))))
            elif step == 6:
                with suppress(ReplicaError):
                    await (scene.replica.heal() if chance.random() < 0.3 else scene.replica.poll())
            elif step == 7:
                pasts.pop(chance.choice(list(pasts)), None) if pasts else None
            else:
                txid = chance.choice([*pasts, chance.randint(1, history.txid)])
                reachable = _is_reachable(await history.store.list_levels(), txid)
                try:
                    past = pasts[txid] = pasts.get(txid) or await scene.past.open(txid)
                    assert await content(past) == history.at(txid)
                    reads += 1
                except (ReplicaError, FileVanished, DamagedFile):
                    assert not reachable
        assert reads > 5


def _is_reachable(files: list[FileInfo], txid: TXID) -> bool:
    try:
        plan_restore(files, target=txid)
    except ReplicaError:
        return False
    return True
