"""Plans which frames are read in one request, and decodes the bytes that it brings. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import LTXError
from litereplica.format.frame_checksums import wrong_frames
from litereplica.format.frames import decode_frames
from litereplica.types import Pgno

MAX_BLOCK = 1024 * 1024
"""Bytes of one request that a reader waits for: larger ones gain little, and their pages arrive later."""

MAX_GAP = 32 * 1024
"""Bytes between two wanted frames that are read too, rather than split into two requests."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Frames of one file to be read in one request: `start` ≤ byte < `stop`."""

    file_id: int
    start: int
    stop: int
    pgnos: NDArray[np.uint32]
    locations: NDArray[np.void]


def plan_blocks(pgnos: NDArray[np.uint32], locations: NDArray[np.void], *, max_size: int = MAX_BLOCK) -> list[Block]:
    """Return the requests for these distinct pages, at most `max_size` bytes each."""
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


def plan_whole_files(
    pgnos: NDArray[np.uint32], locations: NDArray[np.void], size_of: Callable[[int], int]
) -> list[Block]:
    """Return a request for each file that has some of these pages, for all of it: small files are checked as a whole.

    `size_of` returns the bytes of a file.
    """
    order = np.argsort(locations["file"], kind="stable")
    file_ids, starts = np.unique(locations["file"][order], return_index=True)
    parts = np.split(order, starts[1:])
    return [
        Block(file_id, 0, size_of(file_id), pgnos[rows], locations[rows])
        for file_id, rows in zip(file_ids.tolist(), parts, strict=False)
    ]


Decoded: TypeAlias = tuple[list[int], list[bytes], list[tuple[Pgno, LTXError]]]
"""The rows of a block that are sound, their pages, and (pgno, error) of each other row."""


def decode_block(block: Block, data: bytes, page_size: int, sums: Sequence[int | None] | None = None) -> Decoded:
    """Decode the pages of a block from its bytes; a frame that differs from its known checksum in `sums` is damaged."""
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
