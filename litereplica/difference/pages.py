"""Compares two database files page by page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from litereplica.format.sqlite import HEADER_SIZE, MAX_PAGE_SIZE, DatabaseHeader
from litereplica.runs import consecutive
from litereplica.types import Pgno

PIECE_BYTES = 64 * MAX_PAGE_SIZE
"""Bytes read from each file at a time: a multiple of every page size."""


@dataclass(frozen=True, slots=True, eq=False)
class PageDifference:
    """Pages that differ: `changed` are those in both files with different content, ascending.

    `page_sizes` are in bytes, `counts` in pages. If the page sizes differ, `changed` is empty.
    """

    page_sizes: tuple[int, int]
    counts: tuple[int, int]
    changed: NDArray[np.uint32]

    @property
    def is_empty(self) -> bool:
        """True if the files are equal."""
        return not len(self.changed) and self.page_sizes[0] == self.page_sizes[1] and self.counts[0] == self.counts[1]

    def ranges(self) -> list[tuple[Pgno, Pgno]]:
        """The first and the last page of each run of consecutive pages in `changed`."""
        return [(int(self.changed[start]), int(self.changed[stop - 1])) for start, stop in consecutive(self.changed)]


def compare_pages(before: Path, after: Path, *, check: Callable[[], None]) -> PageDifference:
    """Compare two database files page by page. `check` is called every 4 MiB, and may raise to cancel.

    Raises `SQLiteFormatError` for a file that is not a database, and `OSError`.
    """
    sizes = _page_size(before), _page_size(after)
    counts = before.stat().st_size // sizes[0], after.stat().st_size // sizes[1]
    found = [np.empty(0, np.uint32)]
    if sizes[0] == sizes[1]:
        with before.open("rb") as old, after.open("rb") as new:
            left, first = min(counts) * sizes[0], 1
            while left > 0:
                check()
                length = min(PIECE_BYTES, left)
                one, other = old.read(length), new.read(length)
                if one != other:
                    rows = [np.frombuffer(each, np.uint8).reshape(-1, sizes[0]) for each in (one, other)]
                    found.append((np.flatnonzero((rows[0] != rows[1]).any(axis=1)) + first).astype(np.uint32))
                left -= length
                first += length // sizes[0]
    return PageDifference(sizes, counts, np.concatenate(found))


def _page_size(path: Path) -> int:
    with path.open("rb") as file:
        return DatabaseHeader.decode(file.read(HEADER_SIZE)).page_size
