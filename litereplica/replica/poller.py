"""The loop that keeps a replica up to date. It is owned by whoever starts it in a nursery.

One pass polls, hands on what it brought and waits until that has been applied, then sleeps for as long as its `Pace`
says. A store that fails is asked again for ever, hardly less often: a request that fails costs nothing, and all is to
be well soon after the store is back. What is there stays served meanwhile. The log has one line when a run of failures
begins and one when it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from litereplica.errors import LiteReplicaError, PageSizeChanged
from litereplica.replica.database import Replica
from litereplica.replica.poll_schedule import Pace
from litereplica.replica.snapshot import Update

log = logging.getLogger(__name__)

MAX_BACK_OFF_S = 2.0
"""Longest pause between polls of a store that fails, unless the interval is longer. Within a poll the storage tries
several times, with random pauses up to 3.2 s: that keeps many mounts of one store from asking all at once."""

STALLED_POLLS = 3
"""Polls without progress, while the replica is known to have more, until the log says so."""


async def run_poller(
    replica: Replica,
    apply: Callable[[Update | None], Awaitable[None]],
    *,
    pace: Pace,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Poll whenever `pace` says so, and await `apply` with what each poll brought, for ever.

    That is None when there was nothing: whoever applies may have something left from before, or due by the clock.

    Ready after the first poll; its failure is raised. Later an error of ours, from the poll or from `apply`, only
    lengthens the pause; `PageSizeChanged`, and any other exception, ends the loop.
    """
    await _poll_once(replica, apply, pace)
    task_status.started()
    failures = 0
    stalled = False
    while True:
        await pace.wait(_back_off_s(pace.interval_s, failures))
        try:
            await _poll_once(replica, apply, pace)
        except PageSizeChanged:
            raise
        except LiteReplicaError as exc:
            failures += 1
            if failures == 1:
                log.warning("polling fails, serving TXID %016x: %s", replica.snapshot.pos.txid, exc)
        else:
            if failures:
                log.info("polling works again, at TXID %016x", replica.snapshot.pos.txid)
            failures = 0
        stalled = _log_stall(replica, stalled)


async def _poll_once(replica: Replica, apply: Callable[[Update | None], Awaitable[None]], pace: Pace) -> None:
    try:
        await apply(await replica.poll())
    finally:
        pace.polled()


def _back_off_s(interval_s: float, failures: int) -> float:
    """The interval, doubled with each failure after the first, up to a limit."""
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
