"""Limits on what an LTX file may claim. All readers apply them before they reserve memory for a claim.

Anybody who can write to the bucket chooses a file's header, the size of its index and that of the object. But a page
takes at least `MIN_BYTES_PER_PAGE` bytes in a file, so the files limit the number of pages, and a reader keeps some
bytes for each page, so the memory of this machine limits it, too. A file that exceeds a limit is damaged, like one with
a wrong checksum: it is avoided, reported by its key, and the previous state is served.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from litereplica.errors import FormatError
from litereplica.format import ltx
from litereplica.memory import memory_bytes
from litereplica.types import Pgno

MIN_FRAME_SIZE = ltx.FRAME_HEADER_SIZE + 1
MIN_BYTES_PER_PAGE = MIN_FRAME_SIZE + 3
"""The least bytes that a page takes in a file, as frame and index entry."""

MEMORY_PER_PAGE = 64
"""Bytes that a reader needs for each page at most: its location in an index and in the map, and as much again while an
index is decoded. A machine with 16 GiB can so handle databases of 1 TiB with pages of 4 KiB."""

USUAL_INDEX_ENTRY_SIZE = 15
"""Bytes of an index entry at most, for a database of 2³² pages in a file of 500 TB."""


def pages_in_memory() -> int:
    """Return how many pages a database may have for this machine."""
    return memory_bytes() // MEMORY_PER_PAGE


def most_pages(file_bytes: int) -> int:
    """Return how many pages a database may have that is made of files with these bytes in total."""
    return min(file_bytes // MIN_BYTES_PER_PAGE, pages_in_memory())


def require_commit(header: ltx.Header, limit: int) -> None:
    """Raise `FormatError` if a file claims a database of more than `limit` pages."""
    if header.commit > limit:
        raise FormatError(f"header claims a database of {header.commit} pages, more than the files can hold")


def require_index_size(size: int, header: ltx.Header, *, file_size: int) -> None:
    """Raise `FormatError` if a page index claims more bytes than the frames of its file can have entries."""
    frames = file_size - ltx.HEADER_SIZE - size - ltx.TAIL_SIZE
    entries = min(header.commit, frames // MIN_FRAME_SIZE)
    handled = most_pages(file_size) * USUAL_INDEX_ENTRY_SIZE
    if size > min(entries * ltx.MAX_INDEX_ENTRY_SIZE, handled) + 1:
        raise FormatError(f"page index claims {size} bytes for a database of {header.commit} pages")


def require_growth(header: ltx.Header, index: ltx.PageIndex, *, commit: int) -> None:
    """Raise `FormatError` unless a file has all pages by which it makes a database of `commit` pages grow.

    Writers always supply them. So the size of a database follows the pages that files have, not what they claim.
    """
    claimed, lock_page = header.commit, header.lock_pgno
    new = index.pgno[np.searchsorted(index.pgno, commit, side="right") :]
    if len(new) >= claimed - commit - (commit < lock_page <= claimed):
        return
    missing = _first_missing(new.tolist(), commit + 1, lock_page)
    raise FormatError(f"it makes the database grow from {commit} to {claimed} pages, and page {missing} is in no file")


def _first_missing(pgnos: Iterable[Pgno], pgno: Pgno, lock_page: Pgno) -> Pgno:
    """Return the first page from `pgno` on that is not in `pgnos` (ascending); the lock page is in no file."""
    for found in pgnos:
        pgno += pgno == lock_page
        if found != pgno:
            return pgno
        pgno += 1
    return pgno + (pgno == lock_page)
