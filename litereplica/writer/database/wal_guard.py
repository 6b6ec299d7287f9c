"""Keeps a WAL from being restarted without reading it, by a lock of its own on the wal-index.

A WAL is restarted under exclusive locks of READ(1) to READ(4). A shared lock of one of these, whose read mark is not in
use, prevents that; as no mark belongs to it, everything in the WAL may be copied into the database file. Nobody else
can begin to use the mark meanwhile, since that takes an exclusive lock.

The lock belongs to an open file description (F_OFD_SETLK), not to the process: what SQLite locks and unlocks in this
process does not affect it, and it conflicts with SQLite's locks like that of another process.
"""

from __future__ import annotations

import os
import struct

from litereplica.file_locks import OFDLocks
from litereplica.format.walindex import CHECKPOINT_INFO, LOCK_READ, MARK_NOT_USED, READ_MARKS

_MARKS = struct.Struct(f"={1 + READ_MARKS}I")
"""The number of copied frames, then the read marks."""


class WalGuard:
    """The guard of one WAL: `open` it, then `take` and `release` it. All methods block."""

    def __init__(self) -> None:
        self.is_held = False
        self._fd = -1
        self._slot = 0

    def open(self, fd: int) -> None:
        """Use this descriptor of the `-shm`, which stays the caller's."""
        self._fd = fd

    def take(self) -> bool:
        """Keep the WAL. False if all read marks are in use, or the file system has no such locks."""
        for slot in reversed(range(1, READ_MARKS)):
            if self._is_unused(slot) and self._lock(slot):
                self._slot, self.is_held = slot, True
                if self._is_unused(slot):
                    return True
                self.release()
        return False

    def release(self) -> None:
        """End it, if it is held."""
        if self.is_held:
            OFDLocks(self._fd).unlock(LOCK_READ + self._slot)
            self.is_held = False

    def _lock(self, slot: int) -> bool:
        try:
            return OFDLocks(self._fd).try_shared(LOCK_READ + slot)
        except OSError:  # the file system has no such locks
            return False

    def _is_unused(self, slot: int) -> bool:
        if self._fd < 0:
            return False
        data = os.pread(self._fd, _MARKS.size, CHECKPOINT_INFO)
        return len(data) == _MARKS.size and _MARKS.unpack(data)[1 + slot] == MARK_NOT_USED
