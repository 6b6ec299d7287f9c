"""The parts in which hydration reads a large file, cut between frames, and what they bring. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litereplica.format.decoder import Decoder
from litereplica.format.frame_checksums import wrong_frames
from litereplica.replica.page_map import PageMap


@dataclass(slots=True, eq=False)
class Part:
    """Bytes `start` to `stop` of a file, between two frames, and the frames in it that the map uses."""

    start: int
    stop: int
    pgnos: NDArray[np.uint32]
    locations: NDArray[np.void]

    @property
    def has_every_frame(self) -> bool:
        """True if the map uses every frame of the part."""
        return int(self.locations["size"].sum(dtype=np.uint64)) == self.stop - self.start


def plan_parts(pages: PageMap, file_id: int, file_size: int, *, part_size: int) -> Iterator[Part]:
    """Yield the parts of a whole file, in order, each of at least `part_size` bytes but the last one.

    The first begins with the header, the last ends with the trailer.
    """
    start = 0
    waiting: list[tuple[NDArray[np.uint32], NDArray[np.void]]] = []
    for pgnos, locations in pages.chunks():
        inside = locations["file"] == file_id
        pgnos, locations = pgnos[inside], locations[inside]
        while len(pgnos) and int(locations["offset"][-1]) >= start + part_size:
            row = int(np.searchsorted(locations["offset"], np.uint64(start + part_size)))
            stop = int(locations["offset"][row])
            yield _part(start, stop, [*waiting, (pgnos[:row], locations[:row])])
            start, waiting = stop, []
            pgnos, locations = pgnos[row:], locations[row:]
        waiting.append((pgnos, locations))
    yield _part(start, file_size, waiting)


def _part(start: int, stop: int, rows: list[tuple[NDArray[np.uint32], NDArray[np.void]]]) -> Part:
    return Part(start, stop, np.concatenate([each[0] for each in rows]), np.concatenate([each[1] for each in rows]))


def wrong_rows(part: Part, data: bytes, sums: list[int | None] | None) -> list[int]:
    """Return the rows of a part's frames that differ from their checksums, where these are known."""
    if sums is None:
        return []
    offsets = (part.locations["offset"] - np.uint64(part.start)).tolist()
    return wrong_frames(data, offsets, part.locations["size"].tolist(), sums)


def take_pages(decoder: Decoder, part: Part, pages: list[bytes]) -> None:
    """Pass the cached pages of a part, all of its frames, to the decoder of its file."""
    sizes = part.locations["size"].tolist()
    for pgno, size, page in zip(part.pgnos.tolist(), sizes, pages, strict=True):
        decoder.take_page(pgno, size, page)
