"""What the databases of a fleet share: turns, descriptors, when one may rest, and which error ends them all."""

from __future__ import annotations

import errno
import random
import resource
from collections.abc import Callable
from dataclasses import dataclass, field

import apsw
import trio

from litereplica.errors import ConditionsIgnored, ConflictError, LeaseConflict
from litereplica.writer.backoff import Pace

BEGINNING = 8
"""Databases that are opened and published for the first time at once: more of them only wait for the same disk."""
PATIENCE_S = 10.0
"""After which one that is not done makes room for the next, so that a hung one is in nobody's way."""
MERGES = 2
"""At once, of all databases: each takes memory, and a core for a while."""
PARK_AFTER_S = 10.0
"""Without a change. To come back takes a few requests, and to read the database if the WAL does not reach back:"""
PARK_BYTES_PER_S = 10 << 20
"""so a large one is kept open for longer, a gigabyte for two minutes."""
DESCRIPTORS_EACH = 12
"""Of an open database: three connections, our own of its file, its WAL and its lock, and one more for a moment."""
OTHER_DESCRIPTORS = 128
"""Of the rest of the process, connections to stores above all."""
MAX_DESCRIPTORS = 1 << 16
"""That are asked for."""
MAX_OPEN = 32
"""When more than these are open, with some ten descriptors each, those without a change for `CROWDED_PARK_AFTER_S` are
put to rest at once."""
CROWDED_PARK_AFTER_S = 1.0

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Admission:
    """Turns at what is expensive. A turn ends when it is given back, or after `PATIENCE_S`."""

    def __init__(self, limit: int) -> None:
        self._free = trio.Semaphore(limit)
        self._since_s: dict[object, float] = {}

    async def begin(self, who: object) -> None:
        """Wait for a turn."""
        await self._free.acquire()
        self._since_s[who] = trio.current_time()

    def end(self, who: object) -> None:
        """Give the turn back, if it is not over."""
        if self._since_s.pop(who, None) is not None:
            self._free.release()

    def end_overdue(self) -> None:
        """Of those that have had theirs for too long."""
        now_s = trio.current_time()
        for who in [who for who, since_s in self._since_s.items() if now_s - since_s > PATIENCE_S]:
            self.end(who)


@dataclass(slots=True)
class Common:
    """What the databases of a fleet share. `strict`: the fleet is a single database, and ends as that does;
    `one_root`: it ends when it loses the lease; `conflicts_end`: a conflict about any named database ends it."""

    now_ms: Callable[[], int]
    rng: random.Random
    strict: bool = False
    one_root: bool = False
    conflicts_end: bool = False
    pace: Pace = field(default_factory=Pace)
    beginning: Admission = field(default_factory=lambda: Admission(BEGINNING))
    merges: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(MERGES))
    descriptors: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(_most_open()))
    files: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(BEGINNING))

    def ends_fleet(self, error: Exception, *, named: bool) -> bool:
        """Is there nothing that could go on, or must it not? `named`: the database is a target itself."""
        if self.strict:
            return not _lacks_room(error)
        if self.one_root and isinstance(error, LeaseConflict | ConditionsIgnored):
            return True
        return named and self.conflicts_end and isinstance(error, ConflictError)

    def may_park(self, idle_s: float, size: int) -> bool:
        """True if a database of `size` bytes that has been idle for `idle_s` seconds is to be parked."""
        if idle_s > PARK_AFTER_S + size / PARK_BYTES_PER_S:
            return True
        return self.pace.open > MAX_OPEN and idle_s > CROWDED_PARK_AFTER_S


def raise_descriptor_limit() -> None:
    """As far as it may be; a process that has one database open leaves it as it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _lacks_room(error: Exception) -> bool:
    """Is a full disk in the way, on which there may be room again? Nothing is lost meanwhile."""
    return any(
        isinstance(each, apsw.FullError) or (isinstance(each, OSError) and each.errno in _NO_SPACE)
        for each in (error, error.__cause__)
    )


def _most_open() -> int:
    """How many databases this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - OTHER_DESCRIPTORS) // DESCRIPTORS_EACH)
