"""When a replica is compacted and pruned, with how few requests, and that it ends."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.compaction.compaction import Compacted, run_compaction
from litereplica.compaction.levels import Levels
from litereplica.compaction.retention import NEVER, RetentionPolicy, Tier
from litereplica.ltxstore.plan import reachable_txids
from litereplica.restore.restore import restore
from litereplica.testing.memory import MemoryStorage
from litereplica.times import DAY_MS, HOUR_MS
from litereplica.writer import maintenance as maintenance_module
from tests.ltxstore.replicas import memory_store, publish
from tests.writer.simulated import NOON_MS, Simulation

pytestmark = pytest.mark.slow

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 24 * HOUR_S


async def load(replica: Simulation, seconds: int, *, every_s: int = 1) -> None:
    for _ in range(0, seconds, every_s):
        await replica.publish()
        await replica.advance(every_s)


async def assert_all_can_be_restored(replica: Simulation, directory: Path) -> None:
    """Every end of a file, with the content that the database had."""
    files = await replica.all_files()
    assert set(reachable_txids(files)) == {info.max_txid for info in files}
    for txid in reachable_txids(files):
        await restore(replica.store, directory / "out.db", target=txid, force=True)
        assert (directory / "out.db").read_bytes() == replica.history.database(txid), txid


# --- when ------------------------------------------------------------------------------------


async def test_levels_are_made_at_multiples_of_their_intervals_of_all_that_there_is() -> None:
    replica = Simulation()
    await replica.advance(7)
    await load(replica, 10 * MINUTE_S + 10)
    assert await replica.files(1) == [(1, 23), *((low, low + 29) for low in range(24, 594, 30))]
    assert await replica.files(2) == [(1, 293), (294, 593)]
    assert await replica.files(3) == []


async def test_snapshot_is_made_at_midnight_of_all_that_was_published_by_then(tmp_path: Path) -> None:
    replica = Simulation(policy=NEVER)
    replica.time.true_ms += 11 * HOUR_MS + 3_540_000
    await load(replica, 2 * MINUTE_S, every_s=7)
    ((first, last),) = await replica.files(9)
    assert first == 1
    assert replica.time.true_ms - 1000 * 7 * (replica.history.txid - last) >= NOON_MS + DAY_MS // 2 - 7000
    await assert_all_can_be_restored(replica, tmp_path)


async def test_level_0_is_kept_for_five_minutes_after_it_is_in_level_1() -> None:
    replica = Simulation()
    await load(replica, 8 * MINUTE_S)
    oldest = (await replica.files(0))[0][0]
    assert 480 - 300 - 45 <= oldest <= 480 - 300 + 1
    assert (await replica.files(0))[-1] == (480, 480)


async def test_what_is_behind_when_a_process_starts_is_done_at_once() -> None:
    replica = Simulation()
    for _ in range(40):
        await replica.publish(noted=False)
        replica.time.true_ms += 1000
    replica.time.true_ms += HOUR_MS
    replica.maintain()
    assert replica.maintenance.next_due_s == 0
    await replica.maintenance.run_due()
    assert [await replica.files(level) for level in (0, 1, 2, 3)] == [[(40, 40)], [(1, 40)], [(1, 40)], [(1, 40)]]


async def test_nothing_is_deleted_by_a_policy_of_never() -> None:
    replica = Simulation(policy=NEVER)
    await load(replica, 3 * MINUTE_S)
    await replica.advance(3 * DAY_S)
    assert len(await replica.files(0)) == 180
    assert replica.requests().get("delete", 0) == 0
    assert replica.maintenance.is_settled


async def test_without_levels_there_are_snapshots_only() -> None:
    replica = Simulation(levels=Levels((), 10 * 60_000))
    await load(replica, 25 * MINUTE_S, every_s=30)
    assert [len(await replica.files(level)) for level in (1, 2, 3, 9)] == [0, 0, 0, 2]


# --- how many requests -----------------------------------------------------------------------


async def test_requests_of_a_database_that_commits_every_second() -> None:
    """The requests of an hour: each file that is merged is read once, and there is one listing."""
    replica = Simulation()
    await load(replica, 30 * MINUTE_S)
    commits, requests = 30 * MINUTE_S, replica.requests()
    merges = replica.maintenance.statistics().merges
    assert merges == 60 + 6
    assert requests["put_if_absent"] == merges
    assert requests["list"] == 10 + 1  # the levels, and once a day the sums of large files
    assert requests["delete"] <= commits
    level_0, level_1, covers = commits, 60, 60
    assert requests["get"] <= level_0 + level_1 + covers
    assert requests.get("head", 0) <= 2 * 30
    assert set(requests) <= {"put_if_absent", "list", "delete", "get", "head"}


async def test_idle_replica_is_finished_and_then_makes_no_request_for_a_month() -> None:
    replica = Simulation()
    await load(replica, 20 * MINUTE_S)
    await replica.advance(3 * DAY_S)
    assert replica.maintenance.is_settled
    assert [await replica.files(level) for level in (0, 1, 2, 3, 9)] == [
        [(1200, 1200)], [(1171, 1200)], [(901, 1200)], [(1, 1200)], [(1, 1200)],
    ]  # fmt: skip
    requests, rounds = replica.requests(), replica.rounds
    await replica.advance(30 * DAY_S)
    assert (replica.requests(), replica.rounds) == (requests, rounds)
    assert await replica.newest() == 1200


async def test_replica_that_was_idle_goes_on_with_the_next_publication(tmp_path: Path) -> None:
    replica = Simulation()
    await load(replica, 90)
    await replica.advance(5 * DAY_S)
    await replica.publish()
    assert replica.maintenance.next_due_s is not None
    await replica.advance(HOUR_S)
    assert (await replica.files(1))[-1] == (91, 91)
    assert (await replica.files(3))[-1] == (91, 91)
    await assert_all_can_be_restored(replica, tmp_path)


async def test_fresh_process_lists_once_and_settles_when_there_is_nothing_to_do() -> None:
    replica = Simulation()
    await load(replica, 60)
    await replica.advance(3 * DAY_S)
    before = replica.requests()["list"]
    replica.maintain()
    await replica.maintenance.run_due()
    assert replica.requests()["list"] == before + 10
    await replica.advance(3 * DAY_S)
    assert replica.maintenance.is_settled


async def test_files_that_another_tool_has_made_are_noticed_within_an_hour() -> None:
    replica = Simulation()
    await load(replica, 3 * MINUTE_S)
    await publish(memory_store(replica.storage), replica.history, 9, 1, 100)
    await load(replica, HOUR_S + 2 * MINUTE_S, every_s=60)
    assert (await replica.files(9)) == [(1, 100)]
    assert replica.maintenance.statistics().files == len(await replica.all_files())


async def test_publications_that_were_not_told_of_are_looked_for_with_the_next_one() -> None:
    replica = Simulation()
    await load(replica, 3 * MINUTE_S)
    for _ in range(5):
        await replica.publish(noted=False)
    await load(replica, MINUTE_S)
    assert (await replica.files(1))[-1][1] > 205


# --- bounds ----------------------------------------------------------------------------------


async def test_backlog_is_merged_in_bounded_steps_between_which_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(maintenance_module, "STEP_FILES", 40)
    replica = Simulation(policy=NEVER, levels=Levels(snapshot_interval_ms=None))
    for _ in range(170):
        await replica.publish(noted=False)
    replica.time.true_ms += DAY_MS
    turns: list[int] = []

    async def other_database() -> None:
        while len(turns) < 100:
            async with replica.maintenance._limiter:
                turns.append(len(await replica.files(1)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other_database)
        await replica.maintenance.run_due()
        nursery.cancel_scope.cancel()
    expected = [(low, min(low + 39, 170)) for low in range(1, 170, 40)]
    assert await replica.files(1) == expected
    assert await replica.files(2) == [(1, 170)]
    assert set(turns) >= set(range(1, len(expected)))
    await assert_all_can_be_restored(replica, tmp_path)


async def test_step_is_bounded_by_bytes_but_for_a_single_file(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Simulation(policy=NEVER, levels=Levels((30_000,), None))
    sizes = [(await replica.publish(noted=False)).size for _ in range(9)]
    monkeypatch.setattr(maintenance_module, "STEP_BYTES", 2 * max(sizes[1:]))
    replica.time.true_ms += HOUR_MS
    await replica.maintenance.run_due()
    assert await replica.files(1) == [(1, 1), (2, 3), (4, 5), (6, 7), (8, 9)]


async def test_one_merge_at_a_time_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter, busy, merges = trio.CapacityLimiter(1), 0, 0
    replicas = [Simulation() for _ in range(4)]
    for replica in replicas:
        replica.maintenance._limiter = limiter
        for _ in range(5):
            await replica.publish(noted=False)
        replica.time.true_ms += HOUR_MS

    async def counted(*args: Any, **options: Any) -> Compacted:
        nonlocal busy, merges
        busy, merges = busy + 1, merges + 1
        assert busy == 1
        try:
            return await run_compaction(*args, **options)
        finally:
            busy -= 1

    monkeypatch.setattr(maintenance_module, "run_compaction", counted)
    async with trio.open_nursery() as nursery:
        for replica in replicas:
            nursery.start_soon(replica.maintenance.run_due)
    assert merges == 4 * 3
    assert [await replica.files(3) for replica in replicas] == [[(1, 5)]] * 4


# --- clocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_clock_that_steps_an_hour_at_each_tick_neither_stalls_merges_nor_hurries_deletions(seed: int) -> None:
    """A twin whose clock is right is the measure."""
    rng = random.Random(seed)
    policy = RetentionPolicy(snapshot_ms=20 * 60_000)
    levels = Levels(snapshot_interval_ms=10 * 60_000)
    right, stepping = Simulation(policy=policy, levels=levels), Simulation(policy=policy, levels=levels)
    for tick in range(400):
        stepping.time.error_ms = rng.choice((-HOUR_MS, 0, HOUR_MS))
        for replica in (right, stepping):
            await replica.publish()
            await replica.advance(5)
        for level in (0, 1, 2, 9) if tick % 5 == 0 else ():
            in_right = {high for _, high in await right.files(level)}
            in_stepping = {high for _, high in await stepping.files(level)}
            assert in_stepping >= in_right, (seed, level)
            assert max(in_stepping, default=0) == max(in_right, default=0), (seed, level)
    assert right.maintenance.statistics().deletions > 300
    stepping.time.error_ms = 0
    for replica in (right, stepping):
        await replica.advance(2 * DAY_S)
        assert replica.maintenance.is_settled
    assert [await stepping.files(level) for level in (0, 1, 2, 3, 9)] == [
        await right.files(level) for level in (0, 1, 2, 3, 9)
    ]


async def test_process_that_starts_under_a_wrong_clock_merges_in_time() -> None:
    """The files are of an hour that is still to come."""
    replica = Simulation()
    replica.time.error_ms = HOUR_MS
    await load(replica, 70)
    replica.time.error_ms = 0
    replica.maintain()
    await load(replica, 40)
    assert (await replica.files(1))[-1][1] >= 90


# --- tiers -----------------------------------------------------------------------------------


async def test_tiers_thin_out_the_past_and_what_they_keep_can_be_restored(tmp_path: Path) -> None:
    """All for an hour, one every quarter of an hour for six hours, one every two hours for a day."""
    policy = RetentionPolicy(snapshot_ms=HOUR_MS, tiers=(Tier(HOUR_MS // 4, 6 * HOUR_MS), Tier(2 * HOUR_MS, DAY_MS)))
    replica = Simulation(levels=Levels((5 * 60_000, 15 * 60_000), HOUR_MS), policy=policy)
    await load(replica, 36 * HOUR_S, every_s=300)
    points = reachable_txids(await replica.all_files())
    ages_s = [300 * (replica.history.txid - txid) for txid in points]
    assert len([age for age in ages_s if 2 * HOUR_S < age <= 6 * HOUR_S]) in range(15, 18)
    assert len([age for age in ages_s if 7 * HOUR_S < age <= 23 * HOUR_S]) in range(7, 10)
    assert max(ages_s) <= 25 * HOUR_S
    gaps = [before - after for before, after in itertools.pairwise(sorted(ages_s, reverse=True))]
    assert max(gaps) <= 2 * HOUR_S + 900
    await assert_all_can_be_restored(replica, tmp_path)


async def test_after_each_single_delete_all_that_remains_can_be_restored() -> None:
    """Under load with levels and periods at random. The planner is the judge."""
    deletions = 0
    for seed in range(6):
        rng = random.Random(seed)

        class Judged(MemoryStorage):
            async def delete(self, keys: object) -> None:
                nonlocal deletions
                await super().delete(keys)  # type: ignore[arg-type]  # as it was called
                deletions += 1
                files = await memory_store(self).list_levels()
                assert set(reachable_txids(files)) == {info.max_txid for info in files}, seed  # noqa: B023

        intervals = tuple(rng.choice((20_000, 45_000, 60_000)) * 3**level for level in range(rng.randint(1, 3)))
        tiers = (Tier(60_000, 1_200_000),) if seed % 3 == 0 else ()
        replica = Simulation(
            levels=Levels(intervals, rng.choice((120_000, 400_000))),
            policy=RetentionPolicy(rng.choice((1000, 60_000, None)), rng.choice((1000, 200_000)), tiers),
            storage=Judged(),
        )
        await load(replica, 30 * MINUTE_S, every_s=rng.choice((7, 11, 20)))
    assert deletions > 250
