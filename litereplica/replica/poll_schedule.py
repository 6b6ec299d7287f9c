"""When the next poll is due: every interval while anyone has a file open, less and less often while nobody has.

Open files are what counts, and nothing else. A reader whose pages the kernel has makes no request at all, so that who
reads nothing cannot be told from who is not there; but who wants to read has a file open. So a replica that nobody has
open is polled after a tenth of the time that it has been so, up to a limit, and at last not at all. Whoever opens a
file then waits for a poll first, up to `FRESHEN_LIMIT_S`, so that it sees what it would have seen at the usual pace.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import trio

log = logging.getLogger(__name__)

GRACE_S = 60.0
"""Polled as usual for so long after the last file was closed: programs that run now and then notice nothing."""

IDLE_SHARE = 0.1
"""The pause, as a part of the time that nobody has had a file open."""

MAX_INTERVAL_S = 30.0
"""Longest pause: at S3's list prices 3.5 cents a month."""

PAUSE_AFTER_S = 600.0
"""Without an open file for so long, a replica is not polled any more until somebody opens one."""

FRESHEN_LIMIT_S = 5.0
"""How long an open waits for a poll; a store that does not answer by then leaves what is there."""


class PollState(StrEnum):
    """How often a replica is polled."""

    ACTIVE = "active"  # every interval
    SLOWED = "slowed"
    PAUSED = "paused"  # until a file is opened


@dataclass(frozen=True, slots=True)
class PaceStatistics:
    """`idle_s`: since when nobody has had a file open."""

    state: PollState
    idle_s: float


def pause_s(idle_s: float, interval_s: float, *, max_interval_s: float, pause_after_s: float) -> float:
    """Time until the next poll, infinite for none. Pure."""
    if idle_s < GRACE_S or max_interval_s <= interval_s:
        return interval_s
    if idle_s >= pause_after_s:
        return math.inf
    return min(max_interval_s, max(interval_s, idle_s * IDLE_SHARE))


class Pace:
    """The pace of one replica's polls. `in_use` tells whether anyone has a file open; without it somebody has.

    `max_interval_s` no longer than the interval, or a `pause_after_s` that is infinite, are for replicas that are to be
    up to date with nobody looking.
    """

    def __init__(
        self,
        interval_s: float,
        *,
        in_use: Callable[[], bool] = lambda: True,
        max_interval_s: float = MAX_INTERVAL_S,
        pause_after_s: float = PAUSE_AFTER_S,
    ) -> None:
        self.interval_s = interval_s
        self._in_use = in_use
        self._max_interval_s = max_interval_s
        self._pause_after_s = pause_after_s
        self._used_at: float | None = None
        self._state = PollState.ACTIVE
        self._wanted = trio.Event()
        self._polled = trio.Event()

    def statistics(self) -> PaceStatistics:
        return PaceStatistics(self._state, self._idle_s())

    async def wait(self, least_s: float) -> None:
        """Return when the next poll is due: after `least_s` at the earliest, unless somebody opens a file."""
        idle_s = self._idle_s()
        limits = (self._max_interval_s, self._pause_after_s)
        pause = pause_s(idle_s, self.interval_s, max_interval_s=limits[0], pause_after_s=limits[1])
        if pause == math.inf:
            self._state = PollState.PAUSED
            log.info("polling pauses: nobody has had a file open for %.0f s", idle_s)
        elif pause > self.interval_s:
            self._state = PollState.SLOWED
        self._wanted = trio.Event()
        with trio.move_on_after(max(pause, least_s)):
            await self._wanted.wait()

    def polled(self) -> None:
        """A poll has been made, and what it brought has been applied; or it has failed."""
        self._state = PollState.ACTIVE
        self._polled.set()
        self._polled = trio.Event()

    async def freshen(self) -> None:
        """Somebody opens a file: unless polls come at the usual pace, wait for one that is made now."""
        self._used_at = trio.current_time()
        if self._state is not PollState.ACTIVE:
            self._wanted.set()
            with trio.move_on_after(FRESHEN_LIMIT_S):
                await self._polled.wait()

    def _idle_s(self) -> float:
        now = trio.current_time()
        if self._used_at is None or self._in_use():
            self._used_at = now
        return now - self._used_at
