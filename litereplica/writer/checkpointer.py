"""Checkpoints of one replicated database, ours and those of the application, in the replicator's task.

renew_read       after a restart of the WAL: replaces the held read, so that commits stay fast
checkpoint       moves the WAL into the database file, when `Schedule` says so
give_way         lets a checkpoint of the application that waits for the held read restart the WAL
shrink_if_due    empties a WAL file that is far larger than what it contains
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from litereplica.writer.attachment import Attachment
from litereplica.writer.database.checkpoint import CHECKPOINT_INTERVAL_S, Outcome, checkpoint, give_way
from litereplica.writer.database.sqlite_database import LARGE_WAL_BYTES
from litereplica.writer.publish.context import WriterContext
from litereplica.writer.publish.publisher import WalMoved
from litereplica.writer.statistics import ReplicationCounters

log = logging.getLogger(__name__)

GIVE_WAY_INTERVAL_S = 1.0
"""Files are published for the application's checkpoints at most this often, whatever the sync interval: one that waits
has the write lock, so that all commits wait, too."""
SPARE_WAL = 4
"""A large WAL file is emptied if it is at least this many times as large as what it contains."""
SHRINK_RETRY_S = 10.0
"""After an attempt to empty the WAL that found it in use."""


class Checkpointer:
    """Checkpoints the database of `context`. `publish` publishes the unpublished frames of the WAL."""

    def __init__(
        self,
        context: WriterContext,
        attachment: Attachment,
        counters: ReplicationCounters,
        *,
        publish: Callable[[], Awaitable[object]],
    ) -> None:
        self._database = context.database
        self._wal = context.wal
        self._attachment = attachment
        self._counters = counters
        self._publish = publish
        self._give_way_at_s = 0.0
        self._shrink_at_s = 0.0

    @property
    def frames(self) -> int:
        """The number of WAL frames that are not known to be in the database file."""
        return 0 if self._wal.is_sealed else self._wal.committed

    async def renew_read(self) -> None:
        """Renew the held read once the WAL has been restarted (`SQLiteDatabase.renew_read`)."""
        wal = self._wal
        if self._database.may_restart and not (wal.is_sealed and (wal.is_intact() or wal.file_size == 0)):
            await self._database.run(self._database.renew_read)

    async def checkpoint_if_due(self) -> None:
        """Attempt a checkpoint if one is due. Raises as `checkpoint`."""
        if self._attachment.schedule.due(trio.current_time(), frames=self.frames):
            await self.checkpoint()

    async def checkpoint(self) -> Outcome:
        """Attempt a checkpoint. Raises `WalMoved` if SQLite counts other frames than were published."""
        attachment = self._attachment
        attachment.marks.forget()
        outcome = await checkpoint(
            self._database, self._wal, self._publish, publish_limit_s=attachment.schedule.publish_limit_s
        )
        attachment.schedule.record(trio.current_time(), outcome)
        log.debug("checkpoint: %s, %d frames", outcome.value, self._wal.position)
        if outcome is Outcome.DONE:
            self._counters.count_checkpoint()
            attachment.mark_if_sealed()
        elif outcome is Outcome.LOST:
            raise WalMoved
        return outcome

    def take_turn(self) -> bool:
        """True if frames are to be published at once for a waiting checkpoint; then not again for a while."""
        now_s = trio.current_time()
        if now_s < self._give_way_at_s or not self._database.awaits_readers():
            return False
        self._give_way_at_s = now_s + GIVE_WAY_INTERVAL_S
        return True

    async def give_way(self) -> bool:
        """Let a checkpoint of another process that waits for the held read go on, as far as frames are published.

        Returns True if there is one: call it again soon.
        """
        database, had_given_way = self._database, self._database.may_restart
        if not database.awaits_readers() and not database.is_guarded:
            return False
        if await database.run(lambda: give_way(database, self._wal)) and not had_given_way:
            log.debug("another process may restart the WAL of %s, %d frames", database.path, self._wal.position)
            self._attachment.schedule.record(trio.current_time(), Outcome.DONE)
            self._attachment.mark_if_sealed()
        return True

    async def shrink_if_due(self, idle_s: float) -> None:
        """Empty the WAL file if it is large, and either its content is small or nothing was committed for a while."""
        wal, now_s = self._wal, trio.current_time()
        if not wal.is_sealed or now_s < self._shrink_at_s:
            return
        size, used = wal.file_size, wal.position * wal.frame_size
        if size <= LARGE_WAL_BYTES or (size < SPARE_WAL * used and idle_s < CHECKPOINT_INTERVAL_S):
            return
        self._shrink_at_s = now_s + SHRINK_RETRY_S
        if await self._database.run(self._database.truncate_wal):
            log.info("emptied the WAL of %s, of %d MiB", self._database.path, size >> 20)
