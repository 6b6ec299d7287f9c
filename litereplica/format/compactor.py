"""Merges several contiguous LTX files into one file with the same effect.

The result equals what a reader has after applying the inputs in order. Of several versions of a page, the last one is
kept. A page above the commit of its own or of a later file is dropped: the database was truncated there, and if it grew
again, a later file has the page. Commit and timestamp are those of the last input; the WAL fields are 0, since the
result is not from a single WAL. The node id, which litereplica uses as the lineage, is that of the inputs if they have
the same, else 0.

Frames are copied unchanged: nothing is compressed again. Inputs are streams: memory is one batch of frames for each,
and 8 bytes a page of the result. `Decoder` checks the inputs; `Encoder` refuses an incomplete snapshot. The caller
handles storage, names and levels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

from litereplica.errors import LTXError
from litereplica.format import ltx
from litereplica.format.encoder import Encoder
from litereplica.types import Pgno


@dataclass(frozen=True, slots=True, eq=False)
class FramesInput:
    """One file: its header, and its frames from `Decoder.feed_frames`, in lists of any length; iterated once."""

    header: ltx.Header
    frames: Iterator[list[tuple[Pgno, bytes]]]


def compacted_header(headers: Sequence[ltx.Header]) -> ltx.Header:
    """The header of the file that these files make, oldest first.

    Each must carry on from the one before, overlapping it or not. Raises `LTXError`.
    """
    if not headers:
        raise LTXError("compaction has no input")
    first, last = headers[0], headers[-1]
    for previous, header in pairwise(headers):
        if header.page_size != previous.page_size:
            raise LTXError(f"compaction of page sizes {previous.page_size} and {header.page_size}")
        if not (header.min_txid <= previous.max_txid + 1 and header.max_txid > previous.max_txid):
            raise LTXError(
                f"compaction of TXIDs {previous.min_txid:016x}-{previous.max_txid:016x},"
                f" then {header.min_txid:016x}-{header.max_txid:016x}: not contiguous"
            )
    node_ids = {header.node_id for header in headers}
    return ltx.Header(
        page_size=last.page_size,
        commit=last.commit,
        min_txid=first.min_txid,
        max_txid=last.max_txid,
        timestamp_ms=last.timestamp_ms,
        node_id=last.node_id if len(node_ids) == 1 else 0,
    )


def compact(inputs: Sequence[FramesInput]) -> Iterator[bytes]:
    """Return the pieces of the merged file: header, frames and end. `inputs` are oldest first.

    The headers of the inputs are checked at once, their pages while the pieces are iterated. Raises `LTXError`.
    """
    encoder = Encoder(compacted_header([item.header for item in inputs]))
    return _pieces(encoder, inputs)


def _pieces(encoder: Encoder, inputs: Sequence[FramesInput]) -> Iterator[bytes]:
    yield encoder.start()
    limits = _limits([item.header for item in inputs])
    streams = [_Stream(item.frames, limit) for item, limit in zip(inputs, limits, strict=True)]
    while True:
        for stream in streams:
            stream.fill()
        ready = [stream.batch[-1][0] for stream in streams if stream.batch]
        if not ready:
            break
        chosen: dict[Pgno, bytes] = {}
        for stream in streams:  # the last version of a page is kept
            chosen.update(stream.take(min(ready)))
        yield from encoder.frames([(pgno, chosen[pgno]) for pgno in sorted(chosen)])
    yield encoder.finish()


def _limits(headers: Sequence[ltx.Header]) -> list[int]:
    """For each file the highest page number that it and all later files keep."""
    limits = [header.commit for header in headers]
    for i in range(len(limits) - 2, -1, -1):
        limits[i] = min(limits[i], limits[i + 1])
    return limits


class _Stream:
    """The frames of one input up to page `limit`, in batches. After `fill`, `batch` is empty only at the end.

    The input is iterated to its end, so that it is checked completely.
    """

    def __init__(self, batches: Iterator[list[tuple[Pgno, bytes]]], limit: Pgno) -> None:
        self.batch: list[tuple[Pgno, bytes]] = []
        self._batches = batches
        self._limit = limit
        self._previous = 0

    def fill(self) -> None:
        """Get the next batch of frames if the current one is empty."""
        while not self.batch and (batch := next(self._batches, None)) is not None:
            if batch:
                if batch[0][0] <= self._previous:
                    raise LTXError(f"compaction input has page {batch[0][0]} after page {self._previous}")
                self._previous = batch[-1][0]
                self.batch = batch if self._previous <= self._limit else batch[: _count(batch, self._limit)]

    def take(self, last: Pgno) -> list[tuple[Pgno, bytes]]:
        """Remove and return the frames up to page `last`."""
        count = _count(self.batch, last)
        taken, self.batch = self.batch[:count], self.batch[count:]
        return taken


def _count(batch: Sequence[tuple[Pgno, bytes]], last: Pgno) -> int:
    """The number of frames up to page `last`."""
    return bisect_right(batch, last, key=itemgetter(0))
