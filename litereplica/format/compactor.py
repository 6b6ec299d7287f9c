"""Compaction: several contiguous LTX files become the one file that has the effect of all, in their order.

The result is what a reader has after applying the inputs one by one. Of a page that several inputs have, the last one
counts. A page is dropped when it lies above the commit of its own file or of a later one: the database was cut there,
and whoever let it grow again supplied the page anew. Commit and timestamp are the last input's; the WAL fields are 0,
since no one WAL holds the result.

Works on streams: memory is one page an input, and 8 bytes a page of the result. Inputs bring their own checks
(`Decoder`); the result goes through `Encoder`, which refuses an incomplete snapshot. Storage, names and levels are the
caller's.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from litereplica.errors import LTXError
from litereplica.format import ltx
from litereplica.format.encoder import Encoder
from litereplica.types import Pgno


@dataclass(frozen=True, slots=True, eq=False)
class CompactionInput:
    """One file: its header, and its pages, ascending. The pages are taken once."""

    header: ltx.Header
    pages: Iterable[tuple[Pgno, bytes | memoryview]]


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
    return ltx.Header(
        page_size=last.page_size,
        commit=last.commit,
        min_txid=first.min_txid,
        max_txid=last.max_txid,
        timestamp_ms=last.timestamp_ms,
    )


def compact(inputs: Sequence[CompactionInput]) -> Iterator[bytes]:
    """The compacted file in pieces; `inputs` oldest first.

    The inputs' headers are checked at once, their pages as the pieces are taken. Raises `LTXError`.
    """
    encoder = Encoder(compacted_header([item.header for item in inputs]))
    return _pieces(encoder, inputs)


def _pieces(encoder: Encoder, inputs: Sequence[CompactionInput]) -> Iterator[bytes]:
    yield encoder.start()
    limits = _limits([item.header for item in inputs])
    streams = [_keyed(item, -order, limits[order]) for order, item in enumerate(inputs)]
    previous = 0
    for pgno, _, page in heapq.merge(*streams):
        if pgno != previous:
            yield encoder.page(pgno, page)
            previous = pgno
    yield encoder.finish()


def _limits(headers: Sequence[ltx.Header]) -> list[int]:
    """For each file the last page that survives it and all later ones."""
    limits = [header.commit for header in headers]
    for i in range(len(limits) - 2, -1, -1):
        limits[i] = min(limits[i], limits[i + 1])
    return limits


def _keyed(item: CompactionInput, rank: int, limit: Pgno) -> Iterator[tuple[Pgno, int, bytes | memoryview]]:
    """(pgno, rank, page) of the pages up to `limit`: among equal page numbers the latest input has the lowest rank.

    Takes the pages to their end, so that the check at the end of the input is made.
    """
    previous = 0
    for pgno, page in item.pages:
        if pgno <= previous:
            raise LTXError(f"compaction input has page {pgno} behind page {previous}")
        previous = pgno
        if pgno <= limit:
            yield pgno, rank, page
