"""Chooses the neighbourhood of a cold page: the pages that are fetched in the same request.

The window's size is chosen by `readahead.py`; the requests are planned by `read_plan.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from litereplica.replica.page_map import PageMap

MAX_NEIGHBOURS = 512
"""Pages on either side that are considered for a window: it bounds the work for tiny frames."""


def neighbourhood(
    around: PageMap, pgnos: NDArray[np.uint32], locations: NDArray[np.void], *, window: int
) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
    """Return these pages and their neighbours, ascending: (pgnos, locations).

    Neighbours are the pages that `around` takes from the same window (`window` bytes) of the same file as one of these.
    """
    seen: set[tuple[int, int]] = set()
    found_pgnos, found_locations = [pgnos], [locations]
    windows = (locations["offset"] // window).tolist()
    for pgno, file_id, number in zip(pgnos.tolist(), locations["file"].tolist(), windows, strict=True):
        if (file_id, number) in seen:
            continue
        seen.add((file_id, number))
        near = np.arange(max(1, pgno - MAX_NEIGHBOURS), min(around.commit, pgno + MAX_NEIGHBOURS) + 1, dtype=np.uint32)
        rows = around.lookup(near)
        inside = (rows["file"] == file_id) & (rows["offset"] // window == number)
        found_pgnos.append(near[inside])
        found_locations.append(rows[inside])
    every = np.concatenate(found_pgnos)
    _, first = np.unique(every, return_index=True)
    return every[first], np.concatenate(found_locations)[first]
