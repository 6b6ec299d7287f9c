"""When open databases are looked at: when the kernel tells of a change, at intervals, and after failures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from litereplica.file_events import FileEvents

LOOK_INTERVAL_S = 0.01
"""Between polls of the WAL where no events come: a change is seen after 5 ms on average, for about 2 % of a CPU."""
IDLE_LOOK_INTERVAL_S = 0.02
"""The same for a database that has been idle for `IDLE_AFTER_S`."""
IDLE_AFTER_S = 10.0
LOOKS_PER_S = 400
"""Polls of all databases together, for some 5 % of a CPU: if more than four are open, each is polled less often."""
RETRY_S = 0.5
RETRY_MAX_S = 30.0
"""The delay after failures doubles from `RETRY_S` up to this."""
BUSY_RETRY_MAX_S = 1.0
"""The same if the database was locked, which is over soon; a retry makes no request."""


class Pace:
    """The polling interval of the open databases of a process. `open` is their number, `events` tells of changes."""

    def __init__(self) -> None:
        self.open = 0
        self.events = FileEvents()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one more open database during the block."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def look_interval_s(self, idle_s: float = 0.0) -> float:
        """Seconds until the next poll of a database without events that has been idle for `idle_s` seconds."""
        least_s = IDLE_LOOK_INTERVAL_S if idle_s > IDLE_AFTER_S else LOOK_INTERVAL_S
        return max(least_s, self.open / LOOKS_PER_S)


def retry_delay_s(failures: int, rng: random.Random, *, busy: bool = False) -> float:
    """Seconds to wait after `failures` successive failures; `busy` if the database was locked in the last one."""
    longest_s = BUSY_RETRY_MAX_S if busy else RETRY_MAX_S
    return min(longest_s, RETRY_S * 2.0 ** min(failures - 1, 10)) * rng.uniform(0.5, 1.0)
