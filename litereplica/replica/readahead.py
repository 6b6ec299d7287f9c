"""The read-ahead policy. Pure: pages in, advice out, no I/O and no clock of its own.

A random read also fetches its page's neighbourhood, as many bytes as arrive within one round trip: that takes at most
twice as long, and often saves a request. Consecutive reads form a stream: pages ahead of it are fetched early, twice as
many each time, until several large requests are under way. Reads that skip a few pages belong to the stream, because
the pages in between may be in the kernel's cache.

Up to `STREAMS` streams are tracked. A stream ends when it is idle or when newer ones displace it, and its requests are
abandoned.
"""

from __future__ import annotations

from dataclasses import dataclass

from litereplica.replica.throughput_model import ThroughputModel
from litereplica.types import Pgno

MIN_WINDOW = 128 * 1024
"""Bytes that a cold page brings along at least: to wake up all who take part takes longer than their transfer."""

MAX_WINDOW = 512 * 1024
"""Bytes that a cold page brings along at most: a page that is read alone should not pay for a megabyte."""

FIRST_AHEAD = 512 * 1024
"""Bytes that are fetched ahead of the second read of a stream; doubled with every step from there."""

MIN_AHEAD_LIMIT, MAX_AHEAD_LIMIT = 2 * 1024 * 1024, 16 * 1024 * 1024
"""Bounds of the bytes ahead of one stream. The upper one is half of the pages in memory."""

ROUND_TRIPS_AHEAD = 16
"""Bytes ahead, as a multiple of those that arrive in one round trip: `PARALLEL` requests of four round trips each."""

PARALLEL = 4
"""Requests for the pages ahead of one stream."""

MIN_REQUEST, MAX_REQUEST = 256 * 1024, 4 * 1024 * 1024
"""Bounds of the bytes of one request."""

STREAMS = 8
"""Streams that are followed at the same time: a join of a few tables by a few clients."""

SKIP = 64
"""Pages that a stream may skip: inner pages of the tree, another table's."""

IDLE_S = 2.0
"""A stream without a read for this time has ended. The kernel's own read-ahead lasts less long."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to fetch for one read.

    `window`: bytes of neighbours that a missing page brings along. `ahead`: pages to fetch without waiting for them, in
    requests of at most `request` bytes. `over`: streams that have ended, whose requests are to be abandoned.
    """

    stream: int
    window: int
    ahead: range
    request: int
    over: tuple[int, ...]


@dataclass(slots=True)
class _Stream:
    """Reads from `first` on have come in order, and up to `last`; pages below `end` have been fetched or advised."""

    number: int
    first: Pgno
    last: Pgno
    end: Pgno
    ahead: int
    seen_at: float


class ReadAhead:
    """The streams of one database with pages of `page_size` bytes, numbered from `first_stream` up."""

    def __init__(self, page_size: int, *, first_stream: int = 1) -> None:
        self._page_size = page_size
        self._streams: list[_Stream] = []  # the one read last comes last
        self._next_number = first_stream

    def read(self, first: Pgno, last: Pgno, *, commit: int, now: float, link: ThroughputModel) -> Advice:
        """Return the advice for a read of the pages first..last of `commit`, at time `now` (seconds)."""
        window = int(min(MAX_WINDOW, max(MIN_WINDOW, link.bytes_in_latency)))
        over = self._drop_idle(now)
        stream = next((each for each in reversed(self._streams) if self._follows(each, first, last)), None)
        if stream is None:
            stream = _Stream(self._next_number, first, last, last + 1 + self._pages(window) // 2, 0, now)
            self._next_number += 1
            self._streams.append(stream)
            over += [each.number for each in self._streams[:-STREAMS]]
            del self._streams[:-STREAMS]
            return Advice(stream.number, window, range(0), 0, tuple(over))
        self._streams.remove(stream)
        self._streams.append(stream)
        stream.seen_at = now
        if last <= stream.last:
            return Advice(stream.number, window, range(0), 0, tuple(over))
        stream.last = last
        ahead, request = self._go_on(stream, commit, link)
        return Advice(stream.number, window, ahead, request, tuple(over))

    def _go_on(self, stream: _Stream, commit: int, link: ThroughputModel) -> tuple[range, int]:
        """Return the next pages ahead, once a quarter of the wanted ones is missing, and the bytes of one request."""
        limit = min(MAX_AHEAD_LIMIT, max(MIN_AHEAD_LIMIT, ROUND_TRIPS_AHEAD * link.bytes_in_latency))
        wanted = int(min(limit, max(FIRST_AHEAD, 2 * stream.ahead)))
        start = max(stream.end, stream.last + 1)
        stop = min(commit, stream.last + self._pages(wanted)) + 1
        if start >= stop or 4 * (start - stream.last - 1) > 3 * self._pages(wanted):
            return range(0), 0
        stream.ahead = wanted
        stream.end = stop
        return range(start, stop), min(MAX_REQUEST, max(MIN_REQUEST, wanted // PARALLEL))

    def _follows(self, stream: _Stream, first: Pgno, last: Pgno) -> bool:
        return stream.first <= first and last >= stream.last - SKIP and first <= stream.end + SKIP

    def _drop_idle(self, now: float) -> list[int]:
        over = [each.number for each in self._streams if now - each.seen_at > IDLE_S]
        self._streams = [each for each in self._streams if now - each.seen_at <= IDLE_S]
        return over

    def _pages(self, size: int) -> int:
        return max(1, size // self._page_size)
