"""Answers a READ of a database file from pages that are at hand."""

from __future__ import annotations

from collections.abc import Callable

from litereplica.format.sqlite import with_journal_mode
from litereplica.replica.page_map import PageMap
from litereplica.types import Pgno

AtHand = Callable[[Pgno, Pgno, PageMap], bytearray | None]
"""Returns consecutive pages of a map one after the other, if that takes no waiting; else None."""


def read_now(at_hand: AtHand, pages: PageMap, offset: int, size: int, *, wal: bool) -> bytes | bytearray | None:
    """Return exactly `size` bytes of the database of a map, zeroes beyond its end; None if that takes waiting.

    `wal` is the journal mode that page 1 shows.
    """
    page_size = pages.page_size
    first, last = offset // page_size + 1, min((offset + size - 1) // page_size + 1, pages.commit)
    found = at_hand(first, last, pages) if first <= last else None
    if found is None:
        return None
    if first == 1:
        found[:page_size] = with_journal_mode(bytes(found[:page_size]), wal=wal)
    start = offset - (first - 1) * page_size
    return found if start == 0 and len(found) == size else bytes(found[start : start + size]).ljust(size, b"\0")
