"""Builds a database from LTX files, writing each page once.

A page's content is that of the newest file that has it. Pages above the commit of a newer file were truncated later and
are not taken. So files *claim* their pages from the newest to the oldest: by their indexes, or, if a file's index is
not known beforehand, all pages that are unclaimed. Claimed pages can then be read in any order.

A page is final when its source has been checked: for a file that is read whole, the checksum at its end; for parts of
one, each frame. Pages from a file that turns out to be damaged or vanishes are overwritten from another file, or the
database stays incomplete.

Another plan for the same TXID continues where the last one stopped. Claims end with a plan, final pages stay: whichever
files the other plan uses, a page at that TXID has one content.

All methods block; one thread at a time calls them. Memory: four bytes a page, and the pages of one piece of a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import FormatError
from litereplica.file_io import write_all
from litereplica.format import ltx
from litereplica.format.sqlite import lock_pgno, page_offset
from litereplica.ltxstore.limits import most_pages, require_commit
from litereplica.types import TXID, FileInfo, Pgno

_FINAL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """The pages that a file supplies: `rows` of its index."""

    number: int
    rows: NDArray[np.intp]


@dataclass(slots=True, eq=False)
class _Reading:
    """The file that is being read whole. `runs` are the pages written from it: (first, count)."""

    info: FileInfo
    claim: Claim | None
    number: int = 0
    runs: list[tuple[Pgno, int]] = field(default_factory=list)


class Assembly:
    """The database in the file that `open_file` opens (a descriptor) when the first plan begins.

    Without `open_file` nothing is written, and no page becomes final. `base_bytes` is the size of the database that the
    files are applied to, if they do not hold a whole one.

    For each plan `begin`; then for each file, newest first, `claim`, or `skip` if `is_done`. Then, in any order of
    the files, `write` and `settle` what they claimed, or `open_file`, `take` all its pages, `close_file`; a file that
    claimed nothing is read that way, too, but as the last one. Until `is_complete`; at last `finish`.
    """

    def __init__(self, open_file: Callable[[], int] | None, *, base_bytes: int = 0) -> None:
        self._open_file = open_file
        self._fd: int | None = None
        self._base_bytes = base_bytes
        self.page_size = 0
        self.commit = 0
        self._txid: TXID = 0
        self._most_pages = 0
        self._done: dict[FileInfo, int] = {}  # files all of whose pages are final; their commits
        self._node_ids: dict[FileInfo, int] = {}
        self._reading: _Reading | None = None
        self._owner: NDArray[np.uint32] = np.zeros(0, np.uint32)  # by pgno: the claim, 0 for none, or `_FINAL`
        self._missing = 0  # pages that are not final
        self._unclaimed = 0  # pages that are neither final nor claimed
        self._limit = 0  # the smallest commit of the files that have claimed
        self._claims = 0

    @property
    def size(self) -> int:
        """Bytes of the database."""
        return self.commit * self.page_size

    @property
    def is_complete(self) -> bool:
        """True if every page is final."""
        return self.commit > 0 and self._missing == 0

    @property
    def is_claimed(self) -> bool:
        """True if every page is claimed or final, so that older files are not needed."""
        return self.commit > 0 and self._unclaimed == 0

    def begin(self, plan: Sequence[FileInfo]) -> None:
        """Begin a plan, the first or another one."""
        if self._fd is None and self._open_file is not None:
            self._fd = self._open_file()
        if plan[-1].max_txid != self._txid:
            self._txid = plan[-1].max_txid
            self._done.clear()
            self.page_size = self.commit = 0
            if self._fd is not None:
                os.ftruncate(self._fd, 0)
        if not (self._owner == _FINAL).any():
            self.page_size = self.commit = 0  # known from a file that may have been damaged
            self._done.clear()
        self._owner[self._owner != _FINAL] = 0
        self._unclaimed = self._missing
        self._limit = self.commit
        self._claims = 0
        self._most_pages = most_pages(self._base_bytes + sum(info.size for info in plan))

    def is_done(self, info: FileInfo) -> bool:
        """True if nothing more has to be read of this file."""
        return info in self._done

    def skip(self, info: FileInfo) -> None:
        """Pass over a file that is done, in its turn."""
        self._limit = min(self._limit, self._done[info])

    def claim(self, info: FileInfo, header: ltx.Header, pgnos: NDArray[np.uint32]) -> Claim:
        """Claim for a file those of its pages (ascending) that are free. Raises `FormatError`."""
        number = self._enter(info, header)
        taken = pgnos[: np.searchsorted(pgnos, self._limit, side="right")]
        rows = np.flatnonzero(self._owner[taken] == 0)
        self._owner[taken[rows]] = number
        self._unclaimed -= len(rows)
        self._limit = min(self._limit, header.commit)
        return Claim(number, rows)

    def write(self, pgnos: Sequence[Pgno], pages: Sequence[bytes]) -> None:
        """Write pages, contiguous ones in one call. Raises `OSError`."""
        run: list[bytes] = []
        first = 0
        for pgno, page in zip(pgnos, pages, strict=True):
            if pgno != first + len(run):
                self._write_run(first, run)
                first, run = pgno, []
            run.append(page)
        self._write_run(first, run)

    def settle(self, pgnos: NDArray[np.uint32]) -> None:
        """Make these pages, which were claimed and written, final."""
        self._owner[pgnos] = _FINAL
        self._missing -= len(pgnos)

    def finish_file(self, info: FileInfo, header: ltx.Header) -> None:
        """Record that all pages which a file claimed are final."""
        self._done[info] = header.commit
        self._node_ids[info] = header.node_id

    def node_id(self, info: FileInfo) -> int:
        """Return the node id of a file that has been read; 0 if it has none, or was not read."""
        return self._node_ids.get(info, 0)

    def open_file(self, info: FileInfo, claim: Claim | None = None) -> None:
        """Begin a file that is read whole. Without a claim it claims all pages that are left."""
        self._reading = _Reading(info, claim)

    def take(self, header: ltx.Header, pages: Sequence[tuple[Pgno, bytes]]) -> None:
        """Write those of the file's next pages that it has claimed. Raises `FormatError`, `OSError`."""
        reading = self._reading
        assert reading is not None
        if not reading.number:
            reading.number = self._begin_file(reading, header)
        wanted = [each for each in pages if each[0] <= self.commit and self._owner[each[0]] == reading.number]
        for pgno, _ in wanted:
            if reading.runs and sum(reading.runs[-1]) == pgno:
                reading.runs[-1] = (reading.runs[-1][0], reading.runs[-1][1] + 1)
            else:
                reading.runs.append((pgno, 1))
        self.write([pgno for pgno, _ in wanted], [page for _, page in wanted])

    def close_file(self, header: ltx.Header) -> None:
        """End a file that has passed its checks, and make its pages final."""
        reading, self._reading = self._reading, None
        assert reading is not None
        for first, count in reading.runs:
            self.settle(np.arange(first, first + count, dtype=np.uint32))
        self.finish_file(reading.info, header)

    def final_pgnos(self) -> list[Pgno]:
        """Return the pages that are final, ascending."""
        pgnos: list[Pgno] = np.flatnonzero(self._owner == _FINAL).tolist()
        return pgnos

    def first_missing(self) -> Pgno | None:
        """Return the first page that is not final, or None."""
        if self.is_complete:
            return None
        lock = lock_pgno(self.page_size)
        return next(pgno for pgno in (np.flatnonzero(self._owner[1:] != _FINAL) + 1).tolist() if pgno != lock)

    def finish(self) -> None:
        """Truncate the file to the database's size, and make the lock page, which no LTX file has, zeroes."""
        assert self._fd is not None
        os.ftruncate(self._fd, self.size)
        lock = lock_pgno(self.page_size)
        if lock <= self.commit:  # a damaged file may have written there
            write_all(self._fd, bytes(self.page_size), page_offset(lock, self.page_size))

    def _begin_file(self, reading: _Reading, header: ltx.Header) -> int:
        if reading.claim is not None:
            return reading.claim.number
        number = self._enter(reading.info, header)
        left = self._owner[1 : self._limit + 1]
        left[left == 0] = number
        self._unclaimed = 0
        self._limit = min(self._limit, header.commit)
        return number

    def _enter(self, info: FileInfo, header: ltx.Header) -> int:
        """Return the number under which the next file claims pages."""
        require_commit(header, self._most_pages)
        if info.max_txid == self._txid:
            self._begin_database(header)
        elif header.page_size != self.page_size:
            raise FormatError(f"page size is {header.page_size}, that of newer files {self.page_size}")
        self._claims += 1
        return self._claims

    def _begin_database(self, header: ltx.Header) -> None:
        if not self.commit:
            self.page_size, self.commit = header.page_size, header.commit
            self._owner = np.zeros(header.commit + 1, np.uint32)
            self._missing = self._unclaimed = header.snapshot_page_count
            self._limit = header.commit
        elif (header.page_size, header.commit) != (self.page_size, self.commit):
            raise FormatError(
                f"database has {header.commit} pages of {header.page_size} bytes, in another file of this TXID "
                f"{self.commit} of {self.page_size}"
            )

    def _write_run(self, first: Pgno, run: Sequence[bytes]) -> None:
        if run and self._fd is not None:
            write_all(self._fd, b"".join(run), page_offset(first, self.page_size))


class PageSums(Assembly):
    """An assembly that keeps the checksum of each page instead of the page: `sums`, by page number, 0 for none."""

    def __init__(self, checksum: Callable[[bytes], int]) -> None:
        super().__init__(None)
        self.sums: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._checksum = checksum

    def write(self, pgnos: Sequence[Pgno], pages: Sequence[bytes]) -> None:
        """Take the checksums of pages."""
        if len(self.sums) != self.commit + 1:
            self.sums = np.zeros(self.commit + 1, np.uint64)
        self.sums[np.array(pgnos, np.int64)] = np.array([self._checksum(page) for page in pages], np.uint64)
