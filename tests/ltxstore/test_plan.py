"""The restore plan against brute force, and against the choices that Litestream documents."""

from __future__ import annotations

import itertools
import random

import pytest

from litereplica.errors import GapError, NoReplica
from litereplica.format.names import SNAPSHOT_LEVEL
from litereplica.ltxstore.plan import plan_newest, plan_restore, plan_steps, reachable_txids
from litereplica.types import FileInfo

RANDOM_SETS = 20_000
SETS_OVER_4_TXIDS = 1 << 10


def info(level: int, low: int, high: int) -> FileInfo:
    return FileInfo(level, low, high, 100)


def reachable(files: list[FileInfo]) -> set[int]:
    """Every TXID that some sequence of applicable files ends at, found by trying all."""
    positions = {0}
    frontier = [0]
    while frontier:
        at = frontier.pop()
        for each in files:
            if each.min_txid <= at + 1 and each.max_txid > at and each.max_txid not in positions:
                positions.add(each.max_txid)
                frontier.append(each.max_txid)
    return positions - {0}


def assert_contiguous(plan: list[FileInfo], files: list[FileInfo]) -> None:
    assert plan[0].min_txid == 1
    assert set(plan) <= set(files)
    for before, after in itertools.pairwise(plan):
        assert 1 < after.min_txid <= before.max_txid + 1
        assert after.max_txid > before.max_txid


def check_against_brute_force(files: list[FileInfo], last: int) -> None:
    ends = reachable(files)
    for target in range(1, last + 1):
        # a file that ends behind the target is of no use for it
        if target in reachable([each for each in files if each.max_txid <= target]):
            plan = plan_restore(files, target=target)
            assert plan[-1].max_txid == target
            assert_contiguous(plan, files)
        else:
            with pytest.raises(GapError):
                plan_restore(files, target=target)
    if ends:
        newest = plan_newest(files)
        assert newest[-1].max_txid == max(ends)
        assert_contiguous(newest, files)
    else:
        with pytest.raises(GapError):
            plan_newest(files)


def test_plan_exists_exactly_when_brute_force_finds_one_for_all_file_sets_over_3_txids() -> None:
    ranges = list(itertools.combinations_with_replacement(range(1, 4), 2))
    universe = [info(level, low, high) for low, high in ranges for level in ((0, 9) if low == 1 else (0,))]
    for count in range(1, len(universe) + 1):
        for files in itertools.combinations(universe, count):
            check_against_brute_force(list(files), 3)


def test_plan_exists_exactly_when_brute_force_finds_one_for_all_file_sets_over_4_txids() -> None:
    """Of one level: which level a file is of only decides between ways of the same length."""
    universe = [info(0, low, high) for low, high in itertools.combinations_with_replacement(range(1, 5), 2)]
    sets = [[each for row, each in enumerate(universe) if number >> row & 1] for number in range(SETS_OVER_4_TXIDS)]
    for files in sets[1:]:
        check_against_brute_force(files, 4)


def test_points_are_exactly_what_a_plan_is_found_for() -> None:
    rng = random.Random(7)
    for _ in range(RANDOM_SETS // 4):
        ranges = [sorted((rng.randint(1, 6), rng.randint(1, 6))) for _ in range(rng.randint(1, 9))]
        files = [info(rng.randint(0, 3), low, high) for low, high in ranges]
        points = [txid for txid in range(1, 7) if txid in reachable([f for f in files if f.max_txid <= txid])]
        assert reachable_txids(files) == points


def test_plan_exists_exactly_when_brute_force_finds_one_for_random_file_sets_over_6_txids() -> None:
    rng = random.Random(6)
    for _ in range(RANDOM_SETS):
        files = set()
        for _ in range(rng.randint(1, 8)):
            low, high = sorted((rng.randint(1, 6), rng.randint(1, 6)))
            level = SNAPSHOT_LEVEL if low == 1 and rng.random() < 0.4 else rng.randint(0, 3)
            files.add(info(level, low, high))
        check_against_brute_force(sorted(files, key=str), 6)


def test_file_that_reaches_furthest_is_taken_then_the_one_that_begins_first_then_the_highest_level() -> None:
    snapshot = info(9, 1, 4)
    assert plan_steps([info(0, 5, 5), info(1, 5, 7), info(2, 5, 6)], after=4) == [info(1, 5, 7)]
    assert plan_steps([info(1, 5, 7), info(1, 3, 7)], after=4) == [info(1, 3, 7)]
    assert plan_steps([info(1, 5, 7), info(2, 5, 7)], after=4) == [info(2, 5, 7)]
    assert plan_restore([snapshot, info(9, 1, 2), info(0, 5, 5), info(1, 3, 5)]) == [snapshot, info(1, 3, 5)]


def test_overlapping_files_of_a_level_are_walked_through() -> None:
    files = [info(9, 1, 1), info(1, 1, 5), info(1, 3, 7), info(1, 6, 9), info(1, 9, 12)]
    assert plan_restore(files) == [info(1, 1, 5), info(1, 6, 9), info(1, 9, 12)]
    assert plan_restore(files, target=7) == [info(1, 1, 5), info(1, 3, 7)]


def test_what_lies_before_a_file_of_the_whole_history_is_left_out() -> None:
    assert plan_restore([info(9, 1, 4), info(2, 1, 8), info(0, 9, 9)]) == [info(2, 1, 8), info(0, 9, 9)]


def test_gap_that_a_newer_snapshot_bridges_is_none() -> None:
    assert plan_restore([info(0, 1, 1), info(9, 1, 9), info(0, 10, 10)]) == [info(9, 1, 9), info(0, 10, 10)]


def test_target_within_a_file_is_not_reached_by_it() -> None:
    files = [info(9, 1, 2), info(1, 3, 8)]
    with pytest.raises(GapError) as error:
        plan_restore(files, target=5)
    assert (error.value.have, error.value.want) == (2, 5)


def test_gap_is_an_error_of_restore_but_not_of_a_reader_that_takes_the_newest() -> None:
    files = [info(9, 1, 3), info(0, 4, 4), info(0, 6, 6)]
    with pytest.raises(GapError):
        plan_restore(files)
    assert plan_newest(files) == [info(9, 1, 3), info(0, 4, 4)]


@pytest.mark.parametrize("plan", [plan_restore, plan_newest])
def test_no_files_are_no_replica(plan: object) -> None:
    assert callable(plan)
    with pytest.raises(NoReplica):
        plan([])


def test_target_before_the_first_transaction_is_not_reached() -> None:
    with pytest.raises(GapError):
        plan_restore([info(0, 1, 1)], target=0)
