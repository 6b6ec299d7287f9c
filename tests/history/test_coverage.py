"""The tree of plans against the planner itself, and supplied pages against naive application of the files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from litereplica.format.ltx import Header
from litereplica.format.sqlite import lock_pgno
from litereplica.history.coverage import Contents, difference, restore_steps, sources, uncovered
from litereplica.ltxstore.plan import plan_restore, reachable_txids
from litereplica.types import FileInfo

LAST = 9
ranges = st.tuples(st.integers(1, LAST), st.integers(1, LAST)).map(sorted)
files = st.lists(
    st.one_of(
        st.builds(lambda level, ends: FileInfo(level, ends[0], ends[1], 0), st.integers(0, 3), ranges),
        st.integers(1, LAST).map(lambda end: FileInfo(9, 1, end, 0)),
    ),
    min_size=1,
    max_size=14,
    unique=True,
)


def contents(commit: int, *pgnos: int, page_size: int = 512, low: int = 2, digest: int | None = None) -> Contents:
    header = Header(page_size=page_size, commit=commit, min_txid=low, max_txid=max(low, 9), timestamp_ms=0)
    digests = None if digest is None else np.full(len(pgnos), digest, np.uint64)
    return Contents(header, np.array(sorted(pgnos), np.uint32), digests)


@given(files)
@settings(max_examples=500)
def test_following_the_steps_back_gives_the_plan_of_each_point(listed: list[FileInfo]) -> None:
    steps = {step.txid: step for step in restore_steps(listed)}
    assert list(steps) == reachable_txids(listed)
    for txid in steps:
        plan, at = [], txid
        while at:
            plan.append(steps[at].info)
            at = steps[at].before
        assert plan[::-1] == plan_restore(listed, target=txid)


@given(files, st.data())
@settings(max_examples=200)
def test_what_is_uncovered_is_what_applying_the_plan_does_not_supply(
    listed: list[FileInfo], data: st.DataObject
) -> None:
    held = {}
    for info in listed:
        commit = data.draw(st.integers(1, 6))
        pages = set(range(1, commit + 1)) - (set() if info.min_txid == 1 else data.draw(st.sets(st.integers(1, 6))))
        held[info] = contents(commit, *pages, low=info.min_txid)
    lacking = uncovered(restore_steps(listed), held)
    for txid in reachable_txids(listed):
        supplied: set[int] = set()
        for info in plan_restore(listed, target=txid):
            supplied = {pgno for pgno in supplied | set(held[info].pgno.tolist()) if pgno <= held[info].header.commit}
        missing = {pgno for low, high in lacking.get(txid, ()) for pgno in range(low, high + 1)}
        assert missing == set(range(1, held[info].header.commit + 1)) - supplied


def test_the_lock_page_is_never_missing() -> None:
    lock = lock_pgno(65536)
    first, second = FileInfo(0, 1, 1, 0), FileInfo(0, 2, 2, 0)
    whole = contents(lock - 2, *range(1, lock - 1), page_size=65536, low=1)
    grown = contents(lock + 2, lock - 1, lock + 2, page_size=65536)
    steps = restore_steps([first, second])
    assert uncovered(steps, {first: whole, second: grown}) == {2: [(lock + 1, lock + 1)]}


def test_a_claimed_size_costs_no_memory() -> None:
    first, second = FileInfo(0, 1, 1, 0), FileInfo(0, 2, 2, 0)
    steps = restore_steps([first, second])
    lacking = uncovered(steps, {first: contents(1, 1, low=1), second: contents(0xFFFFFFFE, 7)})
    assert [lacking[2][0], lacking[2][-1]] == [(2, 6), (lock_pgno(512) + 1, 0xFFFFFFFE)]


def test_another_page_size_makes_what_came_before_useless() -> None:
    first, second = FileInfo(0, 1, 1, 0), FileInfo(0, 2, 2, 0)
    held = {first: contents(3, 1, 2, 3, low=1), second: contents(3, 1, page_size=1024)}
    assert uncovered(restore_steps([first, second]), held) == {2: [(2, 3)]}


def test_sources_are_files_of_lower_levels_with_exactly_the_transactions() -> None:
    l0 = [FileInfo(0, txid, txid, 0) for txid in range(1, 7)]
    l1 = [FileInfo(1, 1, 3, 0), FileInfo(1, 4, 6, 0)]
    l2, straddling = FileInfo(2, 1, 6, 0), FileInfo(2, 2, 5, 0)
    snapshots = [FileInfo(9, 1, 2, 0), FileInfo(9, 1, 6, 0)]
    by_end = sorted([*l0, *l1, l2, straddling, *snapshots], key=lambda info: info.max_txid)
    assert sources(l1[0], by_end) == l0[:3]
    assert sources(l2, by_end) == l1
    assert sources(snapshots[0], by_end) == l0[:2]
    assert sources(snapshots[1], by_end) == [snapshots[0], l2]
    assert sources(l1[0], [info for info in by_end if info != l0[1]]) == []
    assert sources(l1[1], [info for info in by_end if info.level or info == replace(l0[5], min_txid=5)]) == []


def test_a_merged_file_must_have_the_newest_of_each_page_that_survives() -> None:
    chain = [contents(9, 2, 7, 8, digest=1), contents(5, 3, digest=2), contents(6, 3, 6, digest=3)]
    sound = contents(6, 2, 3, 6)
    digests = np.array([1, 3, 3], np.uint64)
    assert difference(replace(sound, digest=digests), chain) is None
    assert difference(sound, chain) is None
    assert difference(contents(6, 2, 3, 4, 6), chain) is None  # an overlapping source may bring more
    assert "page 3 is missing" in str(difference(contents(6, 2, 6), chain))
    assert "page 2 is missing" in str(difference(contents(6), chain))
    assert "commit is 7" in str(difference(contents(7, 2, 3, 6), chain))
    assert "page 3 differs from" in str(difference(replace(sound, digest=np.array([1, 2, 3], np.uint64)), chain))


def test_what_a_shrink_cut_off_is_not_expected_of_a_merged_file() -> None:
    chain = [contents(9, 2, 6), contents(5, 3), contents(6, 4)]
    assert difference(contents(6, 2, 3, 4), chain) is None
