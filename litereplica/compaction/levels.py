"""Decides when which files are merged into which level. Pure: a listing and a time in, compactions out.

`writer/maintenance.py` asks `due_compactions` and runs them.

Level 0 has one file for each TXID. Every higher level merges the new files of the level below at its own interval,
aligned to the clock in UTC; level 9 has snapshots, which contain the whole database. Merging copies transactions:
`retention.py` decides later which inputs are superfluous.

A level grows only at its end, and none of its files straddles the end of a higher level: each new file begins after the
greatest TXID of its own and all higher levels, except snapshots. The reason is that compactors, including Litestream's,
take only files that begin after the end of their own level; a file that straddles it would be skipped, and leave a gap.
If an input straddles the end, the name of the result begins after the end nevertheless: the input's pages are right
from there on, since writing a page again with the same content changes nothing.

If the level below has a gap, files of lower levels bridge it, or a snapshot, after which the level continues. A gap
that nothing bridges is not skipped: the missing file may still appear or be published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from litereplica.errors import ReplicaError, UsageError
from litereplica.format.names import SNAPSHOT_LEVEL
from litereplica.ltxstore.plan import plan_newest, plan_steps
from litereplica.times import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from litereplica.types import TXID, FileInfo

INTERVALS_MS = (30 * SECOND_MS, 5 * MINUTE_MS, HOUR_MS)
"""Those of levels 1 to 3: Litestream's defaults. A restore reads at most 10 + 10 + 12 + 24 files after a snapshot, and
those of the last half minute."""

SNAPSHOT_INTERVAL_MS = DAY_MS
"""Litestream's default."""

MAX_LEVEL = SNAPSHOT_LEVEL - 1


@dataclass(frozen=True, slots=True)
class Levels:
    """The intervals of levels 1, 2, …, and that of snapshots; None means no snapshots.

    Raises:
        UsageError: there are too many levels, or an interval is not greater than zero.
    """

    intervals_ms: tuple[int, ...] = INTERVALS_MS
    snapshot_interval_ms: int | None = SNAPSHOT_INTERVAL_MS

    def __post_init__(self) -> None:
        if len(self.intervals_ms) > MAX_LEVEL:
            raise UsageError(f"there are {len(self.intervals_ms)} levels", hint=f"configure at most {MAX_LEVEL}")
        for interval_ms in (*self.intervals_ms, self.snapshot_interval_ms):
            if interval_ms is not None and interval_ms <= 0:
                raise UsageError(f"the interval of a level is {interval_ms} ms", hint="write one greater than zero")


@dataclass(frozen=True, slots=True)
class Compaction:
    """Files to be merged, oldest first, into one file of `level` that begins at `min_txid`.

    They are contiguous or overlap; the first one may begin before `min_txid`.
    """

    level: int
    min_txid: TXID
    inputs: tuple[FileInfo, ...]

    @property
    def max_txid(self) -> TXID:
        """The max TXID of the result."""
        return self.inputs[-1].max_txid

    @property
    def size(self) -> int:
        """Total size of the inputs in bytes."""
        return sum(info.size for info in self.inputs)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A compaction and the time when it is due: `due_ms` since the epoch, by the clock of the files' times."""

    due_ms: int
    compaction: Compaction


def schedule(levels: Levels, files: Sequence[FileInfo]) -> list[Scheduled]:
    """Return all compactions that are or will be due, lowest level first; at most one for each level.

    `files` are those of all levels. A level is due at the first multiple of its interval after its oldest input, and
    then takes all inputs, as in Litestream. So it is due at most once an interval, and never for an idle database.
    """
    scheduled = []
    for level, interval_ms in enumerate(levels.intervals_ms, start=1):
        compaction = next_compaction(files, level)
        if compaction is not None:
            scheduled.append(Scheduled(_due_ms(compaction.inputs, interval_ms), compaction))
    snapshot = _next_snapshot_if_any(files)
    if snapshot is not None and levels.snapshot_interval_ms is not None:
        changes = [info for info in snapshot.inputs if info.level != SNAPSHOT_LEVEL]
        scheduled.append(Scheduled(_due_ms(changes, levels.snapshot_interval_ms), snapshot))
    return scheduled


def due_compactions(levels: Levels, files: Sequence[FileInfo], now_ms: int) -> list[Compaction]:
    """Return the compactions that are due at `now_ms`, lowest level first."""
    return [each.compaction for each in schedule(levels, files) if each.due_ms <= now_ms]


def next_compaction_ms(levels: Levels, files: Sequence[FileInfo]) -> int | None:
    """Return when the next compaction is due if no further file appears; None: never."""
    return min((each.due_ms for each in schedule(levels, files)), default=None)


def first_step(compaction: Compaction, *, max_inputs: int, max_bytes: int) -> Compaction:
    """Return the compaction with its first inputs only: at most `max_inputs`, and `max_bytes` unless there is only one.

    The other inputs can be merged afterwards. A snapshot is not divided: each step would write the whole database.
    """
    if compaction.level == SNAPSHOT_LEVEL:
        return compaction
    sizes = accumulate(info.size for info in compaction.inputs[:max_inputs])
    count = sum(1 for size in sizes if size <= max_bytes)
    return replace(compaction, inputs=compaction.inputs[: max(1, count)])


def next_compaction(files: Sequence[FileInfo], level: int) -> Compaction | None:
    """Return the compaction of the files that the level below has after the end of `level`; None if there are none."""
    end = max((info.max_txid for info in files if level <= info.level <= MAX_LEVEL), default=0)
    source_end = max((info.max_txid for info in files if info.level == level - 1), default=0)
    sources = [info for info in files if info.level < level and end < info.max_txid <= source_end]
    snapshots = sorted(info.max_txid for info in files if info.is_snapshot and info.max_txid > end)
    for position in (end, *snapshots):
        steps = plan_steps(sources, after=position)
        if steps:
            return Compaction(level, position + 1, tuple(steps))
    return None


def next_snapshot(files: Sequence[FileInfo]) -> Compaction | None:
    """Return the compaction to a snapshot of the newest TXID that can be reached; None if that has a snapshot.

    Raises `NoReplica`, and `GapError` if no file begins at TXID 1.
    """
    plan = plan_newest(files)
    if len(plan) == 1 and plan[0].is_snapshot:
        return None
    return Compaction(SNAPSHOT_LEVEL, 1, tuple(plan))


def _next_snapshot_if_any(files: Sequence[FileInfo]) -> Compaction | None:
    try:
        return next_snapshot(files)
    except ReplicaError:
        return None


def _due_ms(inputs: Sequence[FileInfo], interval_ms: int) -> int:
    oldest_ms = min(info.modified_ms for info in inputs)
    return (oldest_ms // interval_ms + 1) * interval_ms
