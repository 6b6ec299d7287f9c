"""Runs of consecutive numbers: pages, slots and TXIDs that can be handled with one call."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SHORT = 64
"""Numbers up to which a loop is faster than numpy."""


def consecutive(numbers: Sequence[int] | NDArray[np.integer]) -> list[tuple[int, int]]:
    """The runs of `numbers` as slices of it (start, stop): within a run each number is the one before plus 1."""
    if not len(numbers):
        return []
    if len(numbers) <= SHORT:
        few = numbers.tolist() if isinstance(numbers, np.ndarray) else numbers
        return list(pairwise([0, *(i for i, (a, b) in enumerate(pairwise(few), 1) if b != a + 1), len(few)]))
    breaks = (np.flatnonzero(np.diff(np.asarray(numbers)) != 1) + 1).tolist()
    return list(pairwise([0, *breaks, len(numbers)]))
