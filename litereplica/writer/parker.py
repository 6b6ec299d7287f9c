"""Decides whether an idle database can be parked, and makes its `Parked` record."""

from __future__ import annotations

import logging

import apsw

from litereplica.errors import SourceChanged
from litereplica.writer.attachment import Attachment
from litereplica.writer.database.parked import Parked, certain_now, mark_of
from litereplica.writer.database.wal_follower import WalChange
from litereplica.writer.publish.context import WriterContext
from litereplica.writer.publish.source_check import require_unchanged

log = logging.getLogger(__name__)


class Parker:
    """Parks one database. `token` is that of the state directory (`StateDirectory.begin_tenancy`)."""

    def __init__(self, context: WriterContext, attachment: Attachment, token: bytes) -> None:
        self._context = context
        self._attachment = attachment
        self._token = token
        self._complete = False  # at the last `leave` the database file alone held everything

    def leave(self) -> Parked | None:
        """Return the record of the files, or None if the database cannot be parked now. Blocks.

        It can be if everything in the files is published, and any later change will be seen by `stat`. Writes the
        checkpoint mark if the database file alone contains everything.
        """
        database, wal = self._context.database, self._context.wal
        files = certain_now(database.path)
        if files is None or not self._attachment.is_attached:
            return None
        try:
            require_unchanged(self._context, self._attachment.publisher.last)
        except SourceChanged:
            return None
        if files.database != database.certain_identity() or not wal.is_in_place():
            return None
        if database.real_path() != database.path:
            return None
        if wal.look() is not WalChange.NONE or wal.committed > wal.position:
            return None
        last, complete = self._attachment.publisher.last, wal.is_sealed
        self._complete = complete
        if complete:
            self._attachment.marks.write(mark_of(self._context.store.url, last.txid, files))
        real = str(database.path) if database.path != database.given else ""
        return Parked(last.txid, files, complete, last, self._token, self._context.lease.known_epoch(), real)

    def end(self) -> None:
        """End the held read. Blocks.

        After a `leave` that was complete, end the WAL as SQLite would; also if something else has written to the file,
        because the WAL's index still has the size of the database before.
        """
        database, wal = self._context.database, self._context.wal
        database.release_read()
        if (self._complete or database.is_distrusted) and wal.is_sealed and wal.look() is WalChange.NONE:
            try:
                database.leave_to_sqlite()
            except (OSError, apsw.Error) as exc:  # somebody has removed the WAL, for instance
                log.info("the WAL of %s is left as it is: %s", database.path, exc)
