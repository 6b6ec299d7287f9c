"""The frames of the virtual WAL: which page each one holds, and where that page lies in the store.

Frames are counted from 1, as in the wal-index. The file has a 32-byte header and frames of 24 + page size bytes; the
former is one that recovery refuses (`wal.refused_header`), and of the latter only the page number is filled in, since
clients that see our locks read neither. Content is fetched when it is read, from the same files as the database's
pages. Holds no page and does no I/O.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litereplica.format import wal
from litereplica.replica.file_holders import FileHolders
from litereplica.replica.page_map import LOCATION
from litereplica.types import TXID, Pos

_INITIAL_FRAMES = 1024
MAX_PAGES = 2**32


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of a transaction in the WAL: its last frame, and the database's size (pages) and position there."""

    frame: int
    commit: int
    pos: Pos


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """Frames: the page, where it lies, and between which TXIDs it was changed, once or more: after < TXID ≤ upto.

    `shrinks`: before which row (counted from 0), to how many pages, and after which TXID the database became smaller.
    """

    pgnos: NDArray[np.uint32]
    locations: NDArray[np.void]
    after: NDArray[np.uint64]
    upto: NDArray[np.uint64]
    shrinks: list[tuple[int, int, TXID]]


class VirtualWal:
    """The frames since the last restart, or since `start_txid`.

    `size` (bytes) is what the file has reached: a restart does not shrink it.
    """

    def __init__(self, page_size: int, holders: FileHolders | None = None, *, start_txid: TXID = 0) -> None:
        self.page_size = page_size
        self._start_txid = start_txid
        self.frame_size = wal.FRAME_HEADER_SIZE + page_size
        self.header = wal.refused_header(page_size)
        self.size = self.offset(2)
        self.frames = 0
        self._commits: list[Commit] = []
        self._pgnos = np.empty(_INITIAL_FRAMES, np.uint32)
        self._locations = np.empty(_INITIAL_FRAMES, LOCATION)
        if holders is not None:
            holders.add(self)

    def append(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], *, commit: int, pos: Pos) -> int:
        """Add the frames of one transaction; returns the number of its first frame."""
        first, count = self.frames + 1, len(pgnos)
        if self.frames + count > len(self._pgnos):
            self._grow(self.frames + count)
        self._pgnos[self.frames : self.frames + count] = pgnos
        self._locations[self.frames : self.frames + count] = locations
        self.frames += count
        self.size = max(self.size, self.offset(self.frames + 1))
        self._commits.append(Commit(self.frames, commit, pos))
        return first

    def restart(self) -> None:
        """Forget all frames; the next one is number 1 again."""
        self.frames = 0
        if self._commits:
            self._start_txid = self._commits[-1].pos.txid
        self._commits.clear()

    def truncate(self) -> None:
        """Shrink the file to what its frames need."""
        self.size = self.offset(max(1, self.frames) + 1)

    def offset(self, frame: int) -> int:
        """Byte offset of a frame's header."""
        return wal.HEADER_SIZE + (frame - 1) * self.frame_size

    def frames_at(self, offset: int, size: int) -> tuple[int, NDArray[np.uint32], NDArray[np.void]]:
        """The frames that a range of bytes touches: (number of the first, page numbers, locations)."""
        first = max(0, (offset - wal.HEADER_SIZE) // self.frame_size)
        stop = min(self.frames, max(0, -(-(offset + size - wal.HEADER_SIZE) // self.frame_size)))
        first = min(first, stop)
        return first + 1, self._pgnos[first:stop].copy(), self._locations[first:stop].copy()

    def encode(self, pgno: int, page: bytes) -> bytes:
        """The bytes of one frame."""
        return pgno.to_bytes(4, "big") + bytes(wal.FRAME_HEADER_SIZE - 4) + page

    def commit_at(self, frame: int) -> Commit:
        """The commit whose last frame this is. A read mark is always one."""
        return self._commits[bisect_left(self._commits, frame, key=lambda commit: commit.frame)]

    def latest(self, *, after: int, upto: int) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
        """The newest version of each page among the frames after+1..upto: ascending page numbers, and locations."""
        pgnos = self._pgnos[after:upto]
        unique, last = np.unique(pgnos[::-1], return_index=True)
        return unique, self._locations[after:upto][len(pgnos) - 1 - last]

    def relocate(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> None:
        """Give the newest frame of each page another place where the same content lies; `pgnos` ascending."""
        unique, last = np.unique(self._pgnos[: self.frames][::-1], return_index=True)
        newest = self.frames - 1 - last
        row = np.minimum(np.searchsorted(pgnos, unique), max(0, len(pgnos) - 1))
        known = pgnos[row] == unique if len(pgnos) else np.zeros(len(unique), bool)
        self._locations[newest[known]] = locations[row[known]]

    def changes(self) -> Changes:
        """Return what the frames have changed, in order."""
        ends = [0, *(commit.frame for commit in self._commits)]
        txids = np.array([self._start_txid, *(commit.pos.txid for commit in self._commits)], np.uint64)
        after, upto = np.repeat(txids[:-1], np.diff(ends)), np.repeat(txids[1:], np.diff(ends))
        shrinks, begin, size, txid = [], 0, MAX_PAGES, self._start_txid
        for commit in self._commits:
            if commit.commit < size:
                shrinks.append((begin, commit.commit, txid))
            begin, size, txid = commit.frame, commit.commit, commit.pos.txid
        return Changes(self._pgnos[: self.frames], self._locations[: self.frames], after, upto, shrinks)

    def move_frames(self, rows: NDArray[np.intp], locations: NDArray[np.void]) -> None:
        """Give frames, counted from 0 here, another place where the same content lies."""
        self._locations[rows] = locations

    def files(self) -> NDArray[np.uint32]:
        """Ids of the files that frames lie in."""
        return np.unique(self._locations["file"][: self.frames])

    def _grow(self, frames: int) -> None:
        capacity = max(frames, 2 * len(self._pgnos))
        pgnos, locations = np.empty(capacity, np.uint32), np.empty(capacity, LOCATION)
        pgnos[: self.frames] = self._pgnos[: self.frames]
        locations[: self.frames] = self._locations[: self.frames]
        self._pgnos, self._locations = pgnos, locations
