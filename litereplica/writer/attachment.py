"""Attaches a writer to its database: takes the held read, and publishes the content that the replica lacks.

detached   the position in the WAL is unknown: at the start, and after another program has restarted the WAL
attached   the held read keeps the WAL from being restarted, and `WalFollower` follows it; while `content` is set, the
           whole database or the pages that differ from the replica are still to be published
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from litereplica.errors import Unpublished
from litereplica.writer.database.checkpoint import Schedule
from litereplica.writer.database.checkpoint_mark import MarkWriter
from litereplica.writer.database.parked import Parked
from litereplica.writer.publish.context import WriterContext
from litereplica.writer.publish.publisher import Prepared, Publisher
from litereplica.writer.resume.resume_point import Hold, Start, publish_content, resume, take_hold

log = logging.getLogger(__name__)


class Attachment:
    """The attachment to the database of `context`. `parked` is as in `resume`; `published` is called for each file.

    `schedule` says when the next checkpoint is due; it is reset by each attachment.
    """

    def __init__(self, context: WriterContext, *, parked: Parked | None, published: Callable[[Prepared], None]) -> None:
        self.is_attached = False
        self.content: Hold | None = None
        self.schedule = Schedule(last_s=0.0)
        self.publisher = Publisher(context)
        self.marks = MarkWriter(context.state, context.database, context.store.url)
        self._context = context
        self._parked = parked
        self._published = published
        self._resumed = False  # True once the newest file of the replica is known

    @property
    def is_complete(self) -> bool:
        """True if the database is attached and the content that it had then is published."""
        return self.is_attached and self.content is None

    async def complete(self) -> None:
        """Attach the database if it is detached, and publish its content if that is due.

        Raises the errors of `resume` and of `Publisher.publish_next`; it can be called again after each of them.
        """
        if not self.is_attached:
            await self._attach()
        if self.content is not None:
            async with self._context.lease.kept():
                published = await publish_content(self._context, self.publisher, self.content)
            if published is not None:
                self._published(published)
            self.content = None
            self.mark_if_sealed()

    def detach(self) -> None:
        """Become detached, because another program restarted the WAL."""
        log.warning(
            "the WAL of %s was restarted by another program: publishing the pages that differ",
            self._context.database.path,
        )
        self.is_attached = False
        self.marks.forget()

    def require_published(self, reason: str) -> None:
        """Raise `Unpublished` unless all that is known to be committed is published."""
        path, wal = self._context.database.path, self._context.wal
        if self.is_complete and not wal.waiting_transactions:
            log.warning("stopped without a checkpoint of %s: %s", path, reason)
            return
        transactions = wal.waiting_transactions if self.is_complete else None
        wal_bytes = (wal.committed - wal.position) * wal.frame_size
        raise Unpublished(path, reason, transactions=transactions, wal_bytes=wal_bytes)

    def mark_if_sealed(self) -> None:
        """Request a checkpoint mark if the database file alone contains the newest TXID."""
        if self.content is None and self._context.wal.is_sealed:
            self.marks.note(self.publisher.last.txid)

    async def _attach(self) -> None:
        database, wal = self._context.database, self._context.wal
        finished = await self.publisher.finish()
        if finished is not None:
            self._published(finished)
        if self._resumed:
            start, hold = Start.DIFFERENCE, await database.run(lambda: take_hold(database, wal))
        else:
            start, hold = await resume(self._context, self.publisher, self._parked)
            self._resumed = True
        self.content = hold if start in (Start.FIRST, Start.DIFFERENCE, Start.COMPARED) else None
        self.is_attached = True
        self.schedule = Schedule(last_s=trio.current_time())
        self.mark_if_sealed()
        log.log(
            logging.DEBUG if self._parked is not None else logging.INFO,
            "replicating %s to %s: %s, at TXID %016x",
            database.path, self._context.store.url, start.value, self.publisher.last.txid,
        )  # fmt: skip
