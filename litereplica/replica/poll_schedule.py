"""When the next poll is due: every interval while a file is open, less and less often while none is.

Where the store tells of new files (`Storage.watch`), the next poll is made at once while polls are regular.

Only open files count. The kernel answers reads of cached pages without a request, so an active reader may be invisible
here, but it has a file open. Once the last file has been closed for `GRACE_S`, the pause between polls is a tenth of
the idle time, up to a limit; after `PAUSE_AFTER_S` polls stop. An open then first waits for a poll, up to
`FRESHEN_LIMIT_S`, so that its reader sees what it would have seen with regular polls.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import trio

from litereplica.file_events import Changes
from litereplica.replica.patience import MAX_INTERVAL_S

log = logging.getLogger(__name__)

GRACE_S = 60.0
"""Polls stay regular for this time after the last close, so programs that run now and then notice nothing."""

IDLE_SHARE = 0.1
"""The pause between polls as a share of the idle time."""

PAUSE_AFTER_S = 600.0
"""Polls stop after this idle time, until a file is opened."""

REST = 3.0
"""Pause after a poll until news lead to the next one, as a multiple of its duration: a busy writer leaves us idle."""

FRESHEN_LIMIT_S = 5.0
"""How long an open waits for a poll; after that the reader gets the snapshot that is there."""


class PollState(StrEnum):
    """How often a replica is polled."""

    ACTIVE = "active"  # every interval
    SLOWED = "slowed"
    PAUSED = "paused"  # until a file is opened


@dataclass(frozen=True, slots=True)
class PollScheduleStatistics:
    """`idle_s`: seconds since a file was last open."""

    state: PollState
    idle_s: float


def pause_s(idle_s: float, interval_s: float, *, max_interval_s: float, pause_after_s: float) -> float:
    """Return the seconds until the next poll, infinite for none. Pure."""
    if idle_s < GRACE_S or max_interval_s <= interval_s:
        return interval_s
    if idle_s >= pause_after_s:
        return math.inf
    return min(max_interval_s, max(interval_s, idle_s * IDLE_SHARE))


class PollSchedule:
    """The schedule of one replica's polls. `in_use` returns whether a file is open; by default one always is.

    A `max_interval_s` of at most the interval, or an infinite `pause_after_s`, keep the replica up to date while it is
    idle.
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
        self._busy_s = 0.0  # the time that the last poll took
        self._is_polling = False
        self._waiting = 0  # those who wait for a position: they count as open files
        self._news: Changes | None = None  # that `wait` may be waiting for
        self._wanted = trio.Event()
        self._polled = trio.Event()

    def statistics(self) -> PollScheduleStatistics:
        """Return the figures of this moment."""
        return PollScheduleStatistics(self._state, self._idle_s())

    async def wait(self, least_s: float, news: Changes | None = None) -> None:
        """Return when the next poll is due: not before `least_s`, unless there are news, or a poll is wanted now.

        News count while polls are regular, after a pause in proportion to what the last poll took.
        """
        idle_s = self._idle_s()
        limits = (self._max_interval_s, self._pause_after_s)
        pause = pause_s(idle_s, self.interval_s, max_interval_s=limits[0], pause_after_s=limits[1])
        if pause == math.inf:
            self._state = PollState.PAUSED
            log.info("polling stops until a file is opened: none has been open for %.0f s", idle_s)
        elif pause > self.interval_s:
            self._state = PollState.SLOWED
        with trio.move_on_after(max(pause, least_s)):
            if news is not None and self._state is PollState.ACTIVE and not self._wanted.is_set():
                self._news = news
                await trio.sleep(self._busy_s * REST)
                await news.wait()
            else:
                await self._wanted.wait()
        self._wanted = trio.Event()

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Record that a poll is made in the block; at its end its update has been applied, or it failed."""
        began, self._is_polling = trio.current_time(), True
        try:
            yield
        finally:
            self._state, self._is_polling = PollState.ACTIVE, False
            self._busy_s = trio.current_time() - began
            self._polled.set()
            self._polled = trio.Event()

    @contextmanager
    def regular(self) -> Iterator[None]:
        """Poll every interval during the block, as if a file was open."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def poll_now(self) -> None:
        """Make a poll that begins after this call, and return when it has finished."""
        self._wanted.set()
        if self._news is not None:
            self._news.wake()
        if self._is_polling:
            await self._polled.wait()
        await self._polled.wait()

    async def next_poll(self) -> None:
        """Return when the next of the regular polls has finished."""
        await self._polled.wait()

    async def freshen(self) -> None:
        """Record that a file is being opened. Unless polls are regular, make one now and wait for it."""
        self._used_at = trio.current_time()
        if self._state is not PollState.ACTIVE:
            self._wanted.set()
            with trio.move_on_after(FRESHEN_LIMIT_S):
                await self._polled.wait()

    def _idle_s(self) -> float:
        now = trio.current_time()
        if self._used_at is None or self._waiting or self._in_use():
            self._used_at = now
        return now - self._used_at
