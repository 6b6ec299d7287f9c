"""Which requests are made for which pages."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from litereplica.replica.neighbourhood import neighbourhood
from litereplica.replica.page_map import LOCATION, PageMap
from litereplica.replica.read_plan import MAX_BLOCK, MAX_GAP, plan_blocks

WINDOW = 256 * 1024


def frames(file_id: int, sizes: list[int], *, start: int = 100) -> NDArray[np.void]:
    """Frames of a file, one after the other."""
    rows = np.zeros(len(sizes), LOCATION)
    rows["file"] = file_id
    rows["size"] = sizes
    rows["offset"] = start + np.concatenate(([0], np.cumsum(sizes)[:-1]))
    return rows


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.sampled_from([20, 4000, 30_000, 65_000]), min_size=1, max_size=120),
    data=st.data(),
)
def test_every_wanted_frame_is_in_one_request_of_bounded_size(sizes: list[int], data: st.DataObject) -> None:
    rows = np.concatenate([frames(1, sizes), frames(2, sizes)])
    pgnos = np.concatenate([np.arange(1, len(sizes) + 1), 1000 + np.arange(1, len(sizes) + 1)]).astype(np.uint32)
    chosen = data.draw(st.permutations(range(len(rows))))[: data.draw(st.integers(1, len(rows)))]
    blocks = plan_blocks(pgnos[chosen], rows[chosen])
    planned = [pgno for block in blocks for pgno in block.pgnos.tolist()]
    assert sorted(planned) == sorted(pgnos[chosen].tolist())
    for block in blocks:
        assert block.stop - block.start <= MAX_BLOCK
        assert (block.locations["file"] == block.file_id).all()
        ends = block.locations["offset"] + block.locations["size"]
        assert (block.start, block.stop) == (block.locations["offset"].min(), ends.max())
        assert (block.locations["offset"][1:] - ends[:-1] <= MAX_GAP).all()
    for before, after in pairwise(blocks):
        if before.file_id == after.file_id:
            last = after.locations["offset"][0] + after.locations["size"][0]
            assert after.start > before.stop + MAX_GAP or last > before.start + MAX_BLOCK


def test_neighbours_lie_in_the_same_window_of_the_same_file() -> None:
    sizes = [4000] * 400
    base = PageMap.empty(4096).applied(np.arange(1, 401, dtype=np.uint32), frames(1, sizes), commit=400)
    newer = np.array([20, 21], np.uint32)
    pages = base.applied(newer, frames(2, [4000, 4000]), commit=400)
    wanted = np.array([10], np.uint32)
    pgnos, rows = neighbourhood(pages, wanted, pages.lookup(wanted), window=WINDOW)
    in_window = np.flatnonzero(frames(1, sizes)["offset"] // WINDOW == 0) + 1
    assert pgnos.tolist() == [pgno for pgno in in_window.tolist() if pgno not in (20, 21)]
    assert (rows == pages.lookup(pgnos)).all()


def test_a_page_that_the_map_has_elsewhere_is_read_from_where_it_was_asked() -> None:
    rows = frames(1, [4000] * 4)
    pages = PageMap.empty(4096).applied(np.arange(1, 5, dtype=np.uint32), rows, commit=4)
    elsewhere = frames(2, [4000])
    pgnos, found = neighbourhood(pages, np.array([2], np.uint32), elsewhere, window=WINDOW)
    assert found[pgnos.tolist().index(2)] == elsewhere[0]
