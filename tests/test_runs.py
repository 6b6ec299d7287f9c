"""Runs of consecutive numbers, against a loop."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from litereplica.runs import consecutive


@given(st.lists(st.integers(0, 12), max_size=30))
def test_runs_are_slices_within_which_each_number_follows_the_one_before(numbers: list[int]) -> None:
    expected: list[list[int]] = []
    for number in numbers:
        if expected and expected[-1][-1] + 1 == number:
            expected[-1].append(number)
        else:
            expected.append([number])
    assert [numbers[start:stop] for start, stop in consecutive(numbers)] == expected
    unsigned = np.array(numbers, np.uint32)
    assert [unsigned[start:stop].tolist() for start, stop in consecutive(unsigned)] == expected
