"""The body of an answer to a GET, which may lack headers: no more of it is read than was requested."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import trio

from litereplica.storage.base import Blob, ByteRange, Range, Suffix
from litereplica.storage.ranges import resolve_range

READ_CHUNK_BYTES = 1 << 20
IGNORED_RANGE_LIMIT = 16 << 20
"""Maximum size that is read for a range from a store that ignores ranges, where larger objects cannot be read in
parts."""
UNANNOUNCED_LIMIT = 64 << 20
"""Maximum size of a body without Content-Length."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: Content-Length (None: not given), Content-Range and ETag (empty: not given).

    `read` returns up to so many bytes of the body as soon as there are some; none at its end.
    """

    length: int | None
    content_range: str
    etag: str
    read: Callable[[int], bytes]


def range_header(range: Range) -> str:
    """The Range header of a request."""
    return f"bytes={range.start}-{range.stop - 1}" if isinstance(range, ByteRange) else f"bytes=-{range.length}"


def read_blob(reply: Reply, range: Range | None, size_of_object: Callable[[], int]) -> tuple[Blob, int]:
    """Return an object or its part, and the number of bytes read, from within a thread of trio.

    `size_of_object` asks the store for the size if the answer does not give it. Raises `ConnectionError`,
    `TimeoutError` or `ValueError` if the answer does not match the request; the connection has bytes left then.
    """
    part = _parse_content_range(reply.content_range)
    size: int | None
    if part is None:
        size = reply.length
        limit = _whole_limit(range, size)
    else:
        start, stop, size = part
        limit = stop - start
        if isinstance(range, ByteRange) and (start, stop <= range.stop) != (range.start, True):
            raise ValueError(f"the answer has bytes {start} to {stop - 1}, requested were {range_header(range)}")
        if isinstance(range, Suffix) and limit > range.length:
            raise ValueError(f"the answer has {limit} bytes, requested were the last {range.length}")
    data, received = _read(reply.read, limit)
    if size is None:
        size = len(data) if part is None else size_of_object()
    if part is None:
        data = data[resolve_range(range, size)]
    return Blob(data=data, size=size, etag=reply.etag), received


def _parse_content_range(text: str) -> tuple[int, int, int | None] | None:
    """(start, stop, size) of a `Content-Range` header, with size None for `*`; None if there is no header."""
    if not text:
        return None
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"the answer has the Content-Range {text[:100]!r}")
    start, last, size = match.groups()
    return int(start), int(last) + 1, None if size == "*" else int(size)


def _whole_limit(range: Range | None, length: int | None) -> int | None:
    """The number of bytes to read of an answer that has the whole object; None: all of them."""
    if range is None or length is None:
        return length
    limit = min(range.stop, length) if isinstance(range, ByteRange) else length
    if limit > IGNORED_RANGE_LIMIT:
        raise ValueError("the store ignores the Range header, and the object is large")
    return limit


def _read(read: Callable[[int], bytes], limit: int | None) -> tuple[bytes, int]:
    """Read the first `limit` bytes of a body (None: all). Stops on cancellation; `PacedResponse` limits the time."""
    parts: list[bytes] = []
    received = 0
    while (limit is None or received < limit) and (part := read(READ_CHUNK_BYTES)):
        parts.append(part)
        received += len(part)
        trio.from_thread.check_cancelled()
        if limit is None and received > UNANNOUNCED_LIMIT:
            raise ValueError(f"the answer has no length, and more than {UNANNOUNCED_LIMIT} bytes")
    if limit is not None and received < limit:
        raise ConnectionError(f"the answer ended after {received} of {limit} bytes")
    return b"".join(parts)[:limit], received
