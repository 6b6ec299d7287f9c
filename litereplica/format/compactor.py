"""Compaction: several contiguous LTX files become the one file that has the effect of all, in their order.

The result is what a reader has after applying the inputs one by one. If several inputs have a page, the last one
counts. A page is dropped when it lies above the commit of its own file or of a later one: the database was cut there,
and whoever let it grow again supplied the page anew. Commit and timestamp are the last input's; the WAL fields are 0,
since no one WAL holds the result. The node id, with us the lineage of the files, is the inputs' if it is one, else 0.

Frames go into the result as they are: nothing is compressed again. Works on streams: memory is one batch of frames an
input, and 8 bytes a page of the result. Inputs bring their own checks (`Decoder`); the result goes through `Encoder`,
which refuses an incomplete snapshot. Storage, names and levels are the caller's.
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
    """One file: its header, and its frames as `Decoder.feed_frames` has them, in lists of any length, taken once."""

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
    """The compacted file in pieces, header, frames and end; `inputs` oldest first.

    The inputs' headers are checked at once, their pages as the pieces are taken. Raises `LTXError`.
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
        for stream in streams:  # of a page that several have, the last one stays
            chosen.update(stream.take(min(ready)))
        yield from encoder.frames([(pgno, chosen[pgno]) for pgno in sorted(chosen)])
    yield encoder.finish()


def _limits(headers: Sequence[ltx.Header]) -> list[int]:
    """For each file the last page that survives it and all later ones."""
    limits = [header.commit for header in headers]
    for i in range(len(limits) - 2, -1, -1):
        limits[i] = min(limits[i], limits[i + 1])
    return limits


class _Stream:
    """The frames of one input, up to page `limit`, a batch at a time; empty at the end, and only there.

    The input is taken to its end, so that the check there is made.
    """

    def __init__(self, batches: Iterator[list[tuple[Pgno, bytes]]], limit: Pgno) -> None:
        self.batch: list[tuple[Pgno, bytes]] = []
        self._batches = batches
        self._limit = limit
        self._previous = 0

    def fill(self) -> None:
        """Take the next batch of frames if none is left."""
        while not self.batch and (batch := next(self._batches, None)) is not None:
            if batch:
                if batch[0][0] <= self._previous:
                    raise LTXError(f"compaction input has page {batch[0][0]} behind page {self._previous}")
                self._previous = batch[-1][0]
                self.batch = batch if self._previous <= self._limit else batch[: _count(batch, self._limit)]

    def take(self, last: Pgno) -> list[tuple[Pgno, bytes]]:
        """The frames up to a page."""
        count = _count(self.batch, last)
        taken, self.batch = self.batch[:count], self.batch[count:]
        return taken


def _count(batch: Sequence[tuple[Pgno, bytes]], last: Pgno) -> int:
    """How many of the frames are of pages up to this one."""
    return bisect_right(batch, last, key=itemgetter(0))
