"""Byte-range locks of the WAL protocol, as the daemon takes them through its own descriptor on its own mount.

They are open-file-description locks: they conflict with the POSIX locks of clients, and they go with the descriptor.
FUSE without lock handlers leaves locking to the kernel, so none of these calls makes a request.
"""

from __future__ import annotations

import errno
import fcntl
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
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, start, length, 0))
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True
