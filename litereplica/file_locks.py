"""Byte-range locks of the WAL protocol: taking them through a descriptor of our own, and finding those of others.

Those that are taken are open-file-description locks: they conflict with POSIX locks, also with those that SQLite takes
in this process, and they go with the descriptor. FUSE without lock handlers leaves locking to the kernel, so none of
these calls makes a request to a mount.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")


class OFDLocks:
    """Locks on an open descriptor, which the caller closes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def try_exclusive(self, start: int, length: int = 1) -> bool:
        """Take an exclusive lock; False when someone else holds any part of it."""
        return self._set(fcntl.F_WRLCK, start, length)

    def try_shared(self, start: int, length: int = 1) -> bool:
        """Take a shared lock; False when someone else holds any part of it exclusively."""
        return self._set(fcntl.F_RDLCK, start, length)

    def unlock(self, start: int, length: int = 1) -> None:
        """Release the locks of `length` bytes from `start` on."""
        self._set(fcntl.F_UNLCK, start, length)

    def _set(self, kind: int, start: int, length: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True


def lock_holder(fd: int, offset: int) -> int | None:
    """The process that holds a POSIX lock on a byte of an open file; None if no other process does.

    The number is 0 for a process that is not visible here, such as one outside of a container.
    """
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    kind, *_, process = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, wanted))
    return None if kind == fcntl.F_UNLCK else process
