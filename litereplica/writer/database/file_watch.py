"""Detects that something else than a checkpoint has written to a database file.

Examples are `cat new.db > app.db`, `dd`, `rsync --inplace`, and a volume that was rolled back. While a WAL database is
open, only checkpoints write to its file. `FileWatch` keeps the size and times that the file had when its content was
last explained, and judges each change of them:

    SAMPLE   a sample of the pages has to be compared; a checkpoint, or a new owner, mode or link, explains the change
    WHOLE    nothing has explained the change for `EXPLAIN_WITHIN_S`, so the whole file has to be compared

A checkpoint of another program explains a change only when it has ended, because SQLite counts the frames that it has
copied at the end. Until then there is only a sample, and we do not checkpoint, so that the count shows whose work it
is.

A change within a clock tick of the last one leaves the same times. So a file that was just written to has to be sampled
once more when its ctime is older than a tick.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from enum import Enum

from litereplica.writer.database.wal_follower import MTIME_GRANULARITY_NS

EXPLAIN_WITHIN_S = 10.0
"""Longer than a checkpoint takes that syncs a slow disk."""


class Doubt(Enum):
    """What has to be compared before the file can be trusted again."""

    NONE = "none"
    SAMPLE = "sample"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class FileStatus:
    """Size and times of a file; a write changes the ctime, which cannot be set."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, fd: int) -> FileStatus:
        """The present status of an open file."""
        status = os.fstat(fd)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class FileWatch:
    """Watches one database file. `backfilled` is always the number of WAL frames that are in it, by SQLite's count."""

    def __init__(self) -> None:
        self._known: FileStatus | None = None
        self._backfilled = 0
        self._is_young = False  # a write within the same clock tick would not show
        self._is_sample_due = False
        self._unexplained_s: float | None = None  # when a change was seen that nothing has explained yet

    @property
    def is_unexplained(self) -> bool:
        """True if a change of the file is not explained yet."""
        return self._unexplained_s is not None

    def note(self, status: FileStatus, *, backfilled: int) -> None:
        """Record the status that the file has now."""
        self._known, self._backfilled = status, backfilled
        self._is_young = _is_young(status)

    def is_certain(self, status: FileStatus) -> bool:
        """True if nothing is in doubt, and any later write will show."""
        return status == self._known and not (self._is_young or self._is_sample_due or self.is_unexplained)

    def is_due(self, status: FileStatus) -> bool:
        """True if something can be compared now that could not be compared before."""
        if status != self._known or self._is_sample_due or (self._is_young and not _is_young(status)):
            return True
        return self._unexplained_s is not None and time.monotonic() >= self._unexplained_s + EXPLAIN_WITHIN_S

    def judge(self, status: FileStatus, *, backfilled: int, was_held: bool = True) -> None:
        """Compare with the status that was noted last, and note this one.

        Unless a read `was_held` since, a checkpoint of another program may have ended and the WAL begun anew, without a
        trace in the count.
        """
        before = self._known
        if before is not None:
            if backfilled not in (0, self._backfilled):
                self._unexplained_s = None
            elif was_held and self._unexplained_s is None and _was_written(before, status):
                self._unexplained_s = time.monotonic()
            self._is_sample_due = self._is_sample_due or self._is_young or status != before
        self.note(status, backfilled=backfilled)

    def take_doubt(self) -> Doubt:
        """Return what is in doubt, for the caller to compare. An unexplained change stays in doubt until it is due."""
        since_s = self._unexplained_s
        if since_s is not None and time.monotonic() >= since_s + EXPLAIN_WITHIN_S:
            self._unexplained_s, self._is_sample_due = None, False
            return Doubt.WHOLE
        is_due, self._is_sample_due = self._is_sample_due, False
        return Doubt.SAMPLE if is_due else Doubt.NONE

    def give_back(self, doubt: Doubt) -> None:
        """Record that what `take_doubt` returned could not be compared: it stays in doubt."""
        if doubt is Doubt.WHOLE:
            self._unexplained_s = time.monotonic() - EXPLAIN_WITHIN_S
        elif doubt is Doubt.SAMPLE:
            self._is_sample_due = True


def _was_written(before: FileStatus, status: FileStatus) -> bool:
    """True unless only owner, mode or links have changed."""
    return (status.size, status.mtime_ns) != (before.size, before.mtime_ns)


def _is_young(status: FileStatus) -> bool:
    return abs(time.time_ns() - status.ctime_ns) <= MTIME_GRANULARITY_NS
