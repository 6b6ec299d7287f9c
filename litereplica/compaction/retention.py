"""Decides which files of a replica are superfluous. Pure: files, policy and time in, deletions out.

The policy promises that the replica can be restored to

- every published transaction for `l0_ms`. Candidates for deletion are older files of level 0 whose transactions are in
  a higher level;
- every TXID at which a file of a higher level ends, for `snapshot_ms`. Candidates are the files of all levels that end
  before the newest snapshot of that age; this snapshot is kept, since later transactions are applied to it;
- after that, one point for each interval of a tier. The files needed to restore these points are no candidates.

The last file of a level is never a candidate, since positions are read from it. Some candidates are kept: every TXID at
which a remaining file ends, and which can be restored now, must be restorable from the remaining files alone. The other
candidates are deleted one by one, from the newest to the oldest. So the same holds after each single deletion: a file
is deleted before the files on which it depends.

Ages are never overestimated. A file counts as no older than any file before it; one that appeared while the process
ran, as no older than that; and time passes no faster than the machine's uptime, even if its clock is set. A file's age
comes from the listing: on S3 from the time of the upload, so that all files of a copied bucket are young. `pruner.py`
carries the deletions out.
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
"""Litestream's default: a reader that polls level 0 may pause for this long and still continue file by file."""

SNAPSHOT_RETENTION_MS = DAY_MS
"""Litestream's default."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One point for each interval of `every_ms` is kept until it is `keep_ms` old."""

    every_ms: int
    keep_ms: int


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long files are kept; None means for ever.

    For example everything for a day, hourly points for a week, daily points for a year:
    `RetentionPolicy(snapshot_ms=DAY_MS, tiers=(Tier(HOUR_MS, 7 * DAY_MS), Tier(DAY_MS, 365 * DAY_MS)))`.

    Raises:
        UsageError: a period is not greater than zero, or there are tiers although everything is kept for ever.
    """

    l0_ms: int | None = L0_RETENTION_MS
    snapshot_ms: int | None = SNAPSHOT_RETENTION_MS
    tiers: tuple[Tier, ...] = ()

    def __post_init__(self) -> None:
        periods = [self.l0_ms, self.snapshot_ms, *(ms for tier in self.tiers for ms in (tier.every_ms, tier.keep_ms))]
        if any(ms is not None and ms <= 0 for ms in periods):
            raise UsageError("a retention period is not greater than zero", hint="write one that is, or 'never'")
        if self.tiers and self.snapshot_ms is None:
            raise UsageError("retention tiers are configured, but everything is kept for ever", hint="remove either")


NEVER = RetentionPolicy(l0_ms=None, snapshot_ms=None)
"""Nothing is ever deleted."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """A file to delete, and a remaining file that contains its last transaction."""

    info: FileInfo
    covered_by: FileInfo


def due_deletions(files: Sequence[FileInfo], policy: RetentionPolicy, now_ms: int) -> list[Deletion]:
    """Return the files to delete now, one by one in this order. `files` are those of all levels."""
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
    """Return the first time after `now_ms` at which `due_deletions` may find more than now; None: never."""
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
    """The files in the order of their max TXIDs, and which of these can be restored."""

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
        """The result of `plan_restore`, without examining the files before the newest snapshot."""
        row = bisect_right(self._snapshot_ends, target)
        base = self.snapshots[row - 1 : row]
        first = bisect_right(self._ends, base[0].max_txid) if base else 0
        return plan_restore([*base, *self.by_end[first : bisect_right(self._ends, target)]], target=target)

    def completed(self, kept: set[FileInfo]) -> set[FileInfo]:
        """These files, and the others that are needed to restore each of their max TXIDs that can be restored now.

        TXIDs are handled in ascending order. The plan for one adds files with further max TXIDs, which can all be
        restored, since each prefix of a plan is a plan.
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
    """Finds the files that contain a TXID."""

    def __init__(self, files: Iterable[FileInfo]) -> None:
        self._files = sorted(files, key=attrgetter("max_txid"))
        self._ends = [info.max_txid for info in self._files]
        starts = [info.min_txid for info in reversed(self._files)]
        self._first_start = list(accumulate(starts, min))[::-1]  # by row: of the files from there on

    def contain(self, txid: TXID) -> bool:
        row = bisect_left(self._ends, txid)
        return row < len(self._files) and self._first_start[row] <= txid

    def containing(self, txid: TXID) -> FileInfo:
        """The file with the smallest max TXID that contains this TXID. There must be one."""
        row = bisect_left(self._ends, txid)
        return next(info for info in islice(self._files, row, None) if info.min_txid <= txid)


def _expired_l0(
    history: _History, policy: RetentionPolicy, born: dict[FileInfo, int], now_ms: int
) -> Iterable[FileInfo]:
    """Files of level 0 that are old enough, or before one that is, and whose last TXID is in a higher level."""
    if policy.l0_ms is None:
        return []
    level0 = [info for info in history.by_end if info.level == 0]
    count = max((row for row, info in enumerate(level0, 1) if now_ms - born[info] >= policy.l0_ms), default=0)
    above = _Intervals(
        info for info in history.by_end if 0 < info.level < SNAPSHOT_LEVEL and history.is_reachable(info)
    )
    return [info for info in level0[:count] if above.contain(info.max_txid)]


def _expired(history: _History, policy: RetentionPolicy, born: dict[FileInfo, int], now_ms: int) -> Iterable[FileInfo]:
    """Files that end before the newest snapshot that is old enough, except those that the points of tiers need."""
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
    """For each interval the point of the highest level, which takes the fewest files; of several, the last one."""
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
    """The earliest time at which each file can have been made: as listed, and not before any file that ends before it.

    A listed time in the future does not count for later files.
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
