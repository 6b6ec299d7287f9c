"""When the WAL is moved into the database, and the barrier under which that is safe.

    BEGIN IMMEDIATE on the barrier connection      nobody can commit
    publish what is left                           acknowledged by the store, or the barrier is given up
    is all that SQLite calls committed published?  the frames that it counts are those that we count
    end the held read
    checkpoint, PASSIVE                            moves what the application's own readers allow
    begin the held read again                      on a WAL that is all in the database, if they allowed all;
                                                   renewed by the service when the WAL has been restarted
    ROLLBACK of the barrier                        the next commit restarts the WAL

The application's commits wait meanwhile, hence the limits. Under the barrier nothing that is not in the store is ever
moved, and no step in between leaves a moment in which somebody could commit and move it.

Before, most of a long WAL is moved *ahead*, while others commit: `move_ahead` renews the held read and moves what
was committed until then, as the application's own checkpoints may at any time. That is safe because the read is
held throughout: whoever wants to restart the WAL needs the lock that it has, so that all of it stays in the WAL, too,
however often others checkpoint; and the file that is published next has all that was moved. It also leaves little to
be synced to disk while commits wait: without it the longest commit is 1.1 to 3.4 times as long.
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
"""A smaller WAL is moved so often, as Litestream does it: readers of the database pay for a long WAL."""
RETRY_S = 0.2
"""After one that found the database busy: publishing goes on in between."""
SLOW_RETRY_S = 1.0
"""After one that the store was too slow for."""
PARTIAL_RETRY_S = 10.0
"""After one that a long reader of the application's had kept from moving everything."""
AHEAD_FRAMES = 250
"""Fewer than that are moved under the barrier in some milliseconds."""
MAX_BARRIER_FRAMES = 500
"""More than that are published before the barrier is begun, in a file of their own."""
CATCH_UP_FILES = 3
"""An application that commits faster than we publish would go on for ever."""
BARRIER_PUBLISH_S = 0.2
"""For publishing under the barrier: with the checkpoint itself, a commit waits less than 0.3 s on a good disk."""
BARRIER_PUBLISH_MAX_S = 2.0
"""What the above may double to while a store is too slow for it: well below a busy timeout of 5 s."""
LARGE_WAL_FRAMES = 100_000
"""A WAL that the log warns of."""


class Outcome(Enum):
    """What came of an attempt."""

    DONE = "done"
    PARTIAL = "partial"  # an older reader needs a part of the WAL
    BUSY = "busy"  # somebody else writes or checkpoints
    SLOW = "slow"  # the store did not take the rest in time
    LOST = "lost"  # SQLite counts other frames than we do


@dataclass(slots=True)
class Schedule:
    """When the next attempt is due. Pure: times are handed in, in seconds of one clock."""

    last_s: float
    not_before_s: float = 0.0
    publish_limit_s: float = BARRIER_PUBLISH_S

    def due(self, now_s: float, *, frames: int) -> bool:
        """Is it time, with so many frames in the WAL that are not in the database?"""
        if frames == 0 or now_s < self.not_before_s:
            return False
        return frames >= CHECKPOINT_FRAMES or now_s >= self.last_s + CHECKPOINT_INTERVAL_S

    def record(self, now_s: float, outcome: Outcome) -> None:
        """Take account of an attempt."""
        if outcome is Outcome.DONE:
            self.last_s, self.not_before_s = now_s, 0.0
            self.publish_limit_s = BARRIER_PUBLISH_S
            return
        delays_s = {Outcome.PARTIAL: PARTIAL_RETRY_S, Outcome.SLOW: SLOW_RETRY_S}
        self.not_before_s = now_s + delays_s.get(outcome, RETRY_S)
        if outcome is Outcome.SLOW:
            self.publish_limit_s = min(2 * self.publish_limit_s, BARRIER_PUBLISH_MAX_S)


def move_ahead(source: SQLiteDatabase, tail: WalFollower) -> None:
    """Move what is committed now, while others commit. Blocks."""
    state = source.wal_state()
    if state.log - state.backfilled < AHEAD_FRAMES or not source.renew_read():
        return
    tail.sync()
    source.checkpoint()


async def checkpoint(
    source: SQLiteDatabase, tail: WalFollower, publish: Callable[[], Awaitable[object]], *, publish_limit_s: float
) -> Outcome:
    """One attempt. `publish` publishes whatever `tail` still finds; it may be cancelled, and called again.

    When nothing is left, the whole attempt is one call in a thread: the application does not wait for our event loop.
    """
    await _catch_up(source, tail, publish)
    outcome = await source.run(lambda: _seize(source, tail))
    if outcome is not None:
        return outcome
    try:
        with trio.move_on_after(publish_limit_s) as limit:
            await publish()
        if limit.cancelled_caught:
            return Outcome.SLOW
        return await source.run(lambda: _move(source, tail))
    finally:
        with trio.CancelScope(shield=True):
            await source.run(source.end_barrier)


async def _catch_up(source: SQLiteDatabase, tail: WalFollower, publish: Callable[[], Awaitable[object]]) -> None:
    """Publish until few enough frames are left for the barrier, in at most `CATCH_UP_FILES` files."""
    for _ in range(CATCH_UP_FILES):
        if await source.run(lambda: _unpublished_frames(tail)) <= MAX_BARRIER_FRAMES:
            break
        await publish()


def _unpublished_frames(tail: WalFollower) -> int:
    """Returns the number of committed frames that are not published, once the WAL is read and synced to disk."""
    tail.sync()
    if tail.look() is not WalChange.NONE:
        tail.scan()
    return tail.committed - tail.position


def _seize(source: SQLiteDatabase, tail: WalFollower) -> Outcome | None:
    """Begin the barrier and, if nothing is left to publish, complete the attempt; None with the barrier held if not."""
    if not source.begin_barrier():
        return Outcome.BUSY
    hold = False
    try:
        if tail.look() is not WalChange.NONE:
            tail.scan()
        hold = tail.committed > tail.position
        return None if hold else _move(source, tail)
    finally:
        if not hold:
            source.end_barrier()


def _move(source: SQLiteDatabase, tail: WalFollower) -> Outcome:
    """The steps without the network, under the barrier."""
    before = source.wal_state()
    if before.log != tail.position or tail.committed != tail.position:
        log.error("the WAL has %d frames, but %d were published", before.log, tail.position)
        return Outcome.LOST
    moved = False
    source.release_read()
    try:
        moved = source.checkpoint()
    finally:
        sealed = source.take_read().sealed
        tail.seal(tail.position if sealed else None)
    if sealed:
        return Outcome.DONE
    return Outcome.PARTIAL if moved else Outcome.BUSY
