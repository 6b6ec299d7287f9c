"""A database put together from LTX files, newest file first, so that each page is written once.

A page's content is that of the newest file that has it. Pages above the commit of a newer file were dropped on the
way, and are not taken. A page counts as final only when the file that it came from has been read to its end and was
right: what a damaged or vanished file leaves behind is written over by an older file that has the page, or the
database is not complete.

Another plan for the same TXID goes on where the last one stopped: the files read so far hold every change behind some
TXID, and however the other plan cuts the history, what its files have to add lies before that.

All methods block; one thread at a time calls them. Memory: a byte a page, and the pages of one piece of a file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from litereplica.errors import FormatError
from litereplica.format import ltx
from litereplica.format.decoder import Decoder
from litereplica.format.sqlite import lock_pgno, page_offset
from litereplica.ltxstore.store import check_name
from litereplica.types import TXID, FileInfo, Pgno

FEED_BYTES = 64 * 1024
"""A page takes a 250th of its size in a file at best: 16 MB of pages from one such piece."""

MIN_BYTES_PER_PAGE = ltx.FRAME_HEADER_SIZE + 1 + 3
"""What a page takes in a file, frame and index entry: files of so many bytes hold no larger database."""


@dataclass(slots=True, eq=False)
class _Reading:
    """The file that is being read. `runs` are the pages written from it: (first, count)."""

    info: FileInfo
    decoder: Decoder = field(default_factory=Decoder)
    begun: bool = False
    runs: list[tuple[Pgno, int]] = field(default_factory=list)


class Assembly:
    """The database in the file `fd`.

    For each plan `begin`; then, newest first, for each file that is `unread`: `open_file`, `feed` all its bytes,
    `close_file`; until `is_complete`. At last `finish`.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.page_size = 0
        self.commit = 0
        self._txid: TXID = 0
        self._most_pages = 0
        self._read: set[FileInfo] = set()  # to their ends
        self._reading: _Reading | None = None
        self._final = bytearray()  # by pgno
        self._missing = 0  # pages that are not final
        self._limit = 0  # the smallest commit of the files read

    @property
    def size(self) -> int:
        """Bytes of the database."""
        return self.commit * self.page_size

    @property
    def is_complete(self) -> bool:
        """Is every page final?"""
        return bool(self._read) and self._missing == 0

    def begin(self, plan: Sequence[FileInfo]) -> None:
        """Take up a plan, the first or another one."""
        if plan[-1].max_txid != self._txid:
            self._txid = plan[-1].max_txid
            self._read.clear()
            os.ftruncate(self._fd, 0)
        self._most_pages = sum(info.size for info in plan) // MIN_BYTES_PER_PAGE

    def unread(self, info: FileInfo) -> bool:
        """Has this file still to be read?"""
        return info not in self._read

    def open_file(self, info: FileInfo) -> None:
        """The bytes of this file follow."""
        self._reading = _Reading(info)

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the file, best `FEED_BYTES`. Raises `FormatError`; `OSError` when it cannot write."""
        reading = self._reading
        assert reading is not None
        pages = reading.decoder.feed(data)
        if not reading.begun and reading.decoder.header is not None:
            reading.begun = True
            self._begin_file(reading.info, reading.decoder.header)
        self._write_wanted(pages, reading.runs)

    def close_file(self) -> None:
        """The file has ended: check it; its pages are final. Raises `FormatError`."""
        reading, self._reading = self._reading, None
        assert reading is not None
        header = reading.decoder.finish().header
        for first, count in reading.runs:
            self._final[first : first + count] = b"\1" * count
            self._missing -= count
        self._limit = min(self._limit, header.commit)
        self._read.add(reading.info)

    def first_missing(self) -> Pgno | None:
        """The first page that is not final."""
        if self.is_complete:
            return None
        lock = lock_pgno(self.page_size)
        return next(pgno for pgno in range(1, self.commit + 1) if not self._final[pgno] and pgno != lock)

    def finish(self) -> None:
        """Cut the file to the database's size. The lock page, which no file has, reads as zeroes."""
        os.ftruncate(self._fd, self.size)
        lock = lock_pgno(self.page_size)
        if lock <= self.commit:  # a damaged file may have written there
            _write_all(self._fd, bytes(self.page_size), page_offset(lock, self.page_size))

    def _begin_file(self, info: FileInfo, header: ltx.Header) -> None:
        check_name(info, header)
        if header.commit > self._most_pages:
            raise FormatError(f"header claims a database of {header.commit} pages, more than the files can hold")
        if not self._read:
            self.page_size, self.commit = header.page_size, header.commit
            self._final = bytearray(header.commit + 1)
            self._missing = header.snapshot_page_count
            self._limit = header.commit
        elif header.page_size != self.page_size:
            raise FormatError(f"page size is {header.page_size}, that of newer files {self.page_size}")

    def _write_wanted(self, pages: Sequence[tuple[Pgno, bytes]], runs: list[tuple[Pgno, int]]) -> None:
        """Write the pages that no newer file has, contiguous ones at once."""
        run: list[bytes] = []
        first = 0
        for pgno, page in pages:
            if pgno > self._limit or self._final[pgno]:
                continue
            if pgno != first + len(run):
                self._write_run(first, run, runs)
                first, run = pgno, []
            run.append(page)
        self._write_run(first, run, runs)

    def _write_run(self, first: Pgno, run: list[bytes], runs: list[tuple[Pgno, int]]) -> None:
        if run:
            _write_all(self._fd, b"".join(run), page_offset(first, self.page_size))
            runs.append((first, len(run)))


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
