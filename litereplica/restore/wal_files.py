"""A database that is written from a copy of its file and from whole WAL files, one after the other.

Only frames that are valid and committed are applied, as a checkpoint of SQLite does, but no SQLite opens the file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from litereplica.errors import DamagedFile, FormatError
from litereplica.file_io import write_all
from litereplica.format import wal
from litereplica.format.sqlite import HEADER_SIZE, DatabaseHeader, page_offset

FRAMES_BYTES = 4 << 20
"""Bytes of a WAL file that are checked or applied at a time."""

HINT = "restore an earlier state with --timestamp"


class DatabaseFromWAL:
    """Writes a database to a file descriptor: its content, then the committed pages of one WAL file after the other.

    `size` is the database's in bytes, `page_size` 0 before it is known, `wal_size` that of the present WAL file. The
    methods block.
    """

    def __init__(self) -> None:
        self.size = self.page_size = self.wal_size = 0
        self._fd = -1
        self._head = b""
        self._wal = tempfile.TemporaryFile(prefix="litereplica-")  # noqa: SIM115 - closed by `close`

    def begin(self, fd: int) -> None:
        """Begin to write to `fd`, which stays the caller's."""
        self._fd = fd

    def add_to_database(self, data: bytes) -> None:
        """Append to the database."""
        self._head += data[: HEADER_SIZE - len(self._head)]
        write_all(self._fd, data, self.size)
        self.size += len(data)

    def begin_wal(self) -> None:
        """Forget the WAL file before."""
        self._wal.seek(0)
        self._wal.truncate()
        self.wal_size = 0

    def add_to_wal(self, data: bytes) -> None:
        """Append to the WAL file."""
        self._wal.write(data)
        self.wal_size += len(data)

    def apply_wal(self, key: str) -> int:
        """Apply the committed frames of the WAL file, as a checkpoint does; returns the bytes that are not valid.

        Raises `DamagedFile` for `key` if its header is damaged, its pages are not of the database's size, or it claims
        more pages than there can be.
        """
        self._wal.seek(0)
        try:
            header = wal.WALHeader.decode(self._wal.read(wal.HEADER_SIZE))
            if self._head:
                self.page_size = DatabaseHeader.decode(self._head).page_size
        except FormatError as exc:
            raise DamagedFile(key, exc.message, hint=HINT) from exc
        if self.page_size not in (0, header.page_size):
            raise DamagedFile(key, f"the WAL has pages of {header.page_size} bytes, the database of {self.page_size}")
        self.page_size = header.page_size
        valid = committed = commit = 0
        state = header.checksum
        for data in self._frames(header, 0):
            run = wal.scan_frames(data, header=header, previous=state)
            if run.committed:
                committed, commit = valid + run.committed, int(run.commit[run.committed - 1])
            valid += len(run)
            if len(run) * header.frame_size < len(data):
                break
            state = run.checksum_after(len(run))
        limit = self.size // header.page_size + committed + 1  # each page was there, or is in a frame; the lock page
        if commit > limit:
            raise DamagedFile(key, f"the WAL claims {commit} pages for a database of at most {limit}", hint=HINT)
        self._copy(header, committed, commit)
        return self.wal_size - wal.HEADER_SIZE - valid * header.frame_size

    def finish(self, key: str) -> None:
        """Check that this is a database. Raises `DamagedFile` for `key` if it is not."""
        head = os.pread(self._fd, HEADER_SIZE, 0)
        try:
            self.page_size = DatabaseHeader.decode(head).page_size
        except FormatError as exc:
            raise DamagedFile(key, exc.message, hint=HINT) from exc
        if self.size % self.page_size:
            raise DamagedFile(key, f"the database has {self.size} bytes, not whole pages of {self.page_size}")

    def close(self) -> None:
        """Remove the WAL file."""
        self._wal.close()

    def _frames(self, header: wal.WALHeader, first: int) -> Iterator[bytes]:
        """The whole frames of the WAL file from `first` on, some at a time."""
        self._wal.seek(header.frame_offset(first))
        step = max(1, FRAMES_BYTES // header.frame_size) * header.frame_size
        while data := self._wal.read(step):
            yield data[: len(data) - len(data) % header.frame_size]

    def _copy(self, header: wal.WALHeader, frames: int, commit: int) -> None:
        """Copy the pages of the first `frames` frames to the database, which has `commit` pages then."""
        number = 0
        for data in self._frames(header, 0):
            for start in range(0, len(data), header.frame_size):
                if number == frames:
                    break
                number += 1
                pgno = int.from_bytes(data[start : start + 4])
                if pgno <= commit:
                    page = data[start + wal.FRAME_HEADER_SIZE : start + header.frame_size]
                    write_all(self._fd, page, page_offset(pgno, header.page_size))
        if frames:
            self.size = commit * header.page_size
            os.ftruncate(self._fd, self.size)
