"""When which files are merged into which level. Pure policy: a listing and a time in, compactions out.

Level 0 has a file a TXID. Every higher level merges what the one below has gained since, at an interval of its own,
aligned to the clock in UTC; level 9 holds snapshots, whole databases. Merging copies: what becomes superfluous by
it, `retention.py` deletes later.

A level grows at its end only, and no file of it reaches across the end of a higher level: each new file begins behind
the greatest TXID of its own level and of all above, snapshots aside. Whoever compacts on top of it, Litestream
included, asks for files that begin behind its own end; one that straddles it would be passed over, with a gap where
it lay. Where an input straddles the end, the result's name begins behind it all the same: the input's pages are right
from there on, since a page written again with the value it has changes nothing.

Where the level below has a gap, files of still lower levels bridge it, or else a snapshot, behind which the level goes
on. A gap that nothing bridges is not skipped: what is missing may turn up, or be published yet.
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
"""Of levels 1 to 3: Litestream's defaults. A restore reads at most 10 + 10 + 12 + 24 files behind a snapshot,
besides those of the last half minute."""

SNAPSHOT_INTERVAL_MS = DAY_MS
"""Litestream's default."""

MAX_LEVEL = SNAPSHOT_LEVEL - 1


@dataclass(frozen=True, slots=True)
class Levels:
    """The intervals of levels 1, 2, …, and that of snapshots; None means no snapshots. Raises `UsageError`."""

    intervals_ms: tuple[int, ...] = INTERVALS_MS
    snapshot_interval_ms: int | None = SNAPSHOT_INTERVAL_MS

    def __post_init__(self) -> None:
        if len(self.intervals_ms) > MAX_LEVEL:
            raise UsageError(f"there are {len(self.intervals_ms)} levels", hint=f"configure at most {MAX_LEVEL}")
        for interval_ms in (*self.intervals_ms, self.snapshot_interval_ms):
            if interval_ms is not None and interval_ms <= 0:
                raise UsageError(f"the interval of a level is {interval_ms} ms", hint="write one above zero")


@dataclass(frozen=True, slots=True)
class Compaction:
    """Files, oldest first, to be merged into one of `level` that begins at `min_txid`.

    They are contiguous or overlap; the first may begin before `min_txid`.
    """

    level: int
    min_txid: TXID
    inputs: tuple[FileInfo, ...]

    @property
    def max_txid(self) -> TXID:
        return self.inputs[-1].max_txid

    @property
    def size(self) -> int:
        """Bytes of the inputs."""
        return sum(info.size for info in self.inputs)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A compaction, and when it is due: `due_ms` since the epoch, by the clock that the files' times are of."""

    due_ms: int
    compaction: Compaction


def schedule(levels: Levels, files: Sequence[FileInfo]) -> list[Scheduled]:
    """Returns all compactions that will be due, lowest level first; at most one a level.

    `files` are those of all levels. A level is due at the first multiple of its interval behind the oldest of its
    inputs; then it takes all that there is, as Litestream does. So it is due once an interval, however often one
    asks, and an idle database never.
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
    """Returns the compactions that are due at `now_ms`, lowest level first. All that compacts by time asks here."""
    return [each.compaction for each in schedule(levels, files) if each.due_ms <= now_ms]


def next_compaction_ms(levels: Levels, files: Sequence[FileInfo]) -> int | None:
    """Returns when the next compaction is due, if no further file appears; None: never."""
    return min((each.due_ms for each in schedule(levels, files)), default=None)


def first_step(compaction: Compaction, *, max_inputs: int, max_bytes: int) -> Compaction:
    """The same compaction, of its first inputs: at most so many, and so many bytes unless it is one.

    A level may end anywhere; what is left is merged afterwards. A snapshot is left whole: its beginning is as large
    as the database, and would be written with each step.
    """
    if compaction.level == SNAPSHOT_LEVEL:
        return compaction
    sizes = accumulate(info.size for info in compaction.inputs[:max_inputs])
    count = sum(1 for size in sizes if size <= max_bytes)
    return replace(compaction, inputs=compaction.inputs[: max(1, count)])


def next_compaction(files: Sequence[FileInfo], level: int) -> Compaction | None:
    """Returns the compaction of what the level below has after the end of `level`, due or not; None if nothing."""
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
    """Returns the compaction to a snapshot of the newest TXID that can be reached; None if there is one already.

    Raises `NoReplica`, and `GapError` when no file begins at TXID 1.
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
