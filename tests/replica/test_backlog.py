"""Many files behind the newest position: what is kept of them, how many are read at once, and that nothing is lost."""

from __future__ import annotations

import random
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import trio
import trio.testing

from litereplica.errors import DamagedFile, NotFound, ReplicaError
from litereplica.format.names import Layout
from litereplica.ltxstore import claimed_files
from litereplica.ltxstore.catalog import PARALLEL_REQUESTS, Catalog
from litereplica.ltxstore.plan import plan_newest
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.replica import next_files, snapshot
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.poll_schedule import PollSchedule
from litereplica.replica.poller import run_poller
from litereplica.replica.snapshot import Update
from litereplica.storage.base import Blob, Range, Storage
from litereplica.storage.wrappers import WrapperStorage
from litereplica.testing.latency import LatencyStorage
from litereplica.types import FileInfo
from tests.helpers.history import PAGE_SIZE, History
from tests.replica.test_database import content

FILES = 1000
PAGES = 40
INTERVAL_S = 60.0
CHANGED = 8
"""Pages of each transaction, of `PAGES`: the newest files have them all."""


class Busy(WrapperStorage):
    """Counts the GETs, and those under way at the same time."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.gets = self.under_way = self.most = 0

    async def get(self, key: str, range: Range | None = None) -> Blob:
        self.gets += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await super().get(key, range)
        finally:
            self.under_way -= 1


class Watched(Catalog):
    """Notes how many whole indexes of opened files exist at the same time."""

    most = 0

    def __init__(self, store: LTXStore, *, damaged: dict[str, DamagedFile] | None = None) -> None:
        super().__init__(store, damaged=damaged)
        self._indexes: list[weakref.ref[object]] = []

    async def _open(self, info: FileInfo) -> OpenedFile | DamagedFile | NotFound:
        opened = await super()._open(info)
        assert isinstance(opened, OpenedFile)
        self._indexes = [each for each in self._indexes if each() is not None]
        self._indexes.append(weakref.ref(opened.index.pgno))
        self.most = max(self.most, len(self._indexes))
        return opened


async def backlog(files: int = FILES) -> History:
    """A history of so many files of level 0. All pages but the first are changed in turn, that one by the last file."""
    history = History()
    await history.commit({1: b"a"}, pages=PAGES)
    for n in range(2, files):
        await history.commit({2 + (n * CHANGED + i) % (PAGES - 1): b"%d" % n for i in range(CHANGED)})
    await history.commit({1: b"b"})
    return history


@pytest.fixture(scope="module")
def made() -> History:
    return trio.run(backlog)


@pytest.fixture
def history(made: History) -> History:
    return deepcopy(made)


def behind(storage: Storage) -> tuple[Busy, LTXStore]:
    busy = Busy(LatencyStorage(storage, 0.01))
    return busy, LTXStore(busy, Layout.S3)


async def test_of_a_thousand_files_that_are_opened_each_page_is_kept_once(
    autojump_clock: trio.testing.MockClock, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claimed_files, "KEPT_BYTES", 10 * PAGE_SIZE)
    busy, store = behind(history.storage)
    catalog = Watched(store)
    opened = await catalog.open(plan_newest)
    assert [file.info.max_txid for file in opened] == list(range(1, FILES + 1))
    claimed = [pgno for file in opened[1:] for pgno in file.index.pgno.tolist()]
    assert sorted(claimed) == list(range(1, PAGES + 1))
    assert len(opened[0].index) == PAGES  # it may be the base of other plans
    assert sum(len(file.pages or ()) for file in opened) <= 10
    assert opened[-1].pages is not None  # those of the newest files are kept
    needed = sum(len(file.index) > 0 for file in opened)
    assert catalog.most <= needed + PARALLEL_REQUESTS + 1
    assert busy.most == PARALLEL_REQUESTS
    assert busy.gets == FILES


async def test_a_mount_reads_no_more_files_than_have_the_pages(
    autojump_clock: trio.testing.MockClock, history: History
) -> None:
    busy, store = behind(history.storage)
    async with open_replica(store) as replica:
        assert busy.gets <= 1 + PAGES / CHANGED + PARALLEL_REQUESTS
        assert replica.snapshot.pos.txid == FILES
        assert await content(replica) == history.at(FILES)
        assert replica.statistics().files <= 1 + PAGES / CHANGED
        await history.commit({1: b"z"})
        assert await replica.poll() is not None
        await replica.heal()
        assert await content(replica) == history.at(FILES + 1)


@asynccontextmanager
async def behind_by(history: History, storage: Storage) -> AsyncIterator[tuple[Replica, Busy]]:
    """A replica at TXID 1, and the requests that it makes from there on."""
    busy, store = behind(storage)
    async with open_replica(store, at=1) as replica:
        busy.gets = busy.most = 0
        yield replica, busy


async def test_catching_up_polls_without_pauses_and_with_several_requests_under_way(
    autojump_clock: trio.testing.MockClock, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_files, "MAX_BYTES_PER_POLL", 100 * CHANGED * PAGE_SIZE)
    async with behind_by(history, history.storage) as (replica, busy), trio.open_nursery() as nursery:
        updates: list[int] = []

        async def apply(update: Update | None) -> None:
            assert update is None or update.snapshot is replica.snapshot
            updates.append(replica.snapshot.pos.txid)

        await nursery.start(partial(run_poller, replica, apply, schedule=PollSchedule(INTERVAL_S)))
        await trio.sleep(INTERVAL_S / 2)
        assert replica.snapshot.pos.txid == FILES
        assert await content(replica) == history.at(FILES)
        assert busy.most == PARALLEL_REQUESTS
        assert max(np.diff([1, *updates])) == 100
        assert busy.gets < FILES + 2 * PARALLEL_REQUESTS * len(updates)
        nursery.cancel_scope.cancel()


async def test_a_reader_that_is_up_to_date_makes_one_request(autojump_clock: trio.testing.MockClock) -> None:
    history = await backlog(3)
    async with behind_by(history, history.storage) as (replica, busy):
        assert await replica.poll() is not None
        assert not replica.is_behind
        assert (replica.snapshot.pos.txid, busy.gets, busy.most) == (3, 3, 1)
        assert await replica.poll() is None
        assert busy.gets == 4


async def test_catching_up_with_merged_files_does_not_wait_for_the_next_listing(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_files, "MAX_FILES_PER_POLL", 4)
    history = await backlog(21)
    for last in range(3, 22, 2):
        await history.compact(1, last - 1, last)
    for txid in range(2, 21):
        await history.delete(0, txid)
    async with behind_by(history, history.storage) as (replica, _), trio.open_nursery() as nursery:
        await trio.sleep(31)  # the first listing is due

        async def apply(_: Update | None) -> None:
            await trio.lowlevel.checkpoint()

        await nursery.start(partial(run_poller, replica, apply, schedule=PollSchedule(INTERVAL_S)))
        await trio.sleep(1)
        assert replica.snapshot.pos.txid == 21
        assert await content(replica) == history.at(21)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("at_once", [1, 7, 1 << 16])
@pytest.mark.parametrize("seed", range(4))
async def test_files_that_are_applied_together_make_what_each_makes_in_turn(
    seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions that shrink and grow the database, opened as one plan, polled, and as past states."""
    monkeypatch.setattr(snapshot, "APPLIED_AT_ONCE", at_once)
    chance = random.Random(seed)
    history = History()
    await history.commit({1: b"a"}, pages=20)
    async with open_replica(history.store) as follower:
        for n in range(60):
            pages = chance.choice([history.commits[history.txid]] * 3 + [chance.randint(1, 40)])
            changed = {chance.randint(1, pages): b"%d" % n for _ in range(chance.randint(0, 4))}
            await history.commit(changed, pages=pages)
            if chance.random() < 0.05:
                await history.snapshot()
        while await follower.poll() is not None:
            pass
        async with open_replica(history.store) as replica:
            for each in (follower, replica):
                assert await content(each) == history.at(61)
            past = replica.past_snapshots()
            for txid in chance.sample(range(1, 61), 8):
                database = await past.open(txid)
                pages = database.snapshot.commit
                assert dict(enumerate(await database.read(1, pages), 1)) == history.at(txid)


async def test_a_past_state_does_not_grow_beyond_a_known_base_by_pages_that_no_file_has() -> None:
    history = await backlog(4)
    await history.snapshot()
    async with open_replica(history.store) as replica:
        for n in range(3):
            await history.commit({2: b"%d" % n})
        history.commits[6] = PAGES + 1
        await history.compact(1, 5, 6)  # it claims a page that it does not have
        past = replica.past_snapshots()
        held = await past.open(5)  # its base is the snapshot of TXID 4
        with pytest.raises(ReplicaError, match="grow from 40 to 41 pages"):
            await past.open(6)
        assert held.snapshot.commit == PAGES
