"""How this process gives memory back.

glibc keeps what is freed for later: it raises the size from which on memory is mapped by itself to that of the largest
index that was ever decoded, and every decoding thread has a heap of its own. A mount lives for weeks and should not
be as large as it was at its largest. Other C libraries have no such settings, and need none.
"""

from __future__ import annotations

import ctypes
import gc

MAPPED_SIZE = 1 << 20
"""Bytes from which on memory goes back to the system as soon as it is freed: indexes, and the larger blocks."""

HEAPS = 2
"""One for the event loop, one for all other threads: they take turns anyway."""

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8


def tune_allocator() -> None:
    """To be called once, before there are threads."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_SIZE)
        mallopt(_M_ARENA_MAX, HEAPS)


def give_back() -> None:
    """Free what is not referenced any more, and return it to the system. Takes some ten milliseconds.

    Tasks that have ended leave cycles of exceptions, frames and nurseries, which the collector would find much later.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
