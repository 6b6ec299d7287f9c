"""Limits and policies that the databases of a fleet share.

Admission      at most so many databases are started at a time
ErrorPolicy    which error of one database ends the whole fleet
FleetContext   these, with clocks, limiters and the rule for parking
"""

from __future__ import annotations

import errno
import random
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import apsw
import trio

from litereplica.errors import (
    ConditionsIgnored,
    ConflictError,
    DamagedFile,
    EnvironmentProblem,
    LeaseConflict,
    SourceChanged,
    SourceMalformed,
    SourceReplaced,
    UsageError,
)
from litereplica.writer.backoff import Pace
from litereplica.writer.settings import DatabaseTarget, Target

BEGINNING = 8
"""Databases that are opened and first published concurrently: more would only wait for the same disk."""
PATIENCE_S = 10.0
"""A turn ends after this time although its database is not published yet, so that a database that hangs does not block
the others."""
MERGES = 2
"""Concurrent merges of all databases: each takes memory and a core."""
PARK_AFTER_S = 10.0
"""A database is parked after this time without a change, plus a time that grows with its size: opening it again takes a
few requests, and all its pages are read if the WAL has been restarted meanwhile."""
PARK_BYTES_PER_S = 10 << 20
"""A database of 1 GiB is parked after two minutes."""
DESCRIPTORS_EACH = 12
"""File descriptors of an open database: those of three connections, of its file, its WAL and its lock, and a temporary
one."""
OTHER_DESCRIPTORS = 128
"""File descriptors of the process itself, mostly connections to stores."""
MAX_DESCRIPTORS = 1 << 16
"""The limit that the process requests."""
MAX_OPEN = 32
"""If more databases are open, those without a change for `CROWDED_PARK_AFTER_S` are parked."""
CROWDED_PARK_AFTER_S = 1.0

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Admission:
    """Grants at most `limit` turns at a time. A turn ends with `end`, or after `PATIENCE_S`."""

    def __init__(self, limit: int) -> None:
        self._free = trio.Semaphore(limit)
        self._since_s: dict[object, float] = {}

    async def begin(self, who: object) -> None:
        """Wait for a turn."""
        await self._free.acquire()
        self._since_s[who] = trio.current_time()

    def end(self, who: object) -> None:
        """End a turn. No effect if it is over already."""
        if self._since_s.pop(who, None) is not None:
            self._free.release()

    def end_overdue(self) -> None:
        """End the turns that have taken longer than `PATIENCE_S`."""
        now_s = trio.current_time()
        for who in [who for who, since_s in self._since_s.items() if now_s - since_s > PATIENCE_S]:
            self.end(who)


class ErrorPolicy:
    """Decides which error of one database ends the whole fleet.

    With `conflicts_end`, a conflict about a database that is a target itself does, until `tolerate_conflicts`. With
    `follow`, a database that is moved, deleted or replaced while it is replicated does not.
    """

    def __init__(self, *, conflicts_end: bool = False, follow: bool = False) -> None:
        self.is_strict = False
        self._one_root = False
        self._conflicts_end = conflicts_end
        self._follow = follow

    def set_targets(self, targets: Sequence[Target]) -> None:
        """Set the policy for these targets.

        A fleet of a single database is strict: each error of the database ends it. A fleet with one root ends when the
        lease of that root is lost.
        """
        self._one_root = len(targets) == 1
        self.is_strict = self._one_root and isinstance(targets[0], DatabaseTarget)

    def tolerate_conflicts(self) -> None:
        """Let the fleet continue after a conflict about one of several databases, from now on."""
        self._conflicts_end = False

    def ends_fleet(self, error: Exception, *, named: bool, has_run: bool = True) -> bool:
        """True if the fleet ends with this error of a database.

        `named`: the database is a target itself. `has_run`: it was published before, so that it is not the argument
        that is wrong, but what has become of the database.
        """
        if self.is_strict:
            if isinstance(error, SourceReplaced):
                return not (self._follow or isinstance(error, SourceChanged))
            is_broken = isinstance(error, DamagedFile | SourceMalformed | UsageError | EnvironmentProblem)
            return not (_lacks_room(error) or (has_run and is_broken))
        if self._one_root and isinstance(error, LeaseConflict | ConditionsIgnored):
            return True
        return named and self._conflicts_end and isinstance(error, ConflictError)


@dataclass(frozen=True, slots=True)
class FleetContext:
    """What the databases of a fleet share: clock, limits, and which errors end the fleet."""

    now_ms: Callable[[], int]
    rng: random.Random
    errors: ErrorPolicy
    pace: Pace = field(default_factory=Pace)
    beginning: Admission = field(default_factory=lambda: Admission(BEGINNING))
    merges: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(MERGES))
    descriptors: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(_most_open()))
    files: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(BEGINNING))

    def may_park(self, idle_s: float, size: int) -> bool:
        """True if a database of `size` bytes that has been idle for `idle_s` seconds is to be parked."""
        if idle_s > PARK_AFTER_S + size / PARK_BYTES_PER_S:
            return True
        return self.pace.open > MAX_OPEN and idle_s > CROWDED_PARK_AFTER_S


def raise_descriptor_limit() -> None:
    """Raise the limit of open files to the hard limit, at most to `MAX_DESCRIPTORS`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _lacks_room(error: Exception) -> bool:
    """True if the disk is full, which is temporary: nothing is lost meanwhile."""
    return any(
        isinstance(each, apsw.FullError) or (isinstance(each, OSError) and each.errno in _NO_SPACE)
        for each in (error, error.__cause__)
    )


def _most_open() -> int:
    """The number of databases that this process can have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - OTHER_DESCRIPTORS) // DESCRIPTORS_EACH)
