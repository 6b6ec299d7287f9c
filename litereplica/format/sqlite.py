"""The SQLite database file: page sizes, the 100-byte header, the lock page.

Source: https://www.sqlite.org/fileformat2.html
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from litereplica.errors import SQLiteFormatError
from litereplica.types import Pgno

HEADER_SIZE = 100
MAGIC = b"SQLite format 3\x00"
MIN_PAGE_SIZE = 512
MAX_PAGE_SIZE = 65536
PENDING_BYTE = 0x40000000
"""Offset of the bytes that SQLite locks; the page that holds it is never used."""

_VERSIONS = slice(18, 20)
_ROLLBACK, _WAL = 1, 2


def is_page_size(size: int) -> bool:
    """True if SQLite can have pages of this size: a power of two from 512 to 65536."""
    return MIN_PAGE_SIZE <= size <= MAX_PAGE_SIZE and size & (size - 1) == 0


def lock_pgno(page_size: int) -> Pgno:
    """The number of the lock page, which no LTX file contains and which is read as zeros."""
    return PENDING_BYTE // page_size + 1


def page_offset(pgno: Pgno, page_size: int) -> int:
    """Byte offset of a page in the database file."""
    return (pgno - 1) * page_size


@dataclass(frozen=True, slots=True)
class DatabaseHeader:
    """The fields of the first 100 bytes of a database that litereplica uses. `page_count` is 0 if it is not valid."""

    page_size: int
    wal: bool
    change_counter: int
    page_count: int

    @classmethod
    def decode(cls, data: bytes) -> DatabaseHeader:
        """Decode the first page, or at least its first 100 bytes. Raises `SQLiteFormatError`."""
        if len(data) < HEADER_SIZE:
            raise SQLiteFormatError(f"database header has {len(data)} bytes, expected {HEADER_SIZE}")
        if data[:16] != MAGIC:
            raise SQLiteFormatError("file is not a SQLite database (its first 16 bytes differ)")
        stored_size, write_version, read_version = struct.unpack_from(">HBB", data, 16)
        page_size = MAX_PAGE_SIZE if stored_size == 1 else stored_size
        if not is_page_size(page_size):
            raise SQLiteFormatError(f"database header has page size {page_size}")
        if write_version not in (_ROLLBACK, _WAL) or read_version not in (_ROLLBACK, _WAL):
            raise SQLiteFormatError(
                f"database header has format versions {write_version}, {read_version}, expected 1 or 2"
            )
        change_counter, page_count = struct.unpack_from(">II", data, 24)
        (valid_for,) = struct.unpack_from(">I", data, 92)
        return cls(
            page_size=page_size,
            wal=write_version == _WAL,
            change_counter=change_counter,
            page_count=page_count if change_counter == valid_for else 0,
        )


def with_journal_mode(page1: bytes, *, wal: bool) -> bytes:
    """Page 1 with its format versions set to WAL or rollback mode."""
    version = _WAL if wal else _ROLLBACK
    return page1[: _VERSIONS.start] + bytes((version, version)) + page1[_VERSIONS.stop :]
