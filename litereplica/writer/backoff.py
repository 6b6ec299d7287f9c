"""How often databases that are open are looked at, and how long to wait after a failure."""

from __future__ import annotations

import random

LOOK_INTERVAL_S = 0.01
"""Between looks at the WAL: a change is seen after 5 ms on average, for about 2 % of a CPU."""
IDLE_LOOK_INTERVAL_S = 0.02
"""The same when nothing has happened for `IDLE_AFTER_S`."""
IDLE_AFTER_S = 10.0
LOOKS_PER_S = 400
"""At all databases together, some 5 % of a CPU: with more than four open, each is looked at less often."""
RETRY_S = 0.5
RETRY_MAX_S = 30.0
"""Limits of the delay after failures, which doubles from one to the other."""
BUSY_RETRY_MAX_S = 1.0
"""The upper limit when the database was locked: that is over soon, and costs the store nothing."""


class Pace:
    """Of all databases of a process. `open` is the number of those that are looked at in this way."""

    def __init__(self) -> None:
        self.open = 0

    def look_interval_s(self, idle_s: float = 0.0) -> float:
        """Seconds until the next look at a database to which nothing has happened for so long."""
        least_s = IDLE_LOOK_INTERVAL_S if idle_s > IDLE_AFTER_S else LOOK_INTERVAL_S
        return max(least_s, self.open / LOOKS_PER_S)


def retry_delay_s(failures: int, rng: random.Random, *, busy: bool = False) -> float:
    """How long to wait after so many failures in succession; `busy`: the last one was a lock on the database."""
    longest_s = BUSY_RETRY_MAX_S if busy else RETRY_MAX_S
    return min(longest_s, RETRY_S * 2.0 ** min(failures - 1, 10)) * rng.uniform(0.5, 1.0)
