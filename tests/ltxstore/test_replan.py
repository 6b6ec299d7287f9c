"""Planning again: torn listings, vanished and damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from litereplica.cli.find_point import resolve
from litereplica.cli.point import Point
from litereplica.errors import DamagedFile, FileVanished, GapError, NotFound
from litereplica.ltxstore.catalog import Catalog
from litereplica.ltxstore.plan import plan_restore
from litereplica.ltxstore.replan import Listing, find_point, plan_and_read
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.database import open_replica
from litereplica.restore.restore import restore
from litereplica.storage.base import ObjectInfo
from litereplica.storage.wrappers.delegate import WrapperStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from tests.ltxstore.replicas import History, memory_store, publish

LAST_LEVEL = 3


class Climbing(WrapperStorage):
    """Moves the file 2-3 to the next level when its level is listed, after all other listings under way."""

    def __init__(self, inner: MemoryStorage, history: History) -> None:
        super().__init__(inner)
        self.store = memory_store(inner)
        self._history = history
        self._level = 0

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        if prefix == f"{self._level:04x}/" and self._level < LAST_LEVEL:
            await trio.testing.wait_all_tasks_blocked()
            await publish(self.store, self._history, self._level + 1, 2, 3)
            await self.store.delete([info for info in await self.store.list_level(self._level) if info.max_txid > 1])
            self._level += 1
        return await super().list(prefix, start_after=start_after)


@pytest.fixture
def history() -> History:
    history = History()
    for _ in range(3):
        history.commit(4)
    return history


@pytest.fixture
async def climbing(history: History) -> LTXStore:
    objects = MemoryStorage()
    for txid in (1, 2, 3):
        await publish(memory_store(objects), history, 0, txid, txid)
    return memory_store(Climbing(objects, history))


async def test_listings_made_at_the_same_time_may_miss_transactions_that_are_compacted(climbing: LTXStore) -> None:
    assert {info.max_txid for info in await climbing.list_levels()} == {1}


async def test_listings_in_order_miss_no_transaction(climbing: LTXStore) -> None:
    assert {info.max_txid for info in await climbing.list_levels(in_order=True)} == {1, 3}


async def test_point_whose_files_are_compacted_during_each_listing_is_restored(
    autojump_clock: Clock, climbing: LTXStore, history: History, tmp_path: Path
) -> None:
    result = await restore(climbing, tmp_path / "out.db", target=3)
    assert result.txid == 3
    assert (tmp_path / "out.db").read_bytes() == history.database(3)


async def test_point_whose_files_are_compacted_during_each_listing_is_resolved(
    autojump_clock: Clock, climbing: LTXStore
) -> None:
    assert await resolve(climbing, Point(txid=3)) == 3


async def test_point_whose_files_are_compacted_during_each_listing_is_mounted(
    autojump_clock: Clock, climbing: LTXStore
) -> None:
    async with open_replica(climbing, at=3) as replica:
        assert replica.snapshot.pos.txid == 3


async def test_vanished_file_is_avoided_although_the_listing_still_shows_it(
    autojump_clock: Clock, history: History
) -> None:
    store = memory_store()
    for txid in (1, 2, 3):
        await publish(store, history, 0, txid, txid)
    await publish(store, history, 1, 2, 3)
    plans: list[list[FileInfo]] = []

    async def choose(listing: Listing) -> list[FileInfo]:
        return plan_restore(listing.present, target=3)

    async def read(plan: list[FileInfo]) -> int:
        plans.append(plan)
        if len(plans) == 1:
            raise FileVanished("gone", key=store.key(plan[-1]))
        return len(plan)

    assert await plan_and_read(store, choose, read) == 3
    assert [[info.level for info in plan] for plan in plans] == [[0, 1], [0, 0, 0]]


async def test_file_that_vanishes_from_each_plan_is_an_error_after_some_plans(
    autojump_clock: Clock, history: History
) -> None:
    store = memory_store()
    await publish(store, history, 0, 1, 1)
    attempts = 0

    async def choose(listing: Listing) -> list[FileInfo]:
        return plan_restore(listing.sound, target=1)

    async def read(plan: list[FileInfo]) -> int:
        nonlocal attempts
        attempts += 1
        raise FileVanished("gone", key=store.key(plan[-1]))

    with pytest.raises(NotFound):
        await plan_and_read(store, choose, read, max_plans=4)
    assert attempts == 4


@pytest.mark.parametrize("files", [1, 2])
async def test_damage_is_the_error_when_there_is_no_plan_without_the_damaged_file(
    autojump_clock: Clock, history: History, files: int
) -> None:
    store = memory_store()
    infos = [await publish(store, history, 0, txid, txid) for txid in range(1, files + 1)]
    damage = DamagedFile(store.key(infos[-1]), "bad")

    async def choose(listing: Listing) -> list[FileInfo]:
        return plan_restore(listing.sound, target=files)

    async def read(plan: list[FileInfo]) -> None:
        raise damage

    with pytest.raises(DamagedFile) as error:
        await plan_and_read(store, choose, read)
    assert error.value is damage


async def test_missing_plan_is_believed_after_a_listing_in_order(autojump_clock: Clock, climbing: LTXStore) -> None:
    orders: list[bool] = []

    async def choose(listing: Listing) -> None:
        orders.append(listing.in_order)
        raise GapError("no way", have=0, want=1)

    with pytest.raises(GapError):
        await find_point(climbing, choose)
    assert orders == [False, True]


async def test_catalog_lists_in_order_before_it_says_that_there_is_no_plan(
    autojump_clock: Clock, climbing: LTXStore
) -> None:
    opened = await Catalog(climbing).open(lambda files: plan_restore(files, target=3))
    assert opened[-1].info.max_txid == 3
