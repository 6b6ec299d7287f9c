"""Changing a database file so that every client of SQLite sees the old or the new state, whatever happens meanwhile.

It is done as SQLite in rollback mode does it: lock the file exclusively; write the old pages into `<file>-journal` and
make it durable; change the file; make it durable; remove the journal, which is the commit. After a crash in between the
journal is *hot*, and the next client that opens the file, ours or any, puts the old pages back.

    journal   magic, records u32, nonce u32, pages of the old file u32, sector size u32, page size u32,
              zeroes up to the sector size; records: pgno u32, page, checksum u32; all big-endian
    checksum  the nonce and every 200th byte of the page from its end, added up

Locks are POSIX locks on bytes from 0x40000000 on. They belong to the process: it must not open the file in another way
while one is held. All functions block. Source: https://www.sqlite.org/fileformat2.html, os_unix.c.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from litereplica.errors import EnvironmentProblem, UsageError
from litereplica.file_access import FileAccess
from litereplica.file_io import fsync_directory, write_all
from litereplica.foreign_directory import open_regular
from litereplica.format.sqlite import PENDING_BYTE, page_offset
from litereplica.types import Pgno

JOURNAL_SUFFIX = "-journal"
LOCK_TIMEOUT_S = 5.0
"""How long readers are waited for: the longest that most of them read."""
LOCK_POLL_S = 0.005
SECTOR_SIZE = 512

_MAGIC = bytes.fromhex("d9d505f920a163d7")
_HEADER = struct.Struct(">8sIIIII")
_U32 = struct.Struct(">I")
_CHECKSUM_STEP = 200
_RESERVED_BYTE = PENDING_BYTE + 1
_SHARED_FIRST = PENDING_BYTE + 2
_SHARED_SIZE = 510


class DatabaseBusy(EnvironmentProblem):
    """Other clients did not let go of the database file in time."""


def change_database(
    path: Path,
    fd: int,
    *,
    page_size: int,
    old_pages: int,
    new_pages: int,
    pages: Iterable[tuple[Pgno, bytes]],
    written: list[Pgno],
) -> None:
    """Write `pages`, whose numbers are `written` (ascending), and make the file `new_pages` long, all or nothing.

    `fd` is the file's, open for reading and writing, and locked by `exclusive_lock`; before that, `roll_back`
    was called.
    """
    journal = Path(f"{path}{JOURNAL_SUFFIX}")
    kept = [pgno for pgno in written if pgno <= min(old_pages, new_pages)]
    kept += range(new_pages + 1, old_pages + 1)
    _write_journal(journal, fd, kept, page_size=page_size, old_pages=old_pages)
    for pgno, page in pages:
        write_all(fd, page, page_offset(pgno, page_size))
    os.ftruncate(fd, new_pages * page_size)
    os.fsync(fd)
    journal.unlink()
    fsync_directory(path.parent)


@contextmanager
def exclusive_lock(path: Path, fd: int) -> Iterator[None]:
    """Keep all other clients out. Raises `DatabaseBusy` when they do not leave in time."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    try:
        for start, length in ((_RESERVED_BYTE, 1), (PENDING_BYTE, 1), (_SHARED_FIRST, _SHARED_SIZE)):
            _lock(path, fd, start, length, deadline)
        yield
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN, 2 + _SHARED_SIZE, PENDING_BYTE)


def roll_back(path: Path) -> None:
    """Let SQLite put the old pages back, if a change was interrupted. Raises `UsageError` when it cannot."""
    if not os.path.lexists(f"{path}{JOURNAL_SUFFIX}"):
        return
    import apsw

    try:
        connection = apsw.Connection(str(path), apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_timeout(int(LOCK_TIMEOUT_S * 1000))
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        finally:
            connection.close()
    except apsw.Error as exc:
        raise UsageError(f"SQLite cannot open {path}: {exc}", hint="add --force to restore it anew") from exc


def _write_journal(path: Path, fd: int, pgnos: list[Pgno], *, page_size: int, old_pages: int) -> None:
    nonce = secrets.randbits(32)
    database = os.fstat(fd)
    # beside its header, and complete only then: nobody takes a part of it for a journal
    header = _HEADER.pack(_MAGIC, len(pgnos), nonce, old_pages, SECTOR_SIZE, page_size)
    with os.fdopen(
        open_regular(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), "r+b"
    ) as journal:  # one that is there is not hot: `roll_back` came before
        os.fchmod(journal.fileno(), stat.S_IMODE(database.st_mode) & 0o666)  # for whoever has to roll back
        FileAccess.of(database).grant(journal.fileno())
        journal.write(bytes(SECTOR_SIZE))
        for pgno in pgnos:
            page = os.pread(fd, page_size, page_offset(pgno, page_size))
            checksum = (nonce + sum(page[page_size - _CHECKSUM_STEP : 0 : -_CHECKSUM_STEP])) & 0xFFFFFFFF
            journal.write(_U32.pack(pgno) + page + _U32.pack(checksum))
        journal.flush()
        os.fsync(journal.fileno())
        os.pwrite(journal.fileno(), header, 0)
        os.fsync(journal.fileno())
    fsync_directory(path.parent)


def _lock(path: Path, fd: int, start: int, length: int, deadline: float) -> None:
    while True:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            return
        if time.monotonic() > deadline:
            raise DatabaseBusy(f"{path} is in use", hint="end the transactions of its readers")
        time.sleep(LOCK_POLL_S)
