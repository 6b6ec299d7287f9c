"""Checks once in a while that a database that is open for replication is still the one under its name."""

from __future__ import annotations

from litereplica.errors import SourceChanged, SourceReplaced
from litereplica.writer.database.litestream_guard import LitestreamWatch
from litereplica.writer.publish.context import WriterContext

PLACE_INTERVAL_S = 1.0
"""Between checks, each of which costs a few system calls."""
HINT = "start again: the database that is there now is then published"


class PlaceCheck:
    """Checks the database of `context`. Times are trio's, in seconds."""

    def __init__(self, context: WriterContext) -> None:
        self._database = context.database
        self._wal = context.wal
        self._litestream = LitestreamWatch(context.database.path)
        self._due_s = 0.0

    def check(self, now_s: float, *, is_attached: bool) -> None:
        """Raise an error if the database is no longer where it was. No effect before the next check is due.

        Raises `SourceChanged` if the path leads to another file, `SourceReplaced` if the open file is not there any
        more, and `ConflictError` if a Litestream has it open as well.
        """
        if now_s < self._due_s:
            return
        self._due_s = now_s + PLACE_INTERVAL_S
        self._litestream.check()
        if not is_attached:
            return
        database = self._database
        real = database.real_path()
        if real is not None and real != database.path:
            raise SourceChanged(f"{database.given} was {database.path} and leads to {real} now", hint=HINT)
        if real is None or not (database.is_in_place() and self._wal.is_in_place()):
            raise SourceReplaced(
                f"{database.given} or its WAL was deleted or replaced while it was replicated", hint=HINT
            )
