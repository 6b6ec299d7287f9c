"""Which frames come in one request: pure arithmetic over locations, and the decoding of what it brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import LTXError
from litereplica.format.frame_checksums import wrong_frames
from litereplica.format.frames import decode_frames
from litereplica.replica.page_map import PageMap
from litereplica.types import Pgno

NEIGHBOURS = 512
"""Pages to either side that are looked at for a window: it bounds the work for tiny frames."""

MAX_BLOCK = 1024 * 1024
"""Bytes of one request that a reader waits for: larger ones gain little, and their pages arrive later."""

MAX_GAP = 32 * 1024
"""Bytes between two wanted frames that are read along rather than asked for in two requests."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Frames of one file to be read in one request: `start` ≤ byte < `stop`."""

    file_id: int
    start: int
    stop: int
    pgnos: NDArray[np.uint32]
    locations: NDArray[np.void]


def plan_blocks(pgnos: NDArray[np.uint32], locations: NDArray[np.void], *, max_size: int = MAX_BLOCK) -> list[Block]:
    """The requests that bring these pages; the pages are in any order, each once."""
    order = np.lexsort((locations["offset"], locations["file"]))
    pgnos, locations = pgnos[order], locations[order]
    starts = locations["offset"].tolist()
    stops = (locations["offset"] + locations["size"]).tolist()
    files = locations["file"].tolist()
    blocks: list[Block] = []
    first = 0
    for i in range(1, len(starts) + 1):
        if (
            i < len(starts)
            and files[i] == files[first]
            and starts[i] <= stops[i - 1] + MAX_GAP
            and stops[i] <= starts[first] + max_size
        ):
            continue
        blocks.append(Block(files[first], starts[first], stops[i - 1], pgnos[first:i], locations[first:i]))
        first = i
    return blocks


def neighbourhood(
    around: PageMap, pgnos: NDArray[np.uint32], locations: NDArray[np.void], *, window: int
) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
    """The pages that `around` takes from the same windows (bytes) of the same files as these pages."""
    seen: set[tuple[int, int]] = set()
    found_pgnos, found_locations = [pgnos], [locations]
    windows = (locations["offset"] // window).tolist()
    for pgno, file_id, number in zip(pgnos.tolist(), locations["file"].tolist(), windows, strict=True):
        if (file_id, number) in seen:
            continue
        seen.add((file_id, number))
        near = np.arange(max(1, pgno - NEIGHBOURS), min(around.commit, pgno + NEIGHBOURS) + 1, dtype=np.uint32)
        rows = around.lookup(near)
        inside = (rows["file"] == file_id) & (rows["offset"] // window == number)
        found_pgnos.append(near[inside])
        found_locations.append(rows[inside])
    every = np.concatenate(found_pgnos)
    _, first = np.unique(every, return_index=True)
    return every[first], np.concatenate(found_locations)[first]


Decoded: TypeAlias = tuple[list[int], list[bytes], list[tuple[Pgno, LTXError]]]
"""The rows of a block that are sound, their pages, and what is wrong with the others."""


def decode_block(block: Block, data: bytes, page_size: int, sums: Sequence[int | None] | None = None) -> Decoded:
    """The pages of a block, none of which differs from its frame's sum, where that is known."""
    offsets = (block.locations["offset"] - np.uint64(block.start)).tolist()
    sizes = block.locations["size"].tolist()
    pgnos = block.pgnos.tolist()
    wrong = wrong_frames(data, offsets, sizes, sums) if sums is not None else []
    rows: list[int] = []
    pages: list[bytes] = []
    damaged: list[tuple[Pgno, LTXError]] = []
    decoded = decode_frames(data, offsets, sizes, pgnos, page_size=page_size)
    for row in wrong:
        decoded[row] = LTXError("frame is not as the sums beside the file say")
    for row, page in enumerate(decoded):
        if isinstance(page, bytes):
            rows.append(row)
            pages.append(page)
        else:
            damaged.append((pgnos[row], page))
    return rows, pages, damaged
