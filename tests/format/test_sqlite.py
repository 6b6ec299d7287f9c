"""The database header, as real databases have it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from litereplica.errors import SQLiteFormatError
from litereplica.format.sqlite import DatabaseHeader, is_page_size, page_offset, with_journal_mode
from tests.format.builders import PAGE_SIZES


def real_database(directory: Path, page_size: int, pragmas: str = "") -> bytes:
    script = f"PRAGMA page_size={page_size}; {pragmas}; CREATE TABLE t(a); INSERT INTO t VALUES (1)"
    subprocess.run(["sqlite3", "app.db", script], cwd=directory, check=True, capture_output=True)
    return (directory / "app.db").read_bytes()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_header_of_a_real_database(page_size: int, tmp_path: Path) -> None:
    data = real_database(tmp_path, page_size)
    header = DatabaseHeader.decode(data)
    assert (header.page_size, header.page_count) == (page_size, 2)
    assert not header.wal
    assert page_offset(2, page_size) == page_size


def test_header_tells_wal_mode(tmp_path: Path) -> None:
    header = DatabaseHeader.decode(real_database(tmp_path, 4096, "PRAGMA journal_mode=WAL"))
    assert header.wal


def test_page_count_is_unknown_when_an_old_writer_left_it_behind(tmp_path: Path) -> None:
    data = bytearray(real_database(tmp_path, 4096))
    data[24] += 1
    assert DatabaseHeader.decode(bytes(data)).page_count == 0


def test_journal_mode_is_set_both_ways_and_nothing_else_changes(tmp_path: Path) -> None:
    page1 = real_database(tmp_path, 512)[:512]
    in_wal = with_journal_mode(page1, wal=True)
    assert DatabaseHeader.decode(in_wal).wal
    assert [i for i in range(512) if in_wal[i] != page1[i]] == [18, 19]
    assert with_journal_mode(in_wal, wal=False) == page1


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"s", "not a SQLite database"),
        (15, b"\1", "not a SQLite database"),
        (16, b"\0\0", "page size 0"),
        (16, b"\3\0", "page size 768"),
        (16, b"\1\0", "page size 256"),
        (18, b"\0", "format versions 0"),
        (19, b"\3", "format versions 1, 3"),
    ],
)
def test_other_headers_are_refused(offset: int, value: bytes, message: str, tmp_path: Path) -> None:
    data = bytearray(real_database(tmp_path, 512))
    data[offset : offset + len(value)] = value
    with pytest.raises(SQLiteFormatError, match=message):
        DatabaseHeader.decode(bytes(data))


@pytest.mark.parametrize("size", [0, 15, 16, 99])
def test_short_headers_are_refused(size: int) -> None:
    with pytest.raises(SQLiteFormatError, match=f"has {size} bytes, expected 100"):
        DatabaseHeader.decode(bytes(size))


def test_page_sizes_are_the_powers_of_two_from_512_to_65536() -> None:
    assert [size for size in range(-1, 70_000) if is_page_size(size)] == PAGE_SIZES
