"""Opens database files so that the POSIX locks of this process on them are kept.

Closing *any* descriptor of a file drops the locks that the process has on it. So a file is claimed by its (device,
inode) while it is open, and is opened once only; `looks_like_database` does not open a file that is claimed.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from litereplica.errors import AlreadyReplicated, EnvironmentProblem, SQLiteFormatError, UsageError
from litereplica.format.sqlite import HEADER_SIZE, MAGIC, DatabaseHeader


def looks_like_database(path: Path) -> bool:
    """True if a file begins with SQLite's magic string, or if this process has it open. Blocks. Raises `OSError`."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size < HEADER_SIZE:
        return False
    key = (status.st_dev, status.st_ino)
    if not _files.claim(key):
        return True
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(fd, len(MAGIC), 0) == MAGIC
        finally:
            _close(fd, key)
    finally:
        _files.release(key)


class _Files:
    """The files, as (device, inode), that this process has open: opening one again and closing it drops the locks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claimed: set[tuple[int, int]] = set()

    def claim(self, key: tuple[int, int]) -> bool:
        """Claim a file. False if it is claimed already."""
        with self._lock:
            if key in self._claimed:
                return False
            self._claimed.add(key)
            return True

    def release(self, key: tuple[int, int]) -> None:
        """End the claim, after the file is closed."""
        with self._lock:
            self._claimed.discard(key)


_files = _Files()


def open_file(path: Path) -> tuple[int, tuple[int, int]]:
    """Return a descriptor of a file that may be a database, and its claim. Releases both on an error."""
    try:
        status = path.stat()
        claimed = (status.st_dev, status.st_ino)
        if not _files.claim(claimed):
            raise AlreadyReplicated(f"{path} is being replicated by this process", hint="replicate it once")
        try:
            return _open_claimed(path, claimed), claimed
        except BaseException:
            _files.release(claimed)
            raise
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", hint="name an existing SQLite database") from None
    except OSError as exc:
        raise EnvironmentProblem(f"cannot open {path}: {exc.strerror}", hint="check its permissions") from exc


def _open_claimed(path: Path, claimed: tuple[int, int]) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if _key(fd) != claimed:
            raise EnvironmentProblem(f"{path} was replaced while it was opened", hint="try again")
        _check_file(path, fd)
    except BaseException:
        _close(fd, claimed)
        raise
    return fd


def _close(fd: int, claimed: tuple[int, int]) -> None:
    """Close a descriptor opened for the claimed file. One of another file that is open is leaked, to keep its locks."""
    key = _key(fd)
    if key == claimed:
        os.close(fd)
    elif _files.claim(key):
        os.close(fd)
        _files.release(key)


def _key(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _check_file(path: Path, fd: int) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a directory", hint="name the database file in it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a regular file", hint="name a SQLite database")
    head = os.pread(fd, HEADER_SIZE, 0)
    if not head:
        raise UsageError(f"{path} is empty", hint="create a table in it first")
    try:
        DatabaseHeader.decode(head)
    except SQLiteFormatError as exc:
        raise UsageError(f"{path} is not a SQLite database: {exc.message}", hint="name a SQLite database") from exc


def close_file(fd: int, claimed: tuple[int, int]) -> None:
    """Close what `open_file` has returned, and end its claim. The locks of this process on the file are dropped."""
    os.close(fd)
    _files.release(claimed)
