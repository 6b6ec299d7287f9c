"""The heartbeat of a writer: a URL that is requested while all databases are published.

A service that expects these requests raises an alarm when they stay away. As in Litestream, none is sent while a
database fails, waits for its lease, or has been behind for longer than the interval; and a request that fails is not
repeated before the next one is due.
"""

from __future__ import annotations

import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable

import trio

from litereplica.config.config import Heartbeat
from litereplica.writer.fleet.statistics import FleetStatistics, State

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 15.0
"""How often is looked whether all is published, if it was not when the request was due."""
TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 1 << 20

_PUBLISHING = (State.ACTIVE, State.DORMANT)


async def send(url: str) -> None:
    """Request the URL. A failure is logged."""
    await trio.to_thread.run_sync(_request, url, abandon_on_cancel=True)


async def beat(
    heartbeat: Heartbeat,
    statistics: Callable[[], FleetStatistics],
    send: Callable[[str], Awaitable[None]] = send,
) -> None:
    """Send the requests of a heartbeat by `send`. Never returns."""
    while True:
        if is_healthy(statistics(), heartbeat.interval_s):
            await send(heartbeat.url)
            await trio.sleep(heartbeat.interval_s)
        else:
            await trio.sleep(min(LOOK_INTERVAL_S, heartbeat.interval_s))


def is_healthy(fleet: FleetStatistics, limit_s: float) -> bool:
    """True if there are databases, and each has been published within the last `limit_s` seconds."""
    databases = [each for each in fleet.databases if each.state is not State.GONE]
    return bool(databases) and all(
        each.state in _PUBLISHING and each.error is None and each.behind_s < limit_s for each in databases
    )


def _request(url: str) -> None:
    """Request the URL, which is not logged: such URLs have a token. Blocks."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            answer.read(MAX_ANSWER_BYTES)
    except urllib.error.HTTPError as exc:
        log.error("the heartbeat was refused: HTTP status %d", exc.code)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        log.error("the heartbeat could not be sent: %s", reason)
    else:
        log.debug("sent a heartbeat")
