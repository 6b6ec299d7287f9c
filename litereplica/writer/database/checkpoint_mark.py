"""Writes the checkpoint mark, which says that the database file alone contains a TXID: no WAL frame is needed."""

from __future__ import annotations

from litereplica.types import TXID
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.database.state_directory import CheckpointMark, StateDirectory


class MarkWriter:
    """Writes the mark of one database, whose replica is at `url`. `write` and `write_if_certain` block."""

    def __init__(self, state: StateDirectory, database: SQLiteDatabase, url: str) -> None:
        self._state = state
        self._database = database
        self._url = url
        self._due: TXID | None = None
        self._written: CheckpointMark | None = None

    @property
    def is_due(self) -> bool:
        """True if a mark must be written."""
        return self._due is not None

    def note(self, txid: TXID) -> None:
        """Request a mark: the database file alone contains this TXID."""
        self._due = txid

    def forget(self) -> None:
        """Cancel the request: the database file has changed or is about to."""
        self._due = None

    def write_if_certain(self) -> bool:
        """Write the requested mark if nothing is in doubt, and any later write to the database file will show.

        Returns True if no mark is due any more.
        """
        if self._due is None:
            return True
        identity = self._database.certain_identity()
        if identity is None:
            return False
        self.write(CheckpointMark(self._url, self._due, identity))
        return True

    def write(self, mark: CheckpointMark) -> None:
        """Write `mark` unless it is written already."""
        self._due = None
        if mark == self._written and mark.wal == self._written.wal:
            return
        self._state.write_mark(mark)
        self._written = mark
