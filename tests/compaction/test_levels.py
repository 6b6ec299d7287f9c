"""Which files are merged, when, and under which name."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from litereplica.compaction.levels import (
    MAX_LEVEL,
    Compaction,
    Levels,
    due_compactions,
    first_step,
    next_compaction,
    next_snapshot,
    schedule,
)
from litereplica.errors import GapError, NoReplica, UsageError
from litereplica.format.names import SNAPSHOT_LEVEL
from litereplica.ltxstore.plan import plan_newest, reachable_txids
from litereplica.times import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from litereplica.types import FileInfo

HISTORIES = 1_500
NOON = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp() * 1000)
NO_SNAPSHOTS = Levels(snapshot_interval_ms=None)


def info(level: int, low: int, high: int, modified_ms: int = 0) -> FileInfo:
    return FileInfo(level, low, high, 100, modified_ms)


def level0(*txids: int) -> list[FileInfo]:
    return [info(0, txid, txid) for txid in txids]


def merged(compaction: Compaction) -> FileInfo:
    """The file that a compaction makes."""
    last = compaction.inputs[-1]
    return info(compaction.level, compaction.min_txid, compaction.max_txid, last.modified_ms)


# --- when ------------------------------------------------------------------------------------


def test_defaults_are_litestreams() -> None:
    assert Levels() == Levels((30 * SECOND_MS, 5 * MINUTE_MS, HOUR_MS), DAY_MS)


def test_level_is_due_once_an_interval_aligned_to_the_clock_in_utc() -> None:
    """A file a second, asked for ten times a second: merged at :00 and :30 of each."""
    files: list[FileInfo] = []
    merges: list[tuple[int, Compaction]] = []
    start = NOON + 17 * SECOND_MS + 300
    for now in range(start, start + 2 * MINUTE_MS, 100):
        if now % SECOND_MS == 300:
            files += [info(0, len(files) + 1, len(files) + 1, now)]
        above = [merged(compaction) for _, compaction in merges]
        merges += [(now, each) for each in due_compactions(NO_SNAPSHOTS, [*files, *above], now) if each.level == 1]
    assert [now - NOON for now, _ in merges] == [30_000, 60_000, 90_000, 120_000]


def test_idle_replica_is_never_due() -> None:
    files = [*level0(1, 2, 3), info(1, 1, 3), info(2, 1, 3), info(3, 1, 3), info(9, 1, 3)]
    assert due_compactions(Levels(), files, NOON) == []
    assert due_compactions(Levels(), [], NOON) == []


def test_one_old_input_takes_all_newer_ones_along() -> None:
    files = [info(0, 1, 1, NOON - 1), info(0, 2, 2, NOON + 5)]
    assert due_compactions(NO_SNAPSHOTS, files, NOON + 10) == [Compaction(1, 1, tuple(files))]
    assert due_compactions(NO_SNAPSHOTS, [info(0, 1, 1, NOON), info(0, 2, 2, NOON + 5)], NOON + 10) == []


def test_several_levels_and_a_snapshot_are_due_at_once_lowest_first() -> None:
    files = [info(1, 1, 4), info(2, 1, 2), info(0, 5, 5)]
    due = due_compactions(Levels(), files, NOON)
    assert [(each.level, each.min_txid, each.max_txid) for each in due] == [(1, 5, 5), (2, 3, 4), (3, 1, 2), (9, 1, 5)]


def test_snapshot_is_due_once_a_day_and_only_when_something_has_changed() -> None:
    midnight = NOON - 12 * HOUR_MS
    old = info(9, 1, 4, midnight - DAY_MS)
    assert due_compactions(Levels(()), [old, info(0, 4, 4, midnight - DAY_MS)], NOON) == []
    assert due_compactions(Levels(()), [old, info(0, 5, 5, midnight)], NOON) == []
    due = due_compactions(Levels(()), [old, info(0, 5, 5, midnight - 1)], NOON)
    assert due == [Compaction(SNAPSHOT_LEVEL, 1, (old, info(0, 5, 5, midnight - 1)))]
    assert due_compactions(Levels((), None), [old, info(0, 5, 5, midnight - 1)], NOON) == []


def test_schedule_tells_from_when_on_each_compaction_is_due() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        files = [replace(each, modified_ms=NOON + each.modified_ms * 7 * SECOND_MS) for each in random_files(rng)]
        for planned in schedule(Levels((30_000, 60_000, 90_000), 120_000), files):
            levels = Levels((30_000, 60_000, 90_000), 120_000)
            assert planned.compaction not in due_compactions(levels, files, planned.due_ms - 1), seed
            assert planned.compaction in due_compactions(levels, files, planned.due_ms), seed


def test_steps_have_so_many_files_and_bytes_at_most_or_one_file() -> None:
    compaction = Compaction(1, 1, tuple(level0(1, 2, 3, 4, 5)))
    assert first_step(compaction, max_inputs=3, max_bytes=10_000).inputs == compaction.inputs[:3]
    assert first_step(compaction, max_inputs=9, max_bytes=299).inputs == compaction.inputs[:2]
    assert first_step(compaction, max_inputs=9, max_bytes=99).inputs == compaction.inputs[:1]
    assert first_step(compaction, max_inputs=5, max_bytes=500) == compaction


def test_snapshot_is_one_step() -> None:
    compaction = Compaction(SNAPSHOT_LEVEL, 1, tuple(level0(1, 2, 3)))
    assert first_step(compaction, max_inputs=1, max_bytes=1) == compaction


def test_replica_without_a_beginning_gets_no_snapshot_and_no_error() -> None:
    assert due_compactions(Levels(()), level0(2, 3), NOON) == []
    with pytest.raises(GapError):
        next_snapshot(level0(2, 3))
    with pytest.raises(NoReplica):
        next_snapshot([])


@pytest.mark.parametrize(
    "make", [lambda: Levels((0,)), lambda: Levels((30, -1)), lambda: Levels((1,) * 9), lambda: Levels((), 0)]
)
def test_impossible_levels_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(UsageError):
        make()


# --- what ------------------------------------------------------------------------------------


def test_inputs_are_what_the_level_below_has_behind_the_end_the_newest_included() -> None:
    files = [*level0(1, 2, 3, 4), info(1, 1, 2)]
    assert next_compaction(files, 1) == Compaction(1, 3, tuple(level0(3, 4)))
    assert next_compaction(files, 2) == Compaction(2, 1, (info(1, 1, 2),))
    assert next_compaction(files, 3) is None


def test_input_that_straddles_the_end_is_named_from_behind_it() -> None:
    """ls#1460, ls#1464: a level's file never begins before the end of the one before it."""
    files = [info(2, 1, 5), info(1, 4, 8), info(1, 9, 9)]
    assert next_compaction(files, 2) == Compaction(2, 6, (info(1, 4, 8), info(1, 9, 9)))


@pytest.mark.parametrize("above", [2, 3, MAX_LEVEL])
def test_no_file_reaches_across_the_end_of_a_higher_level(above: int) -> None:
    """A level that lags behind one above it goes on behind that: what is in between, the higher one has."""
    files = [*level0(*range(1, 13)), info(1, 1, 8), info(above, 1, 10)]
    assert next_compaction(files, 1) == Compaction(1, 11, tuple(level0(11, 12)))
    assert next_compaction([*files, info(9, 1, 11)], 1) == Compaction(1, 11, tuple(level0(11, 12)))


def test_overlapping_files_of_a_level_are_merged_without_those_that_add_nothing() -> None:
    """ls#847: files 1-5, 3-7 and 6-9 in one level."""
    files = [info(1, 1, 5), info(1, 3, 7), info(1, 6, 9)]
    assert next_compaction(files, 2) == Compaction(2, 1, (info(1, 1, 5), info(1, 6, 9)))


def test_gap_of_the_level_below_is_bridged_by_still_lower_levels() -> None:
    files = [info(1, 1, 3), info(1, 6, 9), *level0(4, 5, 6, 7, 8, 9, 10)]
    assert next_compaction(files, 2) == Compaction(2, 1, (info(1, 1, 3), *level0(4, 5), info(1, 6, 9)))


def test_gap_that_nothing_bridges_is_not_skipped() -> None:
    assert next_compaction(level0(1, 2, 4, 5), 1) == Compaction(1, 1, tuple(level0(1, 2)))
    assert next_compaction([info(1, 1, 2), *level0(4, 5)], 1) is None


def test_level_goes_on_behind_a_gap_that_only_a_snapshot_bridges() -> None:
    """ls#1515. The oldest such snapshot, so that the least is left out."""
    files = [info(1, 1, 2), *level0(4, 5, 6, 7), info(9, 1, 4), info(9, 1, 6)]
    assert next_compaction(files, 1) == Compaction(1, 5, tuple(level0(5, 6, 7)))


def test_snapshot_is_made_from_the_restore_plan() -> None:
    files = [info(9, 1, 4), info(2, 5, 8), info(1, 9, 10), *level0(8, 9, 10, 11)]
    assert next_snapshot(files) == Compaction(SNAPSHOT_LEVEL, 1, (files[0], files[1], files[2], info(0, 11, 11)))
    assert next_snapshot([info(9, 1, 4), info(0, 4, 4)]) is None
    assert next_snapshot([info(3, 1, 4), info(0, 4, 4)]) == Compaction(SNAPSHOT_LEVEL, 1, (info(3, 1, 4),))


# --- properties ------------------------------------------------------------------------------


def random_files(rng: random.Random) -> list[FileInfo]:
    """A listing as one may find it: levels that lag or run ahead, gaps, overlaps, straddling files."""
    last = rng.randint(1, 20)
    files = [each for each in level0(*range(1, last + 1)) if rng.random() < 0.9]
    for level in (1, 2, 3):
        at = 0
        while at < last and rng.random() < 0.8:
            low = max(1, at + 1 - (rng.random() < 0.2) + (rng.random() < 0.1))
            at = min(last, low + rng.randint(0, 4))
            files.append(info(level, min(low, at), at))
    files += [info(9, 1, rng.randint(1, last)) for _ in range(rng.randint(0, 2))]
    return sorted({replace(each, modified_ms=rng.randint(0, 10)) for each in files}, key=str)


def seeks(files: list[FileInfo], after: int) -> int:
    """How far a compactor gets that takes, as Litestream's does, the files that begin behind a position."""
    taken = sorted((each for each in files if each.min_txid > after), key=lambda each: each.min_txid)
    for each in taken:
        if each.min_txid > after + 1:
            break
        after = max(after, each.max_txid)
    return after


def test_every_compaction_is_contiguous_straddles_nothing_and_leads_on() -> None:
    compactions = 0
    for seed in range(HISTORIES):
        files = random_files(random.Random(seed))
        for level in (1, 2, 3, 4):
            compaction = next_compaction(files, level)
            if compaction is None:
                continue
            compactions += 1
            end = max((each.max_txid for each in files if level <= each.level < SNAPSHOT_LEVEL), default=0)
            first, *others = compaction.inputs
            assert end < compaction.min_txid <= compaction.max_txid, seed
            assert first.min_txid <= compaction.min_txid <= first.max_txid, seed
            for before, after in zip(compaction.inputs, others, strict=False):
                assert after.min_txid <= before.max_txid + 1 <= after.max_txid, seed
            assert compaction.max_txid <= max(each.max_txid for each in files if each.level == level - 1), seed
            again = next_compaction([*files, merged(compaction)], level)
            assert again is None or again.min_txid > compaction.max_txid, seed
            assert reachable_txids(files) == reachable_txids([*files, merged(compaction)]), seed
    assert compactions > HISTORIES


def test_levels_that_are_merged_in_any_order_let_a_compactor_that_skips_straddling_files_follow() -> None:
    """What is merged at random times, level by level, leaves no file that straddles the end of the level above."""
    for seed in range(200):
        rng = random.Random(seed)
        files: list[FileInfo] = []
        for txid in range(1, 40):
            files.append(info(0, txid, txid))
            for level in rng.sample((1, 2, 3), rng.randint(0, 2)):
                compaction = next_compaction(files, level)
                if compaction is not None:
                    files.append(merged(compaction))
        for level in (1, 2):
            of_level = [each for each in files if each.level == level]
            above = [each.max_txid for each in files if each.level == level + 1]
            if above:
                assert seeks(of_level, max(above)) == max([*above, *(each.max_txid for each in of_level)]), seed
        assert plan_newest(files)[-1].max_txid == 39
