"""What is deleted, in which order, and that everything else can be restored at each moment in between."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from litereplica.compaction.levels import Levels, due_compactions
from litereplica.compaction.pruner import Pruner
from litereplica.compaction.retention import (
    NEVER,
    RetentionPolicy,
    Tier,
    due_deletions,
    next_deletion_ms,
)
from litereplica.errors import DamagedFile, GapError, NotFound, ReplicaError, StorageError, UsageError
from litereplica.format.names import SNAPSHOT_LEVEL
from litereplica.ltxstore.plan import plan_newest, plan_restore, reachable_txids
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.wrappers import Operation
from litereplica.testing.faults import FaultAt, FaultStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.times import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, SteadyClock
from litereplica.types import FileInfo
from tests.helpers.pruning import prune_due
from tests.ltxstore.replicas import History, memory_store

HISTORIES = 1_500
NOW = 1_700_000_000_000 - 1_700_000_000_000 % DAY_MS + DAY_MS // 2
"""Noon of some day."""

HOURLY_AND_DAILY = RetentionPolicy(tiers=(Tier(HOUR_MS, 7 * DAY_MS), Tier(DAY_MS, 365 * DAY_MS)))


def info(level: int, low: int, high: int, age_ms: int = 0) -> FileInfo:
    return FileInfo(level, low, high, 100, NOW - age_ms)


def level0(*txids: int, age_ms: int = HOUR_MS) -> list[FileInfo]:
    return [info(0, txid, txid, age_ms) for txid in txids]


def deleted(files: Sequence[FileInfo], policy: RetentionPolicy | None = None, now_ms: int = NOW) -> list[FileInfo]:
    return [deletion.info for deletion in due_deletions(files, policy or RetentionPolicy(), now_ms)]


def restorable(files: Sequence[FileInfo]) -> set[int]:
    """The ends of these files at which the planner finds a plan."""
    found = set()
    for txid in {each.max_txid for each in files}:
        try:
            plan_restore(files, target=txid)
        except ReplicaError:
            continue
        found.add(txid)
    return found


# --- level 0 ---------------------------------------------------------------------------------


def test_l0_goes_5_minutes_after_it_is_covered_by_l1_newest_first_and_the_newest_stays() -> None:
    files = [*level0(1, 2, 3, 4, age_ms=5 * MINUTE_MS), info(1, 1, 4)]
    assert deleted(files) == level0(3, 2, 1, age_ms=5 * MINUTE_MS)
    assert deleted(files, now_ms=NOW - 1) == []


def test_l0_that_no_file_above_has_stays_whatever_its_age() -> None:
    assert deleted(level0(1, 2, 3)) == []
    assert deleted([*level0(1, 2, 3, 4, 5), info(1, 1, 2)]) == level0(2, 1)


def test_l0_in_a_gap_of_l1_stays() -> None:
    files = [*level0(1, 2, 3, 4, 5, 6, 7), info(1, 1, 2), info(1, 5, 6)]
    assert deleted(files) == level0(6, 5, 2, 1)


def test_l0_of_a_snapshot_only_stays_until_the_snapshot_is_old() -> None:
    assert deleted([*level0(1, 2, 3), info(9, 1, 2)]) == []
    assert deleted([*level0(1, 2, 3, age_ms=2 * DAY_MS), info(9, 1, 3, DAY_MS)]) == level0(2, 1, age_ms=2 * DAY_MS)


def test_l0_files_that_a_younger_one_needs_stay_with_it() -> None:
    """The end of the L1 file is the next point that can be restored without them."""
    files = [*level0(1, 2, 3, 4), *level0(5, 6, 7, age_ms=MINUTE_MS), info(1, 1, 2), info(1, 3, 7)]
    assert deleted(files) == level0(2, 1)


def test_each_second_can_be_restored_until_its_l0_goes() -> None:
    """ls#771, ls#1038, ls#1084 in short: a write a second, compaction and deletion as they are due."""
    files: list[FileInfo] = []
    for second in range(1, 10 * 60):
        now = NOW + second * SECOND_MS
        files.append(FileInfo(0, second, second, 100, now))
        files += [
            FileInfo(each.level, each.min_txid, each.max_txid, 100, each.inputs[-1].modified_ms)
            for each in due_compactions(Levels(), files, now)
        ]
        for file in deleted(files, now_ms=now):
            files.remove(file)
        if second % 30 == 0:
            # all that remains, and each second of the last 5 minutes
            assert restorable(files) == set(reachable_txids(files)) >= set(range(max(1, second - 299), second + 1))
    assert min(each.min_txid for each in files if each.level == 0) > 200


# --- the levels above ------------------------------------------------------------------------


def test_a_point_of_the_last_day_needs_the_snapshot_before_it_which_stays() -> None:
    """What ends before the newest snapshot that is older than the retention goes; that snapshot itself does not."""
    ages = {10: 50 * HOUR_MS, 20: 26 * HOUR_MS, 30: 2 * HOUR_MS}
    snapshots = [info(9, 1, txid, age) for txid, age in ages.items()]
    hourly = [info(3, txid - 4, txid, age) for txid, age in [(5, 60 * HOUR_MS), (15, 38 * HOUR_MS), (25, 14 * HOUR_MS)]]
    hourly += [info(3, txid - 4, txid, age) for txid, age in [*ages.items(), (35, HOUR_MS)]]
    assert deleted([*snapshots, *hourly, *level0(35)]) == [
        hourly[1],  # 11-15
        hourly[3],  # 6-10
        snapshots[0],
        hourly[0],  # 1-5
    ]


def test_newest_snapshot_stays_however_old() -> None:
    old = info(9, 1, 5, 1000 * DAY_MS)
    assert deleted([old, info(9, 1, 3, 2000 * DAY_MS)]) == [info(9, 1, 3, 2000 * DAY_MS)]
    assert deleted([old]) == []


def test_without_a_snapshot_the_higher_levels_stay() -> None:
    files = [info(level, 1, 5, 100 * DAY_MS) for level in (1, 2, 3)]
    assert deleted([*files, info(1, 6, 9, 99 * DAY_MS)]) == []


def test_last_file_of_a_level_stays_with_what_restores_it() -> None:
    """A level that is no longer written to: its end is where a compactor would go on."""
    age = 100 * DAY_MS
    files = [info(9, 1, 2, age), info(3, 3, 4, age), info(3, 5, 6, age), info(9, 1, 20, 2 * DAY_MS), info(3, 7, 8, age)]
    assert deleted(files) == []
    assert deleted([*files, info(3, 9, 20, 2 * DAY_MS)]) == [files[4], files[2], files[1], files[0]]


def test_gap_that_only_a_snapshot_bridges_keeps_the_snapshot() -> None:
    """ls#1515."""
    files = [*level0(1, 2, 3), info(1, 1, 3, 3 * DAY_MS), info(9, 1, 6, HOUR_MS), info(1, 7, 9), *level0(7, 8, 9)]
    assert deleted(files) == level0(8, 7, 3, 2, 1)
    assert plan_newest([each for each in files if each not in deleted(files)])[-1].max_txid == 9


@pytest.mark.parametrize("count", [1, 2, 5])
def test_never_means_never(count: int) -> None:
    files = [info(level, 1, txid, 5000 * DAY_MS) for txid in range(1, 9) for level in (0, 1, 2, 3, 9)][::count]
    assert deleted(files, NEVER) == []


def test_l0_that_is_kept_for_ever_stays_when_the_rest_goes() -> None:
    files = [*level0(1, 2, 3, age_ms=9 * DAY_MS), info(1, 1, 2, 9 * DAY_MS), info(1, 3, 3), info(9, 1, 3, 2 * DAY_MS)]
    assert deleted(files, RetentionPolicy(l0_ms=None)) == [files[3]]
    assert deleted(files, RetentionPolicy(snapshot_ms=None)) == level0(2, 1, age_ms=9 * DAY_MS)


# --- tiers -----------------------------------------------------------------------------------


def test_tiers_keep_all_for_a_day_hourly_for_a_week_daily_for_a_year() -> None:
    """A year and a half of a commit every quarter of an hour, hourly files and daily snapshots."""
    quarter = 15 * MINUTE_MS
    count = 20 * 96  # days that are looked at closely; the snapshots go back further
    early = [info(9, 1, day, (550 - day) * DAY_MS) for day in range(1, 531)]
    files, base = list(early), 530
    for number in range(1, count + 1):
        age = (count - number) * quarter
        files.append(info(1, base + number, base + number, age))
        if number % 4 == 0:
            files.append(info(3, base + number - 3, base + number, age))
        if number % 96 == 0:
            files.append(info(9, 1, base + number, age))
    gone = set(deleted(files, HOURLY_AND_DAILY))
    ages = {each.max_txid: NOW - each.modified_ms for each in files}
    points = sorted(ages[txid] for txid in restorable([each for each in files if each not in gone]))
    # the last day, back to the snapshot before it, is whole
    assert [age for age in points if age <= DAY_MS] == list(range(0, DAY_MS + 1, quarter))
    week = [age for age in points if DAY_MS < age < 7 * DAY_MS]
    assert {after - before for before, after in itertools.pairwise(week)} == {HOUR_MS}
    year = [age for age in points if 8 * DAY_MS < age < 365 * DAY_MS]
    assert {after - before for before, after in itertools.pairwise(year)} == {DAY_MS}
    assert max(points) < 366 * DAY_MS
    # by as few files as can be
    levels = [each.level for each in files if each not in gone and 2 * DAY_MS < NOW - each.modified_ms < 6 * DAY_MS]
    assert set(levels) == {3, 9}


def test_tiers_choose_the_same_points_again_when_the_rest_is_gone() -> None:
    rng = random.Random(1)
    files = [info(9, 1, 1, 20 * DAY_MS)]
    for txid in range(2, 600):
        files.append(info(1, txid, txid, (600 - txid) * 45 * MINUTE_MS))
        if rng.random() < 0.05:
            files.append(info(9, 1, txid, (600 - txid) * 45 * MINUTE_MS))
    gone = set(deleted(files, HOURLY_AND_DAILY))
    assert len(gone) > 100
    assert deleted([each for each in files if each not in gone], HOURLY_AND_DAILY) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: RetentionPolicy(l0_ms=0),
        lambda: RetentionPolicy(snapshot_ms=-1),
        lambda: RetentionPolicy(tiers=(Tier(0, DAY_MS),)),
        lambda: RetentionPolicy(snapshot_ms=None, tiers=(Tier(HOUR_MS, DAY_MS),)),
    ],
)
def test_impossible_policies_are_refused(make: Callable[[], RetentionPolicy]) -> None:
    with pytest.raises(UsageError):
        make()


# --- S3: after each single delete ------------------------------------------------------------


def random_history(rng: random.Random) -> list[FileInfo]:
    """What a replica may look like: compacted and pruned by turns, files lost, straddling and overlapping ones."""
    last = rng.randint(2, 16)
    step = rng.choice((SECOND_MS, MINUTE_MS, HOUR_MS, 8 * HOUR_MS))
    files: list[FileInfo] = []

    def add(level: int, low: int, high: int) -> None:
        late = rng.randint(0, 3) * step if rng.random() < 0.3 else 0
        files.append(FileInfo(level, low, high, 100, NOW - (last - high) * step + late - rng.randint(0, 2) * step))

    for txid in range(1, last + 1):
        add(0, txid, txid)
    for level in (1, 2, 3):
        at = 0
        while at < last and rng.random() < 0.85:
            low = max(1, at + 1 - rng.choice((0, 0, 0, 1, 2)) + rng.choice((0, 0, 0, 0, 1)))
            at = min(last, max(low, at + rng.randint(1, 5)))
            add(level, min(low, at), at)
    for txid in rng.sample(range(1, last + 1), rng.randint(0, min(3, last))):
        add(SNAPSHOT_LEVEL, 1, txid)
    unique = {(each.level, each.min_txid, each.max_txid): each for each in files}
    return [each for each in unique.values() if rng.random() < rng.choice((1, 0.9, 0.6))]


def random_policy(rng: random.Random) -> RetentionPolicy:
    tiers = (Tier(rng.choice((MINUTE_MS, HOUR_MS)), 2 * DAY_MS), Tier(DAY_MS, 9 * DAY_MS))
    return RetentionPolicy(
        l0_ms=rng.choice((1, 5 * MINUTE_MS, None)),
        snapshot_ms=rng.choice((1, HOUR_MS, DAY_MS)),
        tiers=tiers[: rng.randint(0, 2)],
    )


def test_after_each_single_delete_everything_still_advertised_can_be_restored() -> None:
    """The planner is the judge. Advertised are the ends of the files still there, if they could be restored before."""
    deletions = 0
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        files = random_history(rng)
        before = restorable(files)
        for deletion in due_deletions(files, random_policy(rng), NOW):
            files.remove(deletion.info)
            deletions += 1
            advertised = {each.max_txid for each in files} & before
            assert restorable(files) == advertised, (seed, str(deletion.info))
            assert deletion.covered_by in files, seed
            assert deletion.covered_by.min_txid <= deletion.info.max_txid <= deletion.covered_by.max_txid, seed
            assert deletion.covered_by.max_txid in before, seed
        assert max(before, default=0) == max(restorable(files), default=0), seed
    assert deletions > 3 * HISTORIES


def test_last_file_of_each_level_and_the_newest_snapshot_are_never_deleted() -> None:
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        files = random_history(rng)
        last = {each.level: each.max_txid for each in sorted(files, key=lambda each: each.max_txid)}
        for file in deleted(files, random_policy(rng)):
            assert file.max_txid < last[file.level], seed


def test_interrupted_run_is_made_up_for() -> None:
    """What was not deleted yet is due again, at the latest when all files are old by their own times."""
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        files, policy = random_history(rng), replace(random_policy(rng), tiers=())
        gone = deleted(files, policy)
        interrupted = rng.randint(0, len(gone))
        rest = [each for each in files if each not in gone[:interrupted]]
        assert set(deleted(rest, policy, NOW + 9 * DAY_MS)) >= set(gone[interrupted:]), seed


def test_reachable_txids_are_those_that_the_planner_finds() -> None:
    for seed in range(HISTORIES):
        files = random_history(random.Random(seed))
        assert reachable_txids(files) == sorted(restorable(files)), seed
        if files and not restorable(files):
            with pytest.raises(GapError):
                plan_newest(files)


def test_nothing_becomes_due_before_the_next_moment_that_is_told() -> None:
    """Whoever asks again at each such moment misses nothing, and in the end is told that nothing is left."""
    waits = 0
    for seed in range(400):
        rng = random.Random(seed)
        files, policy = random_history(rng), random_policy(rng)
        now = NOW
        for _ in range(200):
            gone = deleted(files, policy, now)
            files = [each for each in files if each not in gone]
            moment = next_deletion_ms(files, policy, now)
            later = now + 400 * DAY_MS if moment is None else moment - 1
            assert set(deleted(files, policy, later)) <= set(deleted(files, policy, now)), seed
            if moment is None:
                break
            now, waits = moment, waits + 1
        else:
            raise AssertionError(f"{seed}: there is no end")
    assert waits > 400


# --- S4: clocks ------------------------------------------------------------------------------


@dataclass(slots=True)
class Machine:
    """True time, and a clock that is set by hand now and then."""

    true_ms: int = NOW
    error_ms: int = 0

    def wall_ms(self) -> int:
        return self.true_ms + self.error_ms

    def elapsed_ms(self) -> int:
        return self.true_ms - NOW + 12_345

    def clock(self) -> SteadyClock:
        return SteadyClock(self.wall_ms, self.elapsed_ms)


@dataclass(slots=True)
class Replica:
    """A writer's files in memory, stamped by its machine's clock; and retention on the same machine."""

    machine: Machine
    policy: RetentionPolicy
    store: LTXStore = field(default_factory=memory_store)
    history: History = field(default_factory=History)
    published_ms: dict[str, int] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    async def put(self, level: int, low: int, high: int) -> None:
        file = FileInfo(level, low, high, 0)
        self.published_ms[str(file)] = self.machine.true_ms
        await self.store.put(file, self.history.file(low, high), timestamp_ms=self.machine.wall_ms())

    async def tick(self, txid: int) -> None:
        self.history.commit(1, 1)
        await self.put(0, txid, txid)
        if txid % 4 == 0:
            await self.put(1, txid - 3, txid)
        if txid % 16 == 0:
            await self.put(9, 1, txid)


async def test_clock_that_steps_an_hour_at_each_tick_never_widens_a_deletion() -> None:
    """A twin with a right clock is the measure: what goes, has gone there already."""
    for seed in range(12):
        rng = random.Random(seed)
        policy = RetentionPolicy(snapshot_ms=40 * MINUTE_MS)
        right, stepping = Replica(Machine(), policy), Replica(Machine(), policy)
        stepping.machine.error_ms = rng.choice((-HOUR_MS, 0, HOUR_MS))
        runs = [(each, Pruner(each.store, policy, each.machine.clock())) for each in (right, stepping)]
        errors = (-HOUR_MS, 0, HOUR_MS) if seed % 2 else (-HOUR_MS, -HOUR_MS, 0)
        for txid in range(1, 90):
            if rng.random() < (
                0.05 if seed % 3 == 0 else 1
            ):  # the clock stays wrong for a while, or steps all the time
                stepping.machine.error_ms = rng.choice(errors)
            for replica, retention in runs:
                replica.machine.true_ms += MINUTE_MS
                await replica.tick(txid)
                for deletion in await prune_due(retention):
                    age = replica.machine.true_ms - replica.published_ms[str(deletion.info)]
                    assert age >= 5 * MINUTE_MS, seed
                    replica.gone.add(str(deletion.info))
            assert stepping.gone <= right.gone, (seed, txid)
        assert len(right.gone) > 60
        stepping.machine.error_ms = right.machine.error_ms = 0
        for replica, retention in runs:
            replica.machine.true_ms += 3 * HOUR_MS
            replica.gone |= {str(each.info) for each in await prune_due(retention)}
        assert stepping.gone == right.gone  # nothing is kept for ever by it


def test_file_whose_clock_was_behind_is_no_older_than_those_before_it() -> None:
    files = [*level0(1, 2, age_ms=MINUTE_MS), *level0(3, 4, age_ms=HOUR_MS), *level0(5, age_ms=0), info(1, 1, 5)]
    assert deleted(files) == []
    assert deleted(files, now_ms=NOW + 4 * MINUTE_MS) == [files[3], files[2], files[1], files[0]]


def test_file_from_the_future_does_not_keep_later_ones_for_ever() -> None:
    files = [*level0(1, 2), *level0(3, age_ms=-9999 * DAY_MS), *level0(4, 5), info(1, 1, 5)]
    assert deleted(files) == [files[3], files[2], files[1], files[0]]
    assert deleted([*files[:3], *level0(4, 5, age_ms=MINUTE_MS), info(1, 1, 2), info(1, 3, 5)]) == level0(2, 1)


# --- deleting --------------------------------------------------------------------------------


async def replica_to_prune(storage: MemoryStorage) -> LTXStore:
    store = memory_store(storage)
    history = History()
    for txid in range(1, 7):
        history.commit(3, 1)
        await store.put(info(0, txid, txid), history.file(txid, txid), timestamp_ms=NOW - HOUR_MS)
    for low, high in ((1, 3), (4, 6)):
        await store.put(info(1, low, high), history.file(low, high), timestamp_ms=NOW - HOUR_MS)
    return store


def right_clock() -> SteadyClock:
    return SteadyClock(lambda: NOW, lambda: 0)


async def test_files_are_deleted_one_by_one_and_reported() -> None:
    storage = MemoryStorage()
    store = await replica_to_prune(storage)
    due = await prune_due(Pruner(store, RetentionPolicy(), right_clock()))
    assert [str(each.info)[:2] + str(each.info.max_txid) for each in due] == ["L05", "L04", "L03", "L02", "L01"]
    assert [each.covered_by.max_txid for each in due] == [6, 6, 3, 3, 3]
    assert [str(each) for each in await store.list_levels()] == [
        str(each) for each in (info(0, 6, 6), info(1, 1, 3), info(1, 4, 6))
    ]


async def test_nothing_is_deleted_when_what_takes_its_place_cannot_be_read() -> None:
    storage = MemoryStorage()
    store = await replica_to_prune(storage)
    keys = set(storage.objects)
    key = store.key(info(1, 4, 6))
    whole = storage.objects[key]
    await storage.put(key, whole.data[:-1], modified_ms=NOW - HOUR_MS)
    retention = Pruner(store, RetentionPolicy(), right_clock())
    with pytest.raises(DamagedFile, match=key):
        await prune_due(retention)
    assert set(storage.objects) == keys
    await storage.put(key, whole.data, modified_ms=NOW - HOUR_MS)
    assert len(await prune_due(retention)) == 5


async def test_replacement_that_has_vanished_since_the_listing_stops_the_deletion() -> None:
    storage = MemoryStorage()
    store = await replica_to_prune(storage)

    async def stale(*, after: int = 0) -> list[FileInfo]:
        files = await LTXStore.list_levels(store, after=after)
        await storage.delete([store.key(info(1, 4, 6))])
        return files

    store.list_levels = stale  # type: ignore[method-assign,assignment]  # the listing as it was a moment ago
    with pytest.raises(NotFound):
        await prune_due(Pruner(store, RetentionPolicy(), right_clock()))
    assert sum(key.startswith("0000/") for key in storage.objects) == 6


@pytest.mark.parametrize("fails", range(1, 6))
async def test_run_that_fails_at_any_delete_is_taken_up_by_the_next(fails: int) -> None:
    storage = MemoryStorage()
    await replica_to_prune(storage)
    store = memory_store(FaultStorage(storage, FaultAt(fails, Operation.DELETE)))
    retention = Pruner(store, RetentionPolicy(), right_clock())
    with pytest.raises(StorageError):
        await prune_due(retention)
    files = await store.list_levels()
    assert restorable(files) == {each.max_txid for each in files}
    assert len(await prune_due(retention)) == 6 - fails


async def test_replacement_is_looked_at_once() -> None:
    """A run that goes on where the last one failed reads nothing again."""
    storage = MemoryStorage()
    await replica_to_prune(storage)
    faults = FaultStorage(storage, FaultAt(2, Operation.DELETE))
    retention = Pruner(memory_store(faults), RetentionPolicy(), right_clock())
    with pytest.raises(StorageError):
        await prune_due(retention)
    read = retention.checked.bytes_read
    faults.plan = lambda request: None
    assert len(await prune_due(retention)) == 4
    assert retention.checked.bytes_read == read > 0


async def test_young_files_stay_when_retention_begins() -> None:
    storage = MemoryStorage()
    await replica_to_prune(storage)
    retention = Pruner(memory_store(storage), RetentionPolicy(l0_ms=HOUR_MS + 1), right_clock())
    assert await prune_due(retention) == []


def test_time_never_runs_ahead_of_what_has_elapsed_nor_of_the_clock() -> None:
    machine = Machine(error_ms=HOUR_MS)
    clock = machine.clock()
    machine.true_ms += MINUTE_MS
    assert clock.now_ms() == clock.steady_ms() == NOW + HOUR_MS + MINUTE_MS
    machine.error_ms = 0  # it was ahead when we began
    assert clock.now_ms() == NOW + MINUTE_MS
    machine.error_ms = 2 * HOUR_MS
    assert clock.now_ms() == NOW + HOUR_MS + MINUTE_MS
