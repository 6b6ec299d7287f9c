"""The page map, against a dictionary that does the same one page at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from litereplica.format.sqlite import lock_pgno
from litereplica.replica.page_map import CHUNK, LOCATION, PageMap

PAGE_SIZE = 65536
LOCK = lock_pgno(PAGE_SIZE)

page_counts = st.one_of(
    st.integers(1, 3 * CHUNK),
    st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, LOCK - 1, LOCK, LOCK + 1]),
)


def locations(file_id: int, pgnos: list[int]) -> NDArray[np.void]:
    rows = np.zeros(len(pgnos), LOCATION)
    rows["file"] = file_id
    rows["size"] = np.array(pgnos) % 1000 + 7
    rows["offset"] = np.array(pgnos, np.uint64) * 1000 + (1 << 40)
    return rows


def u32(pgnos: list[int]) -> NDArray[np.uint32]:
    return np.array(pgnos, np.uint32)


@st.composite
def files(draw: st.DrawFn) -> tuple[list[int], int]:
    """Pages of a file, ascending, and its commit; some of the pages may lie beyond it."""
    commit = draw(page_counts)
    near_the_ends = [1, 2, CHUNK, CHUNK + 1, commit - 1, commit, commit + 1]
    one = st.one_of(st.integers(1, commit + 3), st.sampled_from([pgno for pgno in near_the_ends if pgno > 0]))
    return sorted(draw(st.sets(one, max_size=20))), commit


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(files(), max_size=8), asked=st.lists(st.integers(1, LOCK + 5), max_size=30))
def test_a_map_finds_what_a_dictionary_finds_and_stays_as_it_was(
    history: list[tuple[list[int], int]], asked: list[int]
) -> None:
    pages: PageMap = PageMap.empty(PAGE_SIZE)
    model: dict[int, int] = {}
    seen: list[tuple[PageMap, dict[int, int]]] = [(pages, model)]
    for file_id, (pgnos, commit) in enumerate(history, 1):
        pages = pages.applied(u32(pgnos), locations(file_id, pgnos), commit=commit)
        model = {pgno: held for pgno, held in (model | dict.fromkeys(pgnos, file_id)).items() if pgno <= commit}
        assert pages.commit == commit
        seen.append((pages, model))
    for pages, model in seen:
        everything = [*asked, *model]
        found = pages.lookup(u32(everything))
        expected = np.zeros(len(everything), LOCATION)
        for row, pgno in enumerate(everything):
            if pgno in model:
                expected[row] = locations(model[pgno], [pgno])[0]
        assert (found == expected).all()
        assert pages.files().tolist() == sorted(set(model.values()))
        absent = [pgno for pgno in range(1, pages.commit + 1) if pgno not in model and pgno != LOCK]
        assert pages.missing().tolist() == absent
        assert pages.missing(after=CHUNK + 5).tolist() == [pgno for pgno in absent if pgno > CHUNK + 5]


def test_pages_that_come_back_are_absent_until_a_file_has_them() -> None:
    pages = PageMap.empty(512).applied(u32([1, 2, 3]), locations(1, [1, 2, 3]), commit=3)
    shrunk = pages.applied(u32([1]), locations(2, [1]), commit=1)
    regrown = shrunk.applied(u32([3]), locations(3, [3]), commit=3)
    assert regrown.lookup(u32([1, 2, 3, 4]))["file"].tolist() == [2, 0, 3, 0]
    assert regrown.missing().tolist() == [2]
    assert pages.lookup(u32([1, 2, 3]))["file"].tolist() == [1, 1, 1]


def test_there_is_no_page_0() -> None:
    with pytest.raises(ValueError, match="page 0"):
        PageMap.empty(512).lookup(u32([1, 0]))


def test_a_small_change_of_a_large_database_copies_little() -> None:
    every = np.arange(1, 2_000_001, dtype=np.uint32)
    rows = np.ones(len(every), LOCATION)
    pages = PageMap.empty(4096).applied(every, rows, commit=len(every))
    changed = pages.applied(u32([5, 1_000_000]), rows[:2], commit=len(every))
    shared = {id(chunk) for chunk in pages._chunks} & {id(chunk) for chunk in changed._chunks}
    assert len(shared) == len(pages._chunks) - 2
    assert sum(chunk.nbytes for chunk in pages._chunks) <= 16 * (len(every) + CHUNK)
