"""Local files: writing whole buffers, names that survive a loss of power, and locks of other processes."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at an offset of an open file; system calls may write less than they are given."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_byte(fd: int, offset: int, kind: int) -> bool:
    """Lock a byte for the open file description: `fcntl.F_RDLCK`, or F_UNLCK. Does not wait; False if it fails."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))
    except OSError:
        return False
    return True


def lock_holder(fd: int, offset: int) -> int | None:
    """The process that holds a POSIX lock on a byte of an open file; None if no other process does.

    The number is 0 for a process that is not visible here, such as one outside of a container.
    """
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    kind, *_, process = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, wanted))
    return None if kind == fcntl.F_UNLCK else process
