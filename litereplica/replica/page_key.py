"""The name under which a page is cached: the content that it comes from, not the place.

Equal keys mean equal bytes whatever happens to the names in the store, even when a replica is made anew and uses the
same TXIDs for other bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from litereplica.types import Pgno

PageKey: TypeAlias = int
"""File checksum (64 bits) and pgno (32 bits) in one number, which takes half the memory of a pair."""


def page_key(file_checksum: int, pgno: Pgno) -> PageKey:
    """The key of a page of the LTX file with this checksum."""
    return file_checksum << 32 | pgno


Translation: TypeAlias = Callable[[NDArray[np.uint64], NDArray[np.uint32]], NDArray[np.uint64]]
"""(file checksums, pgnos) of cached pages → the file checksums under which the same pages are to be known."""
