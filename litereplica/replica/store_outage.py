"""How long readers wait for a store that does not answer.

One read may wait for the read timeout. But a client's reads come one after the other, and the kernel sends few at a
time (12 by default), so the time limits of many reads would add up. Therefore an outage has one deadline for all: it
begins with the first request that nothing has been answered since, and is declared when that one has waited for the
read timeout. From then on reads fail after a short wait, and now and then one of them sends a probe: a request of its
own, outside of the queue, that goes on when its reader has given up. The first answer ends the outage, also for those
who are waiting at that moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from litereplica.errors import LiteReplicaError, TransientStorageError

PROBE_WAIT_S = 0.5
"""How long readers wait for a probe: an answer of a store that is back usually comes earlier."""

SHORT_WAIT_S = 0.2
"""How long a reader waits at least: the answer to a request that was sent before may be on its way."""

PROBE_INTERVAL_S = 1.0
"""Time between two probes: how much later than the store readers may be back."""


class StoreOutage:
    """What is known of a store by its answers to the requests of readers. Times are trio's, in seconds.

    `timeout_s` is how long one read may wait.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._under_way = 0
        self._silent_since: float | None = None  # a request was sent then, and nothing has been answered since
        self._probed_at = self._failed_at = -math.inf

    @contextmanager
    def request(self) -> Iterator[None]:
        """Record that a request is sent, and at the end whether it has been answered, be it by an error."""
        self._under_way += 1
        if self._silent_since is None:
            self._silent_since = trio.current_time()
        try:
            yield
        except (trio.TooSlowError, TransientStorageError):
            self._failed_at = trio.current_time()
            raise
        except LiteReplicaError:
            self._silent_since = trio.current_time()
            raise
        else:
            self._silent_since = trio.current_time()
        finally:
            self._under_way -= 1
            if not self._under_way and self._failed_at <= self._silent_since:
                self._silent_since = None

    def starts_probe(self) -> bool:
        """Return True if the read that begins now is to send a probe."""
        now = trio.current_time()
        if not self._under_way and now - self._failed_at > self._timeout_s:
            self._silent_since = None  # too long ago to say anything about the store of now
        if self._silent_since is None or now < self._silent_since + self._timeout_s:
            return False
        if now - self._probed_at < PROBE_INTERVAL_S:
            return False
        self._probed_at = now
        return True

    def deadline(self, started: float) -> float:
        """Return when a read that began at `started` fails. An answer may make it later, nothing makes it earlier."""
        limit = started + self._timeout_s
        if self._silent_since is None:
            return limit
        declared = self._silent_since + self._timeout_s
        if started < declared:
            return min(limit, declared + PROBE_WAIT_S)
        return min(limit, max(self._probed_at + PROBE_WAIT_S, started + SHORT_WAIT_S))
