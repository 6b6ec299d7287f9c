"""The loop that keeps a replica up to date. The task that starts it in its nursery owns it.

A pass polls, passes the update to `apply`, waits until that has returned, and sleeps until `PollSchedule` says that the
next poll is due, or not at all while more files are waiting than one poll takes. While polls fail, the last snapshot
stays served, and the pause grows to `MAX_BACK_OFF_S` at most: a failed request costs nothing, and the replica should
catch up soon after the store is back. The log has one line when a run of failures begins and one when it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from litereplica.errors import LiteReplicaError, PageSizeChanged
from litereplica.replica.database import Replica
from litereplica.replica.poll_schedule import PollSchedule
from litereplica.replica.snapshot import Update

log = logging.getLogger(__name__)

MAX_BACK_OFF_S = 2.0
"""Longest pause between polls of a store that fails, unless the interval is longer. Within a poll the storage tries
several times, with random pauses up to 3.2 s: that keeps many mounts of one store from asking all at once."""

STALLED_POLLS = 3
"""Polls without progress, while newer TXIDs are known, until the log reports a stall."""


async def run_poller(
    replica: Replica,
    apply: Callable[[Update | None], Awaitable[None]],
    *,
    schedule: PollSchedule,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Poll when `schedule` says so, and await `apply` with the result of each poll, until cancelled.

    The result is None when nothing is new; `apply` may still have earlier work to finish.

    Ready after the first poll; its failure is raised. A later `LiteReplicaError` from a poll or from `apply` only
    lengthens the pause, but `PageSizeChanged` and any other exception end the loop.
    """
    await _poll(replica, apply, schedule)
    task_status.started()
    failures = 0
    stalled = False
    while True:
        async with replica.watch() as news:
            is_watched = True
            while is_watched:
                if failures or not replica.is_behind:
                    await schedule.wait(_back_off_s(schedule.interval_s, failures), None if failures else news)
                    news.take()
                failures = await _poll_again(replica, apply, schedule, failures)
                stalled = _log_stall(replica, stalled)
                is_watched = news.is_sure  # if not, its directory may be there now


async def _poll(replica: Replica, apply: Callable[[Update | None], Awaitable[None]], schedule: PollSchedule) -> None:
    with schedule.polling():
        await apply(await replica.poll())


async def _poll_again(
    replica: Replica, apply: Callable[[Update | None], Awaitable[None]], schedule: PollSchedule, failures: int
) -> int:
    """Poll after a run of `failures`; return the length of the run now."""
    try:
        await _poll(replica, apply, schedule)
    except PageSizeChanged:
        raise
    except LiteReplicaError as exc:
        if not failures:
            log.warning("polling fails, serving TXID %016x: %s", replica.snapshot.pos.txid, exc)
        return failures + 1
    if failures:
        log.info("polling works again, at TXID %016x", replica.snapshot.pos.txid)
    return 0


def _back_off_s(interval_s: float, failures: int) -> float:
    """Return the interval, doubled with each failure after the first, up to a limit."""
    if failures <= 1:
        return interval_s
    return max(interval_s, min(MAX_BACK_OFF_S, interval_s * 2.0 ** min(failures - 1, 16)))


def _log_stall(replica: Replica, was_stalled: bool) -> bool:
    statistics = replica.statistics()
    stalled = statistics.polls_behind >= STALLED_POLLS
    if stalled and not was_stalled:
        log.warning("no progress since TXID %016x: %s", statistics.pos.txid, statistics.reason)
    elif was_stalled and not stalled:
        log.info("progress again, at TXID %016x", statistics.pos.txid)
    return stalled
