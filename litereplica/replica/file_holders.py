"""The objects that hold locations: page maps, virtual WALs and plans, whose files must stay in the file table.

Each holder registers itself when it is made, and counts for as long as it is referenced. Nobody keeps a list of holders
by hand, so none can be left out of it.
"""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import ref

import numpy as np
from numpy.typing import NDArray

FIRST_CLEANING = 64
"""References kept before dead ones are dropped; after that, at twice the number of living ones."""


class FileHolder(Protocol):
    """Something that has locations in it."""

    def files(self) -> NDArray[np.uint32]:
        """Ids of the files that its locations name, ascending."""


class FileHolders:
    """The living holders of one file table. Maps are made in worker threads, too: may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refs: list[ref[FileHolder]] = []
        self._clean_at = FIRST_CLEANING

    def add(self, holder: FileHolder) -> None:
        """Count `holder` as long as somebody else references it."""
        with self._lock:
            self._refs.append(ref(holder))
            if len(self._refs) >= self._clean_at:
                self._refs = [each for each in self._refs if each() is not None]
                self._clean_at = max(FIRST_CLEANING, 2 * len(self._refs))

    def files(self) -> set[int]:
        """Ids of the files that any holder names."""
        with self._lock:
            holders = [holder for each in self._refs if (holder := each()) is not None]
        return {file_id for holder in holders for file_id in holder.files().tolist()}


class HeldFiles:
    """Files of which no map has been made yet."""

    def __init__(self, file_ids: list[int], holders: FileHolders) -> None:
        self._file_ids = np.array(sorted(file_ids), np.uint32)
        holders.add(self)

    def files(self) -> NDArray[np.uint32]:
        """Return the ids, ascending."""
        return self._file_ids
