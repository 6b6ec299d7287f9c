"""Follows a WAL: reads committed frames as they are appended, and detects restarts of the log.

A WAL is a sequence of *generations*: a restart begins the log again at its first byte, with new salts, and overwrites
the frames of the previous generation. `WalFollower` follows one generation: frames 0 ≤ f < `position` are published;
frames `position` ≤ f < `committed` are committed, and `batch` selects from them. The header shows a restart. The
follower continues with the new generation only if no frame of the old one can have been missed (`seal`); otherwise, and
if the file contradicts what was read, `look` returns `WalChange.LOST`, and its owner must compare the database again.

Frames are checked by salts and cumulative checksum, up to the last commit frame. Frames of a transaction that is not
committed yet may follow (*ahead*). Usually the next frames continue their checksums, and they are not read again. But
SQLite may rewrite one of them in place, with all checksums after it, and after a rollback the next transaction
overwrites them. So if the file has changed and no frame continues them, they are read again from the last commit on.
Only for this is the file's mtime used, and only if it is older than a clock tick.

`look` costs three small reads of the file. Memory: 8 bytes a frame. The descriptor is that of the `-wal` file, on which
SQLite takes no locks. Not thread-safe.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import WALError
from litereplica.format.sqlite import lock_pgno
from litereplica.format.wal import FRAME_HEADER_SIZE, HEADER_SIZE, Checksum, WALFrames, WALHeader, scan_frames
from litereplica.types import Pgno

SCAN_BYTES = 2 << 20
"""Bytes read at a time while scanning."""

MTIME_GRANULARITY_NS = 50_000_000
"""Two writes within a clock tick (up to 10 ms) leave the same mtime; an older mtime changes with any write."""

FROM_DATABASE = -1
"""The frame of a page in a batch that is in no frame, and is read from the database file."""


class WalChange(Enum):
    """What `look` has found."""

    NONE = "none"
    FRAMES = "frames"  # there may be new frames: `scan` reads them
    LOST = "lost"  # frames may have been missed


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Pages to publish together: those of the frames `first` ≤ f < `end`, of which the last is a commit frame.

    `pgno` is ascending; `frame` is the newest frame of each page, or FROM_DATABASE. `commit` is the database's size in
    pages.
    """

    first: int
    end: int
    commit: int
    pgno: NDArray[np.uint32]
    frame: NDArray[np.int64]


class WalFollower:
    """Follows the WAL at `path`: `reopen` it when the file exists, then `attach`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: WALHeader | None = None
        self.position = 0
        self._fd = -1
        self._head = b""  # the header of the generation, as bytes
        self._sealed_at: int | None = None
        self._backfilled = 0
        self._commit_at_position = 0  # size of the database in pages after the frames before `position`
        self._published: list[NDArray[np.uint32]] = []  # page numbers of the frames before `position`
        self._pgno = np.empty(0, np.uint32)  # of the frames from `position` on
        self._commit = np.empty(0, np.uint32)
        self._committed_checksum: Checksum = (0, 0)
        self._ahead: list[WALFrames] = []  # frames of a transaction that is not committed yet
        self._end = 0  # number of frames read, committed or not
        self._end_checksum: Checksum = (0, 0)
        self._stuck = b""  # header of the frame at `_end` if it has our salts, but a wrong checksum
        self._quiet_mtime_ns = -1  # the file's mtime when `_ahead` and `_stuck` were read; -1 if it was too recent

    def reopen(self) -> None:
        """Open the file, which must exist. Closes the one that was open."""
        self.close()
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def committed(self) -> int:
        """Number of frames known to be committed, including published ones."""
        return self.position + len(self._pgno)

    @property
    def waiting_transactions(self) -> int:
        """Transactions known to be committed that are not published."""
        return int(np.count_nonzero(self._commit))

    def attach(self) -> None:
        """Begin to follow the file's present generation at its first frame, and scan it."""
        head = os.pread(self._fd, HEADER_SIZE, 0)
        try:
            self._begin(head, WALHeader.decode(head))
        except WALError:
            self._begin(head, None)
        self.scan()

    def seal(self, at: int | None) -> None:
        """Record that the WAL may be restarted without loss once `at` frames are published; None: that it may not."""
        self._sealed_at = at

    def note_backfilled(self, frames: int) -> None:
        """Record that readers take the pages of the first `frames` frames from the database file."""
        self._backfilled = frames

    @property
    def is_sealed(self) -> bool:
        """True if everything in the generation is published and in the database file."""
        return self._sealed_at is not None and self._sealed_at == self.position == self.committed

    def look(self) -> WalChange:
        """Check for changes, cheaply. Begins to follow a new generation if the WAL was restarted without loss."""
        head = os.pread(self._fd, HEADER_SIZE, 0)
        if head != self._head:
            change = self._look_at_header(head)
            if change is not None:
                return change
        header = self.header
        if header is None:
            return WalChange.NONE
        if self._end and not self._ends_as_read():
            if self.is_sealed and not self.is_intact():
                return self.look()  # restarted since its header was read above
            self._forget_ahead()
            return WalChange.FRAMES if self._end == 0 or self._ends_as_read() else WalChange.LOST
        at = self._frame_header(self._end)
        if _has_salts(at, header) and at != self._stuck:
            return WalChange.FRAMES
        unsure = (self._ahead or self._stuck) and self._mtime_ns() != self._quiet_mtime_ns
        return WalChange.FRAMES if unsure else WalChange.NONE

    def scan(self) -> None:
        """Read all valid frames after those already read."""
        if self.header is None:
            return
        mtime_ns, now_ns = self._mtime_ns(), time.time_ns()
        start = self._end
        while (at := self._frame_header(self._end)) and self._scan_chunk(self.header):
            pass
        fits = _has_salts(at, self.header)
        if self._ahead and self._end == start and (not fits or at == self._stuck):
            self._forget_ahead()
            while (at := self._frame_header(self._end)) and self._scan_chunk(self.header):
                pass
            fits = _has_salts(at, self.header)
        self._stuck = at if fits else b""
        self._quiet_mtime_ns = mtime_ns if now_ns - mtime_ns > MTIME_GRANULARITY_NS else -1

    def batch(self, *, max_bytes: int, previous_commit: int) -> Batch | None:
        """The next pages to publish: those of as many transactions as fit into `max_bytes` of WAL, at least of one.

        `previous_commit` is the size of the published database in pages: all pages added since are in the batch,
        whether or not the WAL contains them. Returns None if no frame is unpublished.
        """
        header = self.header
        if header is None or not len(self._pgno):
            return None
        ends = np.flatnonzero(self._commit) + 1
        fitting = ends[ends <= max_bytes // header.frame_size]
        count = int(fitting[-1] if len(fitting) else ends[0])
        commit = int(self._commit[count - 1])
        pgno, frame = _newest(self._pgno[:count], self.position)
        pgno, frame = _inside(pgno, frame, commit, header.page_size)
        grown = np.setdiff1d(np.arange(previous_commit + 1, commit + 1, dtype=np.uint32), pgno)
        grown = grown[grown != lock_pgno(header.page_size)]
        if len(grown):
            pgno = np.concatenate((pgno, grown))
            frame = np.concatenate((frame, self._earlier(grown)))
            order = np.argsort(pgno)
            pgno, frame = pgno[order], frame[order]
        return Batch(self.position, self.position + count, commit, pgno, frame)

    def whole(self, *, page_size: int, commit: int | None = None) -> Batch:
        """All pages of the database as of the last committed frame, from where SQLite reads them.

        If `commit` is given, the database file alone contains that state, with this number of pages; no frame is used.
        """
        if commit is not None:
            return self._view(np.empty(0, np.uint32), commit, page_size)
        commit = int(self._commit[-1]) if len(self._commit) else self._commit_at_position
        return self._view(self._pages_of_frames(), commit, page_size)

    def published(self, *, page_size: int, commit: int) -> Batch:
        """All pages of the database as of the frames before `position`. `commit` is its size if there is none."""
        commit = self._commit_at_position if self.position else commit
        return self._view(self._pages_of_frames()[: self.position], commit, page_size)

    @property
    def is_in_database(self) -> bool:
        """True if everything that is published is in the database file."""
        return self._sealed_at is not None and self._sealed_at == self.position

    def _view(self, frames_of: NDArray[np.uint32], commit: int, page_size: int) -> Batch:
        pgno, frame = _inside(*_newest(frames_of, 0), commit, page_size)
        pgno, frame = pgno[frame >= self._backfilled], frame[frame >= self._backfilled]
        source = np.full(commit + 1, FROM_DATABASE, np.int64)
        source[pgno] = frame
        pages = np.arange(1, commit + 1, dtype=np.uint32)
        pages, source = _inside(pages, source[1:], commit, page_size)
        return Batch(0, self.committed, commit, pages, source)

    def advance(self, end: int) -> None:
        """Record that the frames before `end` are published."""
        count = end - self.position
        if count:
            self._commit_at_position = int(self._commit[count - 1])
        self._published.append(self._pgno[:count])
        self._pgno, self._commit = self._pgno[count:], self._commit[count:]
        self.position = end

    def commit_at(self, end: int) -> int:
        """The database's size in pages if frame `end - 1` is an unpublished commit frame, else 0."""
        index = end - self.position - 1
        return int(self._commit[index]) if 0 <= index < len(self._commit) else 0

    def pgno_at(self, frame: int) -> Pgno:
        """Page number of a committed frame."""
        return int(self._pages_of_frames()[frame] if frame < self.position else self._pgno[frame - self.position])

    def waiting_pages(self, end: int, *, commit: int) -> Iterator[tuple[Pgno, int]]:
        """Yield (page number, its newest frame) of the unpublished frames before `end`, up to page `commit`."""
        assert self.header is not None
        newest = _newest(self._pgno[: end - self.position], self.position)
        pgno, frame = _inside(*newest, commit, self.header.page_size)
        return zip(pgno.tolist(), frame.tolist(), strict=True)

    def settled_pages(self, count: int, *, backfilled: int, commit: int) -> NDArray[np.uint32]:
        """Return pages that the database file must have as they were published: the newest, and some all over the file.

        There are at most 1.5 × `count`. `backfilled` is the number of frames in the file by SQLite's count, `commit`
        the size of what is published.
        """
        frames_of = self._pages_of_frames()
        settled = min(self.position, backfilled)
        if len(self._commit):
            commit = min(commit, int(self._commit[-1]))
        spread = np.unique(np.linspace(min(1, commit), commit, min(count, commit)).astype(np.uint32))
        newest = frames_of[max(0, settled - count // 2) : settled]
        pages = np.setdiff1d(np.union1d(newest, spread), frames_of[settled:])
        return pages[pages <= commit]

    def frame_at(self, offset: int) -> int:
        """The frame that contains an offset of the file."""
        return (offset - HEADER_SIZE) // self.frame_size

    def read_page(self, frame: int) -> bytes:
        """The page in a frame. Valid only if `is_intact` is True afterwards."""
        assert self.header is not None
        page_size = self.header.page_size
        offset = HEADER_SIZE + frame * (FRAME_HEADER_SIZE + page_size) + FRAME_HEADER_SIZE
        return os.pread(self._fd, page_size, offset)

    def is_intact(self) -> bool:
        """True if the file still has the generation that we follow: a restart writes the header before any frame."""
        return os.pread(self._fd, HEADER_SIZE, 0) == self._head

    def is_in_place(self) -> bool:
        """True if the open file is still the one under its name."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except OSError:
            return False

    def sync(self) -> None:
        """Sync the file to disk, so that the next checkpoint need not do it."""
        os.fdatasync(self._fd)

    @property
    def frame_size(self) -> int:
        """Size of a frame in bytes; 0 if the file has no valid header."""
        return self.header.frame_size if self.header is not None else 0

    @property
    def file_size(self) -> int:
        """Size of the `-wal` file in bytes."""
        return os.fstat(self._fd).st_size

    def _begin(self, head: bytes, header: WALHeader | None) -> None:
        self._head, self.header = head, header
        self.position = 0
        self._sealed_at = None
        self._backfilled = self._commit_at_position = 0
        self._published = []
        self._pgno = self._commit = np.empty(0, np.uint32)
        self._committed_checksum = header.checksum if header else (0, 0)
        self._forget_ahead()

    def _look_at_header(self, head: bytes) -> WalChange | None:
        """Handle a changed header. Returns None if a new generation has begun without loss."""
        try:
            header = WALHeader.decode(head)
        except WALError:  # the file was truncated, or the header is being written
            return WalChange.NONE if self.is_sealed or self.header is None else WalChange.LOST
        if not self.is_sealed:
            return WalChange.LOST
        self._begin(head, header)
        return None

    def _ends_as_read(self) -> bool:
        """True if the last frame that we read still has its checksum."""
        stored = self._frame_header(self._end - 1)[16:24]
        return stored == b"".join(word.to_bytes(4, "big") for word in self._end_checksum)

    def _forget_ahead(self) -> None:
        self._ahead = []
        self._stuck = b""
        self._end, self._end_checksum = self.committed, self._committed_checksum

    def _scan_chunk(self, header: WALHeader) -> bool:
        """Read the valid frames of the next part of the file. Returns False if there are none."""
        size = max(1, SCAN_BYTES // header.frame_size) * header.frame_size
        data = os.pread(self._fd, size, header.frame_offset(self._end))
        frames = scan_frames(data, header=header, previous=self._end_checksum)
        if len(frames):
            self._take_frames(frames)
        return len(frames) > 0

    def _take_frames(self, frames: WALFrames) -> None:
        self._ahead.append(frames)
        self._end += len(frames)
        self._end_checksum = frames.checksum_after(len(frames))
        complete = frames.committed
        if complete == 0:
            return
        *before, last = self._ahead
        self._pgno = np.concatenate([self._pgno, *(run.pgno for run in before), last.pgno[:complete]])
        self._commit = np.concatenate([self._commit, *(run.commit for run in before), last.commit[:complete]])
        self._committed_checksum = frames.checksum_after(complete)
        ahead = WALFrames(last.pgno[complete:], last.commit[complete:], last.checksums[complete:])
        self._ahead = [ahead] if len(ahead) else []

    def _pages_of_frames(self) -> NDArray[np.uint32]:
        """Page numbers of all committed frames, in their order."""
        return np.concatenate([*self._published, self._pgno])

    def _frame_header(self, frame: int) -> bytes:
        assert self.header is not None
        return os.pread(self._fd, FRAME_HEADER_SIZE, self.header.frame_offset(frame))

    def _mtime_ns(self) -> int:
        return os.fstat(self._fd).st_mtime_ns

    def _earlier(self, pgnos: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Newest frame before `position` of each page, or FROM_DATABASE."""
        known, frame = _newest(self._pages_of_frames()[: self.position], 0)
        row = np.searchsorted(known, pgnos)
        found = np.zeros(len(pgnos), bool)
        inside = row < len(known)
        found[inside] = known[row[inside]] == pgnos[inside]
        result = np.full(len(pgnos), FROM_DATABASE, np.int64)
        result[found] = frame[row[found]]
        return result


def _has_salts(frame_header: bytes, header: WALHeader) -> bool:
    return frame_header[8:16] == header.salt1.to_bytes(4, "big") + header.salt2.to_bytes(4, "big")


def _newest(pgnos: NDArray[np.uint32], first: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """(distinct page numbers, ascending; the last frame of each). `pgnos` are those of the frames from `first` on."""
    pgno, from_end = np.unique(pgnos[::-1], return_index=True)
    return pgno, first + len(pgnos) - 1 - from_end.astype(np.int64)


def _inside(
    pgno: NDArray[np.uint32], frame: NDArray[np.int64], commit: int, page_size: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Remove pages beyond the database's end, and the lock page."""
    keep = (pgno <= commit) & (pgno != lock_pgno(page_size))
    return pgno[keep], frame[keep]
