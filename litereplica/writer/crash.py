"""Named places between two steps of the writer, at which a test has the process killed.

`LITEREPLICA_CRASH_AT=after-put` kills the process (SIGKILL: nothing is cleaned up) when it first comes to
that place, `LITEREPLICA_CRASH_AT=after-put:3` the third time. The variable is read once, on import; without it
a crash point is a call of an empty function.
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum

VARIABLE = "LITEREPLICA_CRASH_AT"


class CrashPoint(StrEnum):
    """Every place, in the order in which a run comes to them."""

    SOURCE_OPENED = "source-opened"
    LEASE_TAKEN = "lease-taken"
    START_BARRIER_BEGUN = "start-barrier-begun"
    START_READ_TAKEN = "start-read-taken"
    ATTACHED = "attached"
    DIFFERENCE_FOUND = "difference-found"
    SPOOLED_PART = "spooled-part"
    PREPARED = "prepared"
    SENDING = "sending"
    PUT_DONE = "put-done"
    POSITION_MOVED = "position-moved"
    SUMS_INVALID = "sums-invalid"
    SUMS_CHANGED = "sums-changed"
    SUMS_WRITTEN = "sums-written"
    READ_RENEWED = "read-renewed"
    MOVED_AHEAD = "moved-ahead"
    REST_PUBLISHED = "rest-published"
    BARRIER_BEGUN = "barrier-begun"
    BARRIER_HELD = "barrier-held"
    BARRIER_PUBLISHED = "barrier-published"
    READ_RELEASED = "read-released"
    CHECKPOINTED = "checkpointed"
    READ_RETAKEN = "read-retaken"
    BARRIER_ENDED = "barrier-ended"
    NEW_GENERATION = "new-generation"
    STATE_FILE_WRITTEN = "state-file-written"
    STOPPING = "stopping"
    LEASE_RELEASED = "lease-released"
    SUMS_ON_DISK = "sums-on-disk"
    CONNECTIONS_CLOSED = "connections-closed"
    MARK_WRITTEN = "mark-written"


def _inactive(point: CrashPoint) -> None:
    """No crash was asked for."""


class _Crash:
    def __init__(self, name: str, passes: int) -> None:
        self._point = CrashPoint(name)
        self._passes_left = passes

    def __call__(self, point: CrashPoint) -> None:
        if point is not self._point:
            return
        self._passes_left -= 1
        if self._passes_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _from_environment() -> _Crash | None:
    name, _, passes = os.environ.get(VARIABLE, "").partition(":")
    return _Crash(name, int(passes or 1)) if name else None


crash_point = _from_environment() or _inactive
