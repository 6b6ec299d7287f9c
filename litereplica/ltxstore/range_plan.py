"""Plans the requests for some pages of a large file, from its index. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litereplica.format.ltx import PageIndex

MAX_GAP = 64 * 1024
"""Two frames with a gap of up to this many bytes are read in one request: the gap takes less time than another one."""

MAX_SPAN_PAGES_BYTES = 8 << 20
"""Maximum size of the decoded pages of one request, which are in memory at the same time."""

WHOLE_SHARE = 0.5
"""If at least this fraction of a file is needed, it is read whole: not many more bytes, in fewer requests."""


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Bytes `start` ≤ i < `stop` of a file, and the needed rows of its index whose frames are in them."""

    start: int
    stop: int
    rows: NDArray[np.intp]


def plan_spans(index: PageIndex, rows: NDArray[np.intp], *, page_size: int, max_bytes: int) -> list[Span]:
    """Return the requests for the frames of these rows (ascending), each of at most about `max_bytes`."""
    starts = index.offset[rows].astype(np.int64)
    stops = starts + index.size[rows]
    gaps = np.flatnonzero(starts[1:] > stops[:-1] + MAX_GAP) + 1
    max_rows = max(1, MAX_SPAN_PAGES_BYTES // page_size)
    spans: list[Span] = []
    first = 0
    for end in [*gaps.tolist(), len(rows)]:
        while first < end:
            fitting = int(np.searchsorted(stops, starts[first] + max_bytes, side="right"))
            last = min(end, first + max_rows, max(first + 1, fitting))
            spans.append(Span(int(starts[first]), int(stops[last - 1]), rows[first:last]))
            first = last
    return spans


def is_better_whole(spans: list[Span], file_size: int) -> bool:
    """True if so much of the file is needed that reading all of it is cheaper."""
    return sum(span.stop - span.start for span in spans) >= WHOLE_SHARE * file_size
