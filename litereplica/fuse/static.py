"""A past state as one file: a database in rollback mode that never changes.

Without `-wal` and `-shm` clients take it as it is, `cp` copies a valid database, and the kernel keeps its pages for as
long as it likes. Page 1 says rollback mode where the live file says WAL; every other byte is the primary's.
"""

from __future__ import annotations

import errno
import logging

import pyfuse3

from litereplica.errors import DamagedFile, FileVanished, ReplicaError
from litereplica.format.sqlite import with_journal_mode
from litereplica.fuse.read_now import read_now
from litereplica.replica.past_snapshots import PastDatabase

log = logging.getLogger(__name__)


class StaticFile:
    """The file of one past state."""

    def __init__(self, past: PastDatabase) -> None:
        self.past = past
        self._has_failed = False

    @property
    def size(self) -> int:
        """Bytes: commit × page size."""
        return self.past.snapshot.commit * self.past.snapshot.page_size

    @property
    def mtime_ns(self) -> int:
        """Time of the transaction that the state ends with, in nanoseconds since the epoch."""
        return self.past.identity.timestamp_ms * 1_000_000

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        """Answer a READ if that takes no waiting; else None."""
        return read_now(self.past.read_now, self.past.snapshot.pages, offset, size, wal=False)

    async def read(self, offset: int, size: int) -> bytes:
        """Answer a READ: exactly `size` bytes, zeroes beyond the end.

        Raises EIO for pages that no file in the store has any more (logged once), and the store's errors.
        """
        page_size = self.past.snapshot.page_size
        first = offset // page_size + 1
        last = min((offset + size - 1) // page_size + 1, self.past.snapshot.commit)
        if first > last:
            return bytes(size)
        try:
            pages = await self.past.read(first, last)
        except (ReplicaError, FileVanished, DamagedFile) as exc:
            if not self._has_failed:
                log.error("TXID %016x cannot be read any more: %s", self.past.snapshot.pos.txid, exc)
            self._has_failed = True
            raise pyfuse3.FUSEError(errno.EIO) from exc
        self._has_failed = False
        if first == 1:
            pages[0] = with_journal_mode(pages[0], wal=False)
        start = offset - (first - 1) * page_size
        return b"".join(pages)[start : start + size].ljust(size, b"\0")
