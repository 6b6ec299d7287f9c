"""The files of a cache directory: `format`, `pages` and `slots`, as `disk_pages.py` describes them.

They are opened without following links, and only if nobody else may write to them.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import EnvironmentProblem
from litereplica.file_access import make_directories
from litereplica.format import checksum
from litereplica.replica.page_key import PageKey
from litereplica.replica.slot_index import SlotIndex, key_hashes

log = logging.getLogger(__name__)

RECORD: np.dtype[np.void] = np.dtype([("checksum", "<u8"), ("digest", "<u8"), ("pgno", "<u4"), ("zero", "<u4")])

_RECORD = struct.Struct("<QQII")
"""The same, for a single one."""

_DISK_FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
"""Errors that are not the user's mistake: pages are then served without this tier."""


@dataclass(frozen=True, slots=True)
class CacheFiles:
    """Descriptors of the three files."""

    format: int
    pages: int
    slots: int


def record_of(key: PageKey, page: bytes | bytearray | memoryview, hashed: int) -> bytes:
    """Return the record of a page; `hashed` is the `key_hash` of its key."""
    return _RECORD.pack(key >> 32, checksum.update(None, page) ^ hashed, key & 0xFFFFFFFF, 0)


def write_all(fd: int, parts: list[bytes], offset: int) -> None:
    """Write all parts, one after the other. Raises `OSError`."""
    wanted = sum(map(len, parts))
    if os.pwritev(fd, parts, offset) != wanted:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_cache_files(
    directory: Path, stack: ExitStack, capacity: int, page_size: int
) -> tuple[CacheFiles, SlotIndex] | None:
    """Open the files, which `stack` closes, and index their pages; None, with a WARNING, if they cannot be used now.

    Blocks. Raises `EnvironmentProblem` if others may write to them.
    """
    try:
        files = _open_files(directory, stack)
        fcntl.flock(files.format, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return files, _load(files, capacity, page_size)
    except BlockingIOError:
        log.warning("%s: another mount uses this cache directory; no pages are kept on disk", directory)
    except OSError as exc:
        if exc.errno not in _DISK_FAILS:
            raise EnvironmentProblem(
                f"the cache directory {directory} cannot be used ({exc.strerror})", hint="name another with --cache-dir"
            ) from exc
        log.warning("%s: no pages are kept on disk: %s", directory, exc.strerror)
    return None


def _open_files(directory: Path, stack: ExitStack) -> CacheFiles:
    make_directories(directory)
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    stack.callback(os.close, top)
    _require_private(directory, os.fstat(top))
    fds = []
    for name in ("format", "pages", "slots"):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(name, flags, 0o600, dir_fd=top)
        stack.callback(os.close, fd)
        _require_private(directory / name, os.fstat(fd))
        fds.append(fd)
    return CacheFiles(*fds)


def _require_private(path: Path, found: os.stat_result) -> None:
    """Raise `EnvironmentProblem` unless only this user can change the file."""
    kind = stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)
    if not kind or found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EnvironmentProblem(
            f"{path} is not private: others own it, may write to it, or have a link to it",
            hint="name a directory of your own with --cache-dir",
        )


def _load(files: CacheFiles, capacity: int, page_size: int) -> SlotIndex:
    """Return the index of the files' pages. Files of another format are emptied."""
    expected = b"litereplica page cache 1, %d bytes a page\n" % page_size
    if os.pread(files.format, len(expected) + 1, 0) != expected:
        for fd in (files.slots, files.pages, files.format):
            os.ftruncate(fd, 0)
        write_all(files.format, [expected], 0)
    for fd, width in ((files.slots, RECORD.itemsize), (files.pages, page_size)):
        if os.fstat(fd).st_size > capacity * width:
            os.ftruncate(fd, capacity * width)
    return SlotIndex(hashes_of(read_records(files), capacity))


def read_records(files: CacheFiles) -> NDArray[np.void]:
    """Return the RECORD of each slot."""
    data = os.pread(files.slots, os.fstat(files.slots).st_size, 0)
    return np.frombuffer(data, RECORD, count=len(data) // RECORD.itemsize)


def hashes_of(records: NDArray[np.void], capacity: int) -> NDArray[np.uint64]:
    """Return the `key_hash` of the page in each of `capacity` slots, 0 for none."""
    used = np.flatnonzero(records["checksum"])
    hashes = np.zeros(capacity, np.uint64)
    hashes[used] = key_hashes(records["checksum"][used].astype(np.uint64), records["pgno"][used].astype(np.uint32))
    return hashes
