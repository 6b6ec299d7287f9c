"""Checkpoints: when the WAL is copied into the database file, and the barrier under which that is safe.

    BEGIN IMMEDIATE on the barrier connection      no other connection can commit
    publish the unpublished frames                 acknowledged by the store, or the barrier is given up
    compare frame counts                           all frames that SQLite counts as committed are published
    end the held read
    checkpoint, PASSIVE                            copies what the application's own readers allow
    begin the held read again                      on a WAL that is all in the database file, if they allowed all;
                                                   the replicator renews it when the WAL has been restarted
    ROLLBACK of the barrier                        the next commit restarts the WAL

The application's commits wait meanwhile, hence the limits. Under the barrier only frames that are in the store are
copied, and between its steps no other connection can commit.

Before that, `move_ahead` copies most of a long WAL while others commit: it renews the held read and copies what was
committed until then, as the application's own checkpoints may at any time. That is safe because the read is held
throughout: restarting the WAL needs the lock that the read holds, so all frames stay in the WAL as well, and the next
file has them. It also leaves little to sync to disk while commits wait: without it the longest commit takes 1.1 to 3.4
times as long.

`give_way` lets a checkpoint of the application restart the WAL although we hold a read (FULL, RESTART, TRUNCATE):

    some frames are not published                  the held read is renewed: what was committed until now is copied
    some frames are not in the database file       a guard takes the held read's place: everything is copied
    all is in the database file, and published     the held read, or the guard, is replaced by a read of kind 1

A read or the guard is held throughout, so nothing can be lost between, and no comparison is needed afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

import trio

from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.database.wal_follower import WalChange, WalFollower

log = logging.getLogger(__name__)

CHECKPOINT_FRAMES = 1000
"""Litestream's and SQLite's own threshold: about 4 MB of WAL."""
CHECKPOINT_INTERVAL_S = 60.0
"""A smaller WAL is copied at this interval, as by Litestream: a long WAL slows readers down."""
RETRY_S = 0.2
"""After an attempt that found the database busy."""
SLOW_RETRY_S = 1.0
"""After an attempt for which the store was too slow."""
PARTIAL_RETRY_S = 10.0
"""After an attempt that a long read transaction of the application kept from copying everything."""
AHEAD_FRAMES = 250
"""Fewer frames are not moved ahead: copying them under the barrier takes a few milliseconds."""
MAX_BARRIER_FRAMES = 500
"""If more frames are unpublished, they are published before the barrier is begun, in a file of their own."""
CATCH_UP_FILES = 3
"""Files published before the barrier, at most: the application may commit faster than we publish."""
BARRIER_PUBLISH_S = 0.2
"""Limit for publishing under the barrier: with the checkpoint, a commit waits less than 0.3 s on a good disk."""
BARRIER_PUBLISH_MAX_S = 2.0
"""The limit doubles up to this while the store is too slow: well below a busy timeout of 5 s."""
LARGE_WAL_FRAMES = 100_000
"""A WAL of this length is logged as a warning."""


class Outcome(Enum):
    """Outcome of an attempt."""

    DONE = "done"
    PARTIAL = "partial"  # an older read transaction needs a part of the WAL
    BUSY = "busy"  # another connection writes or checkpoints
    SLOW = "slow"  # the store did not acknowledge the remainder in time
    LOST = "lost"  # SQLite counts other frames than we do


@dataclass(slots=True)
class Schedule:
    """Decides when the next checkpoint is due. All times are in seconds, of one clock."""

    last_s: float
    not_before_s: float = 0.0
    publish_limit_s: float = BARRIER_PUBLISH_S

    def due(self, now_s: float, *, frames: int) -> bool:
        """True if an attempt is due while the WAL has `frames` frames that are not in the database file."""
        if frames == 0 or now_s < self.not_before_s:
            return False
        return frames >= CHECKPOINT_FRAMES or now_s >= self.last_s + CHECKPOINT_INTERVAL_S

    def record(self, now_s: float, outcome: Outcome) -> None:
        """Record the outcome of an attempt."""
        if outcome is Outcome.DONE:
            self.last_s, self.not_before_s = now_s, 0.0
            self.publish_limit_s = BARRIER_PUBLISH_S
            return
        delays_s = {Outcome.PARTIAL: PARTIAL_RETRY_S, Outcome.SLOW: SLOW_RETRY_S}
        self.not_before_s = now_s + delays_s.get(outcome, RETRY_S)
        if outcome is Outcome.SLOW:
            self.publish_limit_s = min(2 * self.publish_limit_s, BARRIER_PUBLISH_MAX_S)


def move_ahead(database: SQLiteDatabase, wal: WalFollower) -> None:
    """Copy what is committed now into the database file, while others commit. Blocks."""
    state = database.wal_state()
    if state.log - state.backfilled < AHEAD_FRAMES or not database.renew_read():
        return
    wal.sync()
    database.checkpoint()


def give_way(database: SQLiteDatabase, wal: WalFollower) -> bool:
    """Let a checkpoint of another process that waits for readers go on, as far as the held read is concerned. Blocks.

    Returns True if it may restart the WAL now. Otherwise frames are to be published, or it has some to copy. Call it
    again while the checkpoint waits, in any case (a read that begins while a checkpoint ends its copying gets a read
    mark although everything is copied), and also afterwards, while a guard is in the held read's place.
    """
    published = wal.position
    is_current = wal.is_intact()  # frames of a WAL that is restarted after this are not copied: we hold a read
    if not is_current or wal.committed != published:
        database.renew_read()
        return False
    if database.allow_restart(published):
        wal.seal(published)
        return True
    if database.awaits_readers():
        database.guard()
    else:
        database.renew_read()
    return False


async def checkpoint(
    database: SQLiteDatabase, wal: WalFollower, publish: Callable[[], Awaitable[object]], *, publish_limit_s: float
) -> Outcome:
    """Attempt a checkpoint. `publish` publishes the unpublished frames of `wal`; it may be cancelled and called again.

    If nothing is left to publish, the attempt is one call in a thread, so that commits do not wait for our event loop.
    """
    await _catch_up(database, wal, publish)
    outcome = await database.run(lambda: _seize(database, wal))
    if outcome is not None:
        return outcome
    try:
        with trio.move_on_after(publish_limit_s) as limit:
            await publish()
        if limit.cancelled_caught:
            return Outcome.SLOW
        return await database.run(lambda: _move(database, wal))
    finally:
        with trio.CancelScope(shield=True):
            await database.run(database.end_barrier)


async def _catch_up(database: SQLiteDatabase, wal: WalFollower, publish: Callable[[], Awaitable[object]]) -> None:
    """Publish until few enough frames are left for the barrier, in at most `CATCH_UP_FILES` files."""
    for _ in range(CATCH_UP_FILES):
        if await database.run(lambda: _unpublished_frames(wal)) <= MAX_BARRIER_FRAMES:
            break
        await publish()


def _unpublished_frames(wal: WalFollower) -> int:
    """Sync and read the WAL; return the number of committed frames that are not published."""
    wal.sync()
    if wal.look() is not WalChange.NONE:
        wal.scan()
    return wal.committed - wal.position


def _seize(database: SQLiteDatabase, wal: WalFollower) -> Outcome | None:
    """Begin the barrier, and complete the attempt if nothing is left to publish.

    Otherwise returns None, and the barrier is held.
    """
    if not database.begin_barrier():
        return Outcome.BUSY
    hold = False
    try:
        if wal.look() is not WalChange.NONE:
            wal.scan()
        hold = wal.committed > wal.position
        return None if hold else _move(database, wal)
    finally:
        if not hold:
            database.end_barrier()


def _move(database: SQLiteDatabase, wal: WalFollower) -> Outcome:
    """Release the held read, checkpoint, and take the read again: the steps under the barrier that need no request."""
    before = database.wal_state()
    if before.log != wal.position or wal.committed != wal.position:
        log.error("the WAL has %d frames, but %d were published", before.log, wal.position)
        return Outcome.LOST
    moved = False
    database.release_read()
    try:
        moved = database.checkpoint()
    finally:
        sealed = database.take_read().sealed
        wal.seal(wal.position if sealed else None)
    if sealed:
        return Outcome.DONE
    return Outcome.PARTIAL if moved else Outcome.BUSY
