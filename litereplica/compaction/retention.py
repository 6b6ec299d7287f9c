"""Which files of a replica are superfluous. Pure: files, policy and time in, deletions out; `pruner.py` deletes.

Each promise, and what the rules below nominate for deletion:

- every published transaction for `l0_ms`: files of level 0 that are older and whose transactions are in a higher
  level, in order;
- every end of a file of the higher levels for `snapshot_ms`: of all levels what ends before the newest snapshot that is
  older than that. That snapshot stays, since the transactions behind it are applied to it;
- beyond that the points of the tiers, one an interval: what is needed to restore those points stays.

The last file of a level is never nominated: positions are read from it. And nominations are not yet deletions: what
remains is made complete, so that every TXID at which a remaining file ends, and which can be restored now, can be
restored from the remaining files alone. The rest goes from the newest to the oldest, one after the other. So the same
holds after each single delete: a file that depends on another goes before it, never after.

Ages are never overestimated. A file counts as no older than any file before it, one that appeared while the process ran
as no older than that, and time passes no faster than the machine's uptime, whatever happens to its clock. The listing
tells a file's age: on S3 the time of upload, so copying a bucket makes all of it young.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from operator import attrgetter

from litereplica.errors import UsageError
from litereplica.format.names import SNAPSHOT_LEVEL
from litereplica.ltxstore.plan import plan_restore, reachable_txids
from litereplica.times import DAY_MS, MINUTE_MS
from litereplica.types import TXID, FileInfo

L0_RETENTION_MS = 5 * MINUTE_MS
"""Litestream's default: a reader that polls level 0 may be away for so long and go on file by file."""

SNAPSHOT_RETENTION_MS = DAY_MS
"""Litestream's default."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One point in time every `every_ms` is kept until it is `keep_ms` old."""

    every_ms: int
    keep_ms: int


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long files are kept; None is for ever. Raises `UsageError`.

    For example all for a day, hourly for a week, daily for a year:
    `RetentionPolicy(snapshot_ms=DAY_MS, tiers=(Tier(HOUR_MS, 7 * DAY_MS), Tier(DAY_MS, 365 * DAY_MS)))`.
    """

    l0_ms: int | None = L0_RETENTION_MS
    snapshot_ms: int | None = SNAPSHOT_RETENTION_MS
    tiers: tuple[Tier, ...] = ()

    def __post_init__(self) -> None:
        periods = [self.l0_ms, self.snapshot_ms, *(ms for tier in self.tiers for ms in (tier.every_ms, tier.keep_ms))]
        if any(ms is not None and ms <= 0 for ms in periods):
            raise UsageError("a retention period is not above zero", hint="write one that is, or 'never'")
        if self.tiers and self.snapshot_ms is None:
            raise UsageError("retention tiers are configured, but everything is kept for ever", hint="remove either")


NEVER = RetentionPolicy(l0_ms=None, snapshot_ms=None)
"""Nothing is ever deleted."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """A file to delete, and a file that stays and that has the transactions it ends with."""

    info: FileInfo
    covered_by: FileInfo


def due_deletions(files: Sequence[FileInfo], policy: RetentionPolicy, now_ms: int) -> list[Deletion]:
    """Returns the files to delete now, one by one in this order. `files` are those of all levels."""
    history = _History(files)
    born = _birth_times(files, now_ms)
    last = {level: max(info.max_txid for info in of_level) for level, of_level in _by(files, attrgetter("level"))}
    nominated = {
        info
        for info in [*_expired_l0(history, policy, born, now_ms), *_expired(history, policy, born, now_ms)]
        if info.max_txid < last[info.level]
    }
    kept = history.completed(set(files) - nominated)
    covers = _Intervals(info for info in kept if history.is_reachable(info))
    doomed = sorted(set(files) - kept, key=lambda info: (info.max_txid, info.min_txid), reverse=True)
    return [Deletion(info, covers.containing(info.max_txid)) for info in doomed]


def next_deletion_ms(files: Sequence[FileInfo], policy: RetentionPolicy, now_ms: int) -> int | None:
    """Returns the first moment after `now_ms` at which `due_deletions` may find more than now, or None."""
    history = _History(files)
    born = _birth_times(files, now_ms)
    moments: list[int] = []
    if policy.l0_ms is not None:
        moments += [born[info] + policy.l0_ms for info in history.by_end if info.level == 0]
    if policy.snapshot_ms is not None:
        first_end = min((info.max_txid for info in files), default=0)
        moments += [born[info] + policy.snapshot_ms for info in history.snapshots if info.max_txid > first_end]
    for tier in policy.tiers:
        moments += [born[info] + tier.keep_ms for info in history.by_end]
    return min((moment for moment in moments if moment > now_ms), default=None)


class _History:
    """The files by their ends, and which of these ends can be restored."""

    def __init__(self, files: Sequence[FileInfo]) -> None:
        self.by_end = sorted(files, key=attrgetter("max_txid"))
        self.snapshots = [info for info in self.by_end if info.is_snapshot]
        self.reachable = reachable_txids(files)
        self._reachable = set(self.reachable)
        self._ends = [info.max_txid for info in self.by_end]
        self._snapshot_ends = [info.max_txid for info in self.snapshots]

    def is_reachable(self, info: FileInfo) -> bool:
        return info.max_txid in self._reachable

    def plan(self, target: TXID) -> list[FileInfo]:
        """As `plan_restore`, which need not look at what lies before the newest snapshot."""
        row = bisect_right(self._snapshot_ends, target)
        base = self.snapshots[row - 1 : row]
        first = bisect_right(self._ends, base[0].max_txid) if base else 0
        return plan_restore([*base, *self.by_end[first : bisect_right(self._ends, target)]], target=target)

    def completed(self, kept: set[FileInfo]) -> set[FileInfo]:
        """These files, and what is needed besides to restore every end of them that can be restored now.

        Ends are made reachable in their order. The plan for one brings further ends along, all of them reachable: a
        plan's beginning is the plan for where it leads.
        """
        kept = set(kept)
        position = 0
        for txid, group in _by(self.by_end, attrgetter("max_txid")):
            starts = [info.min_txid for info in group if info in kept]
            if starts and txid in self._reachable:
                if min(starts) > position + 1:
                    kept.update(self.plan(txid))
                position = txid
        return kept


class _Intervals:
    """Files, to be asked which of them contains a TXID."""

    def __init__(self, files: Iterable[FileInfo]) -> None:
        self._files = sorted(files, key=attrgetter("max_txid"))
        self._ends = [info.max_txid for info in self._files]
        starts = [info.min_txid for info in reversed(self._files)]
        self._first_start = list(accumulate(starts, min))[::-1]  # by row: of the files from there on

    def contain(self, txid: TXID) -> bool:
        row = bisect_left(self._ends, txid)
        return row < len(self._files) and self._first_start[row] <= txid

    def containing(self, txid: TXID) -> FileInfo:
        """Of the files that contain a TXID the one that ends first. There must be one."""
        row = bisect_left(self._ends, txid)
        return next(info for info in islice(self._files, row, None) if info.min_txid <= txid)


def _expired_l0(
    history: _History, policy: RetentionPolicy, born: dict[FileInfo, int], now_ms: int
) -> Iterable[FileInfo]:
    """Files of level 0 that are old enough, or older than one that is, and lie in a file of the levels above."""
    if policy.l0_ms is None:
        return []
    level0 = [info for info in history.by_end if info.level == 0]
    count = max((row for row, info in enumerate(level0, 1) if now_ms - born[info] >= policy.l0_ms), default=0)
    above = _Intervals(
        info for info in history.by_end if 0 < info.level < SNAPSHOT_LEVEL and history.is_reachable(info)
    )
    return [info for info in level0[:count] if above.contain(info.max_txid)]


def _expired(history: _History, policy: RetentionPolicy, born: dict[FileInfo, int], now_ms: int) -> Iterable[FileInfo]:
    """Files that end before the newest snapshot that is old enough, but for those that the tiers' points need."""
    if policy.snapshot_ms is None:
        return []
    old = [info for info in history.snapshots if now_ms - born[info] >= policy.snapshot_ms]
    if not old:
        return []
    base = old[-1].max_txid
    needed: set[FileInfo] = set()
    for txid in _tier_points(history, policy.tiers, born, now_ms):
        if txid < base:
            needed.update(history.plan(txid))
    levels = range(1 if policy.l0_ms is None else 0, SNAPSHOT_LEVEL + 1)
    return [info for info in history.by_end if info.max_txid < base and info.level in levels and info not in needed]


def _tier_points(history: _History, tiers: Sequence[Tier], born: dict[FileInfo, int], now_ms: int) -> set[TXID]:
    """Of each interval the point that the highest level has, since it takes the fewest files; then the last one."""
    ends = _by((info for info in history.by_end if history.is_reachable(info)), attrgetter("max_txid"))
    chosen = set()
    for tier in tiers:
        best: dict[int, tuple[int, TXID]] = {}
        for txid, group in ends:
            interval = min(info.modified_ms for info in group) // tier.every_ms
            best[interval] = max(best.get(interval, (-1, 0)), (max(info.level for info in group), txid))
        points = {txid for _, txid in best.values()}
        young = (txid for txid, group in ends if now_ms - min(born[info] for info in group) < tier.keep_ms)
        chosen |= points.intersection(young)
    return chosen


def _birth_times(files: Iterable[FileInfo], now_ms: int) -> dict[FileInfo, int]:
    """When each file was made at the earliest: as listed, and not before any file that ends before it.

    A time that is still to come tells nothing of later files.
    """
    born: dict[FileInfo, int] = {}
    latest = 0
    for _, group in _by(files, attrgetter("max_txid")):
        first = min(info.modified_ms for info in group)
        if first <= now_ms:
            latest = max(latest, first)
        born |= {info: max(latest, info.modified_ms) for info in group}
    return born


def _by(files: Iterable[FileInfo], key: Callable[[FileInfo], int]) -> list[tuple[int, list[FileInfo]]]:
    """The files in groups of equal keys, ascending."""
    return [(value, list(group)) for value, group in groupby(sorted(files, key=key), key=key)]
