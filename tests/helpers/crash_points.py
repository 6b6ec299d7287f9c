"""Places between two steps of the writer at which a test has the process killed.

The product knows nothing of them: `install` wraps the function that begins or ends each step, in a process that the
test has started (`writer_process`). The process dies by SIGKILL, so nothing is cleaned up.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from importlib import import_module
from types import FrameType
from typing import Any


class CrashPoint(StrEnum):
    """All places, in the order in which a run comes to them."""

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


@dataclass(frozen=True, slots=True)
class Before:
    """On entry of `function` of a module of the writer, if `caller` calls it ("": any)."""

    module: str
    function: str
    caller: str = ""


@dataclass(frozen=True, slots=True)
class After(Before):
    """When it returns something other than False; not when it raises."""


_SOURCE = "litereplica.writer.database.sqlite_database"
_CHECKPOINT = "litereplica.writer.database.checkpoint"
_STATE = "litereplica.writer.database.state_directory"
_WAL = "litereplica.writer.database.wal_follower"
_SUMS = "litereplica.writer.publish.page_checksums"
_PUBLISHER = "litereplica.writer.publish.publisher"
_REPLICATOR = "litereplica.writer.replicator"

WHERE: dict[CrashPoint, Before] = {
    CrashPoint.SOURCE_OPENED: After(_SOURCE, "SQLiteDatabase.connect"),
    CrashPoint.LEASE_TAKEN: After("litereplica.writer.publish.lease_keeper", "DatabaseLease.begin"),
    CrashPoint.START_BARRIER_BEGUN: After(_SOURCE, "SQLiteDatabase.begin_barrier", "take_hold"),
    CrashPoint.START_READ_TAKEN: After(_SOURCE, "SQLiteDatabase.take_read", "take_hold"),
    CrashPoint.ATTACHED: After("litereplica.writer.attachment", "Attachment._attach"),
    CrashPoint.DIFFERENCE_FOUND: Before(_PUBLISHER, "Publisher._encode", "_prepare_difference"),
    CrashPoint.SPOOLED_PART: After("litereplica.ltxstore.spooled_file", "SpooledFile._spill", "write"),
    CrashPoint.PREPARED: After(_PUBLISHER, "Publisher._encode"),
    CrashPoint.SENDING: Before(_PUBLISHER, "Publisher._put"),
    CrashPoint.PUT_DONE: Before(_PUBLISHER, "Publisher.discard", "_put"),
    CrashPoint.POSITION_MOVED: After(_WAL, "WalFollower.advance", "_put"),
    CrashPoint.SUMS_INVALID: After(_SUMS, "PageChecksums._invalidate"),
    CrashPoint.SUMS_CHANGED: After(_SUMS, "_write_checksums"),
    CrashPoint.SUMS_WRITTEN: After(_SUMS, "PageChecksums._write_header", "_write"),
    CrashPoint.READ_RENEWED: After(_SOURCE, "SQLiteDatabase.renew_read", "move_ahead"),
    CrashPoint.MOVED_AHEAD: After(_SOURCE, "SQLiteDatabase.checkpoint", "move_ahead"),
    CrashPoint.REST_PUBLISHED: After(_REPLICATOR, "Replicator._publish", "_catch_up"),
    CrashPoint.BARRIER_BEGUN: After(_SOURCE, "SQLiteDatabase.begin_barrier", "_seize"),
    CrashPoint.BARRIER_HELD: Before(_REPLICATOR, "Replicator._publish", "checkpoint"),
    CrashPoint.BARRIER_PUBLISHED: Before(_CHECKPOINT, "_move"),
    CrashPoint.READ_RELEASED: After(_SOURCE, "SQLiteDatabase.release_read", "_move"),
    CrashPoint.CHECKPOINTED: After(_SOURCE, "SQLiteDatabase.checkpoint", "_move"),
    CrashPoint.READ_RETAKEN: After(_WAL, "WalFollower.seal", "_move"),
    CrashPoint.BARRIER_ENDED: After(_SOURCE, "SQLiteDatabase.end_barrier", "_seize"),
    CrashPoint.NEW_GENERATION: After(_WAL, "WalFollower._begin", "_look_at_header"),
    CrashPoint.STATE_FILE_WRITTEN: After(_STATE, "LockedDirectory._write_durably"),
    CrashPoint.STOPPING: Before(_REPLICATOR, "Replicator._finish"),
    CrashPoint.LEASE_RELEASED: After("litereplica.ltxstore.lease", "ReplicaLease.release"),
    CrashPoint.SUMS_ON_DISK: Before(_SUMS, "PageChecksums._write_header", "close"),
    CrashPoint.CONNECTIONS_CLOSED: After(_SOURCE, "SQLiteDatabase.close"),
    CrashPoint.MARK_WRITTEN: After(_STATE, "StateDirectory.write_mark"),
}


def install(point: CrashPoint, passes: int) -> None:
    """Have this process killed when it comes to `point` for the `passes`-th time. Wraps a function for good."""
    where = WHERE[point]
    owner, name = owner_of(where)
    setattr(owner, name, _wrapped(getattr(owner, name), where, passes))


def owner_of(where: Before) -> tuple[Any, str]:
    """(the module or class that has the function, its name there)."""
    *parents, name = where.function.split(".")
    owner: Any = import_module(where.module)
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def _wrapped(function: Callable[..., Any], where: Before, passes: int) -> Callable[..., Any]:
    after = isinstance(where, After)
    left = passes

    def note(reached: bool) -> None:
        nonlocal left
        left -= reached
        if reached and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        fits = not where.caller or _caller(sys._getframe(1)) == where.caller
        note(fits and not after)
        result = function(*args, **kwargs)
        note(fits and after and result is not False)
        return result

    @wraps(function)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        fits = not where.caller or _caller(sys._getframe(1)) == where.caller
        note(fits and not after)
        result = await function(*args, **kwargs)
        note(fits and after and result is not False)
        return result

    return call_async if inspect.iscoroutinefunction(function) else call


def _caller(frame: FrameType | None) -> str:
    """Name of the function that calls, or of the one around a lambda or comprehension that does."""
    while frame is not None and frame.f_code.co_name.startswith("<"):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_name
