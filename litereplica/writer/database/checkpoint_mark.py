"""When a database file is all of what was published, and when that is written down."""

from __future__ import annotations

import time

from litereplica.types import TXID
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.database.state_directory import CheckpointMark, StateDirectory
from litereplica.writer.database.wal_follower import MTIME_GRANULARITY_NS


class MarkWriter:
    """Of one database, published to `url`. Methods but `note` and `forget` block."""

    def __init__(self, state: StateDirectory, source: SQLiteDatabase, url: str) -> None:
        self._state = state
        self._source = source
        self._url = url
        self._due: TXID | None = None
        self._written: CheckpointMark | None = None

    @property
    def is_due(self) -> bool:
        """Is there something to be written down?"""
        return self._due is not None

    def note(self, txid: TXID) -> None:
        """All of this TXID is in the database file."""
        self._due = txid

    def forget(self) -> None:
        """The database file is about to change, or has."""
        self._due = None

    def write_if_certain(self) -> bool:
        """Write down that the database file is complete, once its ctime can no longer be that of a later write."""
        if self._due is None:
            return True
        identity = self._source.identity()
        if abs(time.time_ns() - identity.ctime_ns) < MTIME_GRANULARITY_NS:
            return False
        self.write(CheckpointMark(self._url, self._due, identity))
        return True

    def write(self, mark: CheckpointMark) -> None:
        """Write a mark down, unless it was."""
        self._due = None
        if mark == self._written and mark.wal == self._written.wal:
            return
        self._state.write_mark(mark)
        self._written = mark
