"""Whether a replica is sound: what is wrong with its files, and what that means for restoring.

A listing promises points: every TXID to which its files lead. Each must be restorable from files that pass every check,
with every page of the database supplied; if not, that is an error, as is a file beyond a gap, which promised to be a
point when it was written. What a replica loses on purpose is none: level 0 after it was compacted, what lies before
the oldest snapshot, the last file of a level that is kept whatever comes.

Files come and go while they are looked at. One that vanishes is no problem in itself: the replica is listed again, and
judged by a listing of which everything could be read. A gap must be in two listings.

`coverage.py` compares what files hold, `file_scan.py` reads it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby, pairwise
from operator import attrgetter, itemgetter

import trio

from litereplica.errors import DamagedFile, FileVanished
from litereplica.format import names
from litereplica.format.names import SNAPSHOT_LEVEL, format_txid
from litereplica.history.coverage import Contents, PageRange, difference, restore_steps, sources, uncovered
from litereplica.history.file_scan import Answer, Read, read_indexes, read_whole, wrong_sums
from litereplica.ltxstore.frame_checksums import parse_sums_key, sums_key
from litereplica.ltxstore.lease import LOCK_KEY
from litereplica.ltxstore.plan import reachable_txids, require_files
from litereplica.ltxstore.progress import Progress, no_progress
from litereplica.ltxstore.replan import Listing, plan_and_read
from litereplica.ltxstore.store import LTXStore
from litereplica.types import TXID, FileInfo, FileName

MAX_FOREIGN = 20
"""Directories of foreign objects that are named; a bucket may hold anything."""

_NOTHING_LOST = "nothing is lost: other files have its transactions"
_NO_MATTER = "no matter for restoring"


class Severity(IntEnum):
    """The severity of a problem. ERROR: a point cannot be restored, or a file has changed; WARNING: later operations
    may suffer; NOTE: an explanation of what was found."""

    ERROR = 0
    WARNING = 1
    NOTE = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with the object `key`, and what it means. `lost` are points, the first and the last of a run."""

    severity: Severity
    key: str
    what: str
    means: str
    lost: tuple[TXID, TXID] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at: the files that were listed, their bytes, the points that they promise; and the problems,
    the worst first."""

    files: int
    size: int
    points: int
    newest: TXID
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> int:
        return sum(problem.severity is Severity.ERROR for problem in self.problems)


async def verify(store: LTXStore, *, quick: bool = False, progress: Progress | None = None) -> Report:
    """Check all files of a replica, and what they add up to.

    Every file is read whole. With `quick`, of files above `store.WHOLE_FILE_LIMIT` bytes only headers and page indexes
    are: nothing is known about their pages then. Raises `NoReplica` and the errors of storage.
    """
    read = read_indexes if quick else read_whole
    answers: dict[FileInfo, Answer] = {}
    seen_gaps: set[FileInfo] = set()
    listing = _Listing([], set(), [])

    async def list_files(*, in_order: bool) -> list[FileInfo]:
        nonlocal listing
        listing = await _list(store)
        return listing.files

    async def choose(listed: Listing) -> Sequence[FileInfo]:
        return listed.listed

    async def read_all(files: Sequence[FileInfo]) -> None:
        await _read_new(store, files, answers, read, progress or no_progress)
        gaps = _unreachable(files)
        gone = {info for info in files if not isinstance(answers[info], Contents | DamagedFile)}
        if gone or gaps - seen_gaps:
            seen_gaps.update(gaps)
            raise FileVanished(f"{len(gone)} files of {store.url} have gone, {len(gaps)} are behind a gap")

    with suppress(FileVanished):  # after so many listings, what cannot be read is missing
        await plan_and_read(store, choose, read_all, list_files=list_files)
    judge = _Judge(store, listing, answers, await _wrong_sums(store, listing, answers))
    problems = await trio.to_thread.run_sync(lambda: sorted(judge.problems(), key=lambda problem: problem.severity))
    points = reachable_txids(listing.files)
    newest = max(info.max_txid for info in listing.files)
    return Report(len(listing.files), sum(info.size for info in listing.files), len(points), newest, tuple(problems))


@dataclass(frozen=True, slots=True)
class _Listing:
    """The files, ascending by max TXID; the names of those that sums are of; and the keys of all else."""

    files: list[FileInfo]
    sums: set[FileName]
    foreign: list[str]


async def _list(store: LTXStore) -> _Listing:
    """One listing of everything. Keys come in the order of the levels, so a file that is being compacted is in it, in
    its old level or in its new one. Raises `NoReplica`."""
    prefixes = {names.level_prefix(store.layout, level): level for level in names.LEVELS}
    files, sums, foreign = [], set(), []
    for item in await store.storage.list(""):
        directory, slash, name = item.key.rpartition("/")
        level, txids = prefixes.get(directory + slash), names.parse_name(name)
        if level is not None and txids is not None:
            files.append(FileInfo(level, *txids, item.size, item.modified_ms))
        elif (name_of_sums := parse_sums_key(item.key)) is not None:
            sums.add(name_of_sums)
        elif item.key != LOCK_KEY:
            foreign.append(item.key)
    require_files(files)
    files.sort(key=attrgetter("max_txid", "min_txid", "level"))
    return _Listing(files, sums, foreign)


async def _read_new(
    store: LTXStore, files: Sequence[FileInfo], answers: dict[FileInfo, Answer], read: Read, progress: Progress
) -> None:
    """Read the files that were not read to their ends."""
    unread = [info for info in files if not isinstance(answers.get(info), Contents | DamagedFile)]
    if unread:
        with progress(sum(info.size for info in unread)) as advance:
            answers.update(await read(store, unread, advance))


async def _wrong_sums(store: LTXStore, listing: _Listing, answers: Mapping[FileInfo, Answer]) -> dict[FileInfo, str]:
    """The files whose sums are no good, and why."""
    having = (info for info in listing.files if info.name in listing.sums)
    return await wrong_sums(store, {info: held for info in having if isinstance(held := answers[info], Contents)})


class _Judge:
    """The problems of one listing."""

    def __init__(
        self,
        store: LTXStore,
        listing: _Listing,
        answers: Mapping[FileInfo, Answer],
        sums: Mapping[FileInfo, str],
    ) -> None:
        self._store = store
        self._files = listing.files
        self._foreign = listing.foreign
        self._wrong_sums = sums
        self._orphan_sums = listing.sums - {info.name for info in listing.files}
        self._answers = answers
        self._contents = {info: held for info in listing.files if isinstance(held := answers[info], Contents)}
        self._points = reachable_txids(listing.files)
        self._steps = restore_steps(self._contents)
        self._lacking = uncovered(self._steps, self._contents)
        sound = {step.txid for step in self._steps} - set(self._lacking)
        self._lost_runs = _runs(self._points, lambda txid: txid not in sound)
        self._last = {info.level: info.max_txid for info in listing.files}  # of each level

    def problems(self) -> Iterator[Problem]:
        yield from self._bad_files()
        yield from self._gaps()
        yield from self._missing_pages()
        yield from self._wrong_merges()
        for level, group in groupby(sorted(self._files, key=attrgetter("name")), key=attrgetter("level")):
            yield from self._shape(level, list(group))
        yield from self._sums()
        yield from self._clock()
        yield from self._foreign_objects()

    def _bad_files(self) -> Iterator[Problem]:
        for info in self._files:
            answer = self._answers[info]
            if isinstance(answer, Contents):
                continue
            run = self._lost_run(info.max_txid)
            what = answer.reason if isinstance(answer, DamagedFile) else "is listed, but is not there"
            means = _cannot_be_restored(run) if run else _NOTHING_LOST
            yield Problem(Severity.ERROR, self._store.key(info), what, means, run)

    def _lost_run(self, txid: TXID) -> tuple[TXID, TXID] | None:
        """The run of lost points that has this one."""
        row = bisect_right(self._lost_runs, txid, key=itemgetter(0))
        return self._lost_runs[row - 1] if row and txid <= self._lost_runs[row - 1][1] else None

    def _gaps(self) -> Iterator[Problem]:
        """Files to whose end no other files lead."""
        reachable = set(self._points)
        before = 0
        for is_point, group in groupby(self._files, key=lambda info: info.max_txid in reachable):
            run = list(group)
            if not is_point:
                yield from self._gap(before, run)
            before = run[-1].max_txid

    def _gap(self, before: TXID, run: Sequence[FileInfo]) -> Iterator[Problem]:
        """`run` are files beyond a gap that begins behind `before`."""
        left_over = [info for info in run if self._is_left_over(info)]
        if left_over:
            more = f", and {len(left_over) - 1} more up to TXID {format_txid(left_over[-1].max_txid)}: "
            what = "is left over" + (more if len(left_over) > 1 else ": ") + "the files before were deleted"
            means = f"{_NO_MATTER}: newer snapshots replace them"
            yield Problem(Severity.NOTE, self._store.key(left_over[0]), what, means)
        rest = [info for info in run if info not in left_over]
        if rest:
            start = min(info.min_txid for info in rest)
            lost = (rest[0].max_txid, rest[-1].max_txid)
            missing = _span("TXID", before + 1, start - 1)
            yield Problem(
                Severity.ERROR,
                self._store.key(rest[0]),
                f"lies beyond a gap: no file has {missing}",
                _cannot_be_restored(lost),
                lost,
            )

    def _is_left_over(self, info: FileInfo) -> bool:
        """True if retention keeps the file as the last of its level, or has not deleted it yet."""
        if not self._points or info.max_txid > self._points[-1]:
            return False
        return info.max_txid < self._points[0] or info.max_txid == self._last[info.level]

    def _missing_pages(self) -> Iterator[Problem]:
        """Points whose plans do not supply every page: one problem for each run of them."""
        by_txid = {step.txid: step for step in self._steps}
        for lost in _runs(self._points, self._lacking.__contains__):
            key = self._store.key(by_txid[lost[0]].info)
            what = f"neither it nor a file before it supplies {_pages(self._lacking[lost[0]])}"
            yield Problem(Severity.ERROR, key, what, _cannot_be_restored(lost), lost)

    def _wrong_merges(self) -> Iterator[Problem]:
        """Files that do not say the same as those that they were merged from, as far as these are still there."""
        good = list(self._contents)
        for info in good:
            chain = sources(info, good) if info.level else []
            if not chain:
                continue
            merged, inputs = self._contents[info], [self._contents[each] for each in chain]
            how = difference(merged, inputs)
            if how is not None:
                means = "one of them is wrong, and points that are restored from it are"
                yield Problem(Severity.ERROR, self._store.key(info), how, means)
            elif info.level < SNAPSHOT_LEVEL and merged.header.timestamp_ms != inputs[-1].header.timestamp_ms:
                what = "has another time than the last of the files it was merged from"
                yield Problem(Severity.WARNING, self._store.key(info), what, "--timestamp may find another point")

    def _shape(self, level: int, files: Sequence[FileInfo]) -> Iterator[Problem]:
        """What is odd about the files of a level, ascending by (min, max)."""
        if level == SNAPSHOT_LEVEL:
            yield from self._partial_snapshots(files)
            return
        above = max((info.max_txid for info in self._files if info.level == level + 1), default=0)
        for info in files:
            if level == 0 and info.min_txid != info.max_txid:
                what = "has several TXIDs, though it is in level 0"
                yield Problem(Severity.WARNING, self._store.key(info), what, "readers that poll do not find it at once")
            if 0 < level < SNAPSHOT_LEVEL - 1 and info.min_txid <= above < info.max_txid:
                what = f"straddles TXID {format_txid(above)}, where level {level + 1} ends"
                means = f"{_NO_MATTER}, but Litestream passes it over when it compacts and leaves a gap in that level"
                yield Problem(Severity.WARNING, self._store.key(info), what, means)
        yield from self._neighbours(level, files)

    def _partial_snapshots(self, files: Sequence[FileInfo]) -> Iterator[Problem]:
        for info in files:
            if info.min_txid != 1:
                what = "does not begin at TXID 1, though it is in the level of snapshots"
                yield Problem(Severity.WARNING, self._store.key(info), what, "it is not used as a snapshot")

    def _neighbours(self, level: int, files: Sequence[FileInfo]) -> Iterator[Problem]:
        points = set(self._points)
        furthest = files[0]
        for info in files[1:]:
            key = self._store.key(info)
            if info.min_txid <= furthest.max_txid:
                both = _span("TXID", info.min_txid, min(info.max_txid, furthest.max_txid))
                what = f"overlaps {self._store.key(furthest)}: both have {both}"
                yield Problem(Severity.WARNING, key, what, _NO_MATTER)
            elif info.min_txid > furthest.max_txid + 1 and info.max_txid in points:
                missing = _span("TXID", furthest.max_txid + 1, info.min_txid - 1)
                what = f"follows a gap in level {level}, {missing}"
                yield Problem(Severity.NOTE, key, what, f"{_NO_MATTER}: other files lead across")
            furthest = max(furthest, info, key=attrgetter("max_txid"))

    def _sums(self) -> Iterator[Problem]:
        """Sums beside large files: no restore needs them, but mounts check single pages by them."""
        for info, reason in self._wrong_sums.items():
            means = f"{_NO_MATTER}, but mounts cannot check single pages of {self._store.key(info)}"
            yield Problem(Severity.WARNING, sums_key(info), f"these sums {reason}", means)
        if self._orphan_sums:
            level, low, high = min(self._orphan_sums)
            more = f" (nor are those of {len(self._orphan_sums) - 1} more)" if len(self._orphan_sums) > 1 else ""
            what = f"the file that these sums are of is not there{more}"
            yield Problem(Severity.NOTE, sums_key(FileInfo(level, low, high, 0)), what, "retention removes them")

    def _clock(self) -> Iterator[Problem]:
        """Times that decrease from one point to the next."""
        times = [(step, self._contents[step.info].header.timestamp_ms) for step in self._steps]
        back = [after[0] for before, after in pairwise(times) if after[1] < before[1]]
        if back:
            times_text = "once" if len(back) == 1 else f"{len(back)} times"
            what = f"is older than the point before it: the writer's clock was set back {times_text}"
            yield Problem(
                Severity.NOTE, self._store.key(back[0].info), what, "a time may name more than one point around there"
            )

    def _foreign_objects(self) -> Iterator[Problem]:
        prefixes = {names.level_prefix(self._store.layout, level) for level in names.LEVELS}
        by_directory: dict[str, list[str]] = {}
        for key in self._foreign:
            directory, slash, _ = key.rpartition("/")
            by_directory.setdefault(directory + slash, []).append(key)
        for directory, keys in list(by_directory.items())[:MAX_FOREIGN]:
            what = "is not named like an LTX file" if directory in prefixes else "is no file of this replica"
            more = f" (nor are {len(keys) - 1} more in {directory or 'its root'})" if len(keys) > 1 else ""
            yield Problem(Severity.NOTE, keys[0], what + more, "it is ignored")
        if len(by_directory) > MAX_FOREIGN:
            count = len(by_directory) - MAX_FOREIGN
            yield Problem(Severity.NOTE, "", f"{count} more directories hold foreign objects", "they are ignored")


def _unreachable(files: Iterable[FileInfo]) -> set[FileInfo]:
    files = list(files)
    points = set(reachable_txids(files))
    return {info for info in files if info.max_txid not in points}


def _runs(points: Iterable[TXID], chosen: Callable[[TXID], bool]) -> list[tuple[TXID, TXID]]:
    """The first and the last of each run of points that are chosen, ascending."""
    runs = [list(group) for is_chosen, group in groupby(points, key=chosen) if is_chosen]
    return [(run[0], run[-1]) for run in runs]


def _cannot_be_restored(lost: tuple[TXID, TXID]) -> str:
    return f"{_span('TXID', *lost)} cannot be restored"


def _span(what: str, first: TXID, last: TXID) -> str:
    if first == last:
        return f"{what} {format_txid(first)}"
    return f"{what}s {format_txid(first)}-{format_txid(last)}"


def _pages(ranges: Sequence[PageRange]) -> str:
    first, last = ranges[0]
    count = sum(high - low + 1 for low, high in ranges)
    more = "" if len(ranges) == 1 else f" and others, {count} in all"
    return (f"page {first}" if first == last else f"pages {first}-{last}") + more
