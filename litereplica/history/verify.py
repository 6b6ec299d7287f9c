"""Verifies a replica: finds what is wrong with its files, and what that means for restoring.

    _list ──► file_scan (reads all files) ──► _Judge (coverage.py) ──► Report

The points of a listing are the TXIDs to which its files lead. Each must be restorable from files that pass every check,
with all pages of the database; otherwise that is an error, as is a file beyond a gap. What retention deletes is no
error: files of level 0 that were compacted, and files before the oldest snapshot; nor is the last file of a level,
which is never deleted.

Files may be added and deleted meanwhile. If one vanishes, the replica is listed again, until all files of a listing
could be read. A gap counts only if it is in two listings.
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
from litereplica.history.file_scan import Answer, Read, read_indexes, read_whole, wrong_frame_checksums
from litereplica.ltxstore.frame_checksums import frame_checksums_key, parse_frame_checksums_key
from litereplica.ltxstore.lease_record import LOCK_KEY
from litereplica.ltxstore.plan import reachable_txids, require_files
from litereplica.ltxstore.progress import Progress, no_progress
from litereplica.ltxstore.replan import Listing, plan_and_read
from litereplica.ltxstore.store import LTXStore
from litereplica.types import TXID, FileInfo, FileName

MAX_FOREIGN = 20
"""Maximum number of directories with foreign objects that are reported one by one."""

_NOTHING_LOST = "nothing is lost: other files have its transactions"
_NO_MATTER = "restoring is not affected"


class Severity(IntEnum):
    """The severity of a problem.

    ERROR: a point cannot be restored, or a file is damaged or wrong. WARNING: later operations may be affected. NOTE:
    information.
    """

    ERROR = 0
    WARNING = 1
    NOTE = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of the object `key`; `means` is its consequence, `lost` the first and last of the lost points."""

    severity: Severity
    key: str
    what: str
    means: str
    lost: tuple[TXID, TXID] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The result: number of listed files, their total size in bytes, number of points, newest TXID, and problems.

    `problems` are in the order of severity, errors first.
    """

    files: int
    size: int
    points: int
    newest: TXID
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> int:
        """Number of problems that are errors."""
        return sum(problem.severity is Severity.ERROR for problem in self.problems)


async def verify(store: LTXStore, *, quick: bool = False, progress: Progress | None = None) -> Report:
    """Check all files of a replica, and that every point can be restored from them.

    Every file is read whole. With `quick`, only header and page index are read of files larger than
    `store.WHOLE_FILE_LIMIT`; their pages are not checked then. Raises `NoReplica` and the errors of storage.
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
            raise FileVanished(f"{len(gone)} files of {store.url} have vanished, {len(gaps)} are beyond a gap")

    with suppress(FileVanished):  # after the last listing, files that cannot be read count as missing
        await plan_and_read(store, choose, read_all, list_files=list_files)
    judge = _Judge(store, listing, answers, await _wrong_frame_checksums(store, listing, answers))
    problems = await trio.to_thread.run_sync(lambda: sorted(judge.problems(), key=lambda problem: problem.severity))
    points = reachable_txids(listing.files)
    newest = max(info.max_txid for info in listing.files)
    return Report(len(listing.files), sum(info.size for info in listing.files), len(points), newest, tuple(problems))


@dataclass(frozen=True, slots=True)
class _Listing:
    """The files, ascending by max TXID; the names of files with frame checksums; and the keys of foreign objects."""

    files: list[FileInfo]
    with_checksums: set[FileName]
    foreign: list[str]


async def _list(store: LTXStore) -> _Listing:
    """List everything at once. Raises `NoReplica`.

    Keys are listed in the order of the levels, so transactions that are being compacted are in one level at least.
    """
    prefixes = {names.level_prefix(store.layout, level): level for level in names.LEVELS}
    files, with_checksums, foreign = [], set(), []
    for item in await store.storage.list(""):
        directory, slash, name = item.key.rpartition("/")
        level, txids = prefixes.get(directory + slash), names.parse_name(name)
        if level is not None and txids is not None:
            files.append(FileInfo(level, *txids, item.size, item.modified_ms))
        elif (file_name := parse_frame_checksums_key(item.key)) is not None:
            with_checksums.add(file_name)
        elif item.key != LOCK_KEY:
            foreign.append(item.key)
    require_files(files)
    files.sort(key=attrgetter("max_txid", "min_txid", "level"))
    return _Listing(files, with_checksums, foreign)


async def _read_new(
    store: LTXStore, files: Sequence[FileInfo], answers: dict[FileInfo, Answer], read: Read, progress: Progress
) -> None:
    """Read the files that have no answer yet, or had vanished."""
    unread = [info for info in files if not isinstance(answers.get(info), Contents | DamagedFile)]
    if unread:
        with progress(sum(info.size for info in unread)) as advance:
            answers.update(await read(store, unread, advance))
    damaged = [info for info in unread if isinstance(answers[info], DamagedFile)]
    if damaged:  # in transit, perhaps
        with progress(sum(info.size for info in damaged)) as advance:
            answers.update(await read(store, damaged, advance))


async def _wrong_frame_checksums(
    store: LTXStore, listing: _Listing, answers: Mapping[FileInfo, Answer]
) -> dict[FileInfo, str]:
    """The files whose sums are no good, and why."""
    having = (info for info in listing.files if info.name in listing.with_checksums)
    return await wrong_frame_checksums(
        store, {info: held for info in having if isinstance(held := answers[info], Contents)}
    )


class _Judge:
    """Finds the problems of one listing."""

    def __init__(
        self,
        store: LTXStore,
        listing: _Listing,
        answers: Mapping[FileInfo, Answer],
        wrong_checksums: Mapping[FileInfo, str],
    ) -> None:
        self._store = store
        self._files = listing.files
        self._foreign = listing.foreign
        self._wrong_frame_checksums = wrong_checksums
        self._orphan_checksums = listing.with_checksums - {info.name for info in listing.files}
        self._answers = answers
        self._contents = {info: held for info in listing.files if isinstance(held := answers[info], Contents)}
        self._points = reachable_txids(listing.files)
        self._steps = restore_steps(self._contents)
        self._lacking = uncovered(self._steps, self._contents)
        sound = {step.txid for step in self._steps} - set(self._lacking)
        self._lost_runs = _runs(self._points, lambda txid: txid not in sound)
        self._last = {info.level: info.max_txid for info in listing.files}  # of each level

    def problems(self) -> Iterator[Problem]:
        """Yield all problems."""
        yield from self._bad_files()
        yield from self._gaps()
        yield from self._missing_pages()
        yield from self._wrong_merges()
        for level, group in groupby(sorted(self._files, key=attrgetter("name")), key=attrgetter("level")):
            yield from self._shape(level, list(group))
        yield from self._frame_checksums()
        yield from self._clock()
        yield from self._foreign_objects()

    def _bad_files(self) -> Iterator[Problem]:
        for info in self._files:
            answer = self._answers[info]
            if isinstance(answer, Contents):
                continue
            run = self._lost_run(info.max_txid)
            what = answer.reason if isinstance(answer, DamagedFile) else "is listed, but does not exist"
            means = _cannot_be_restored(run) if run else _NOTHING_LOST
            yield Problem(Severity.ERROR, self._store.key(info), what, means, run)

    def _lost_run(self, txid: TXID) -> tuple[TXID, TXID] | None:
        """The run of lost points that contains this one."""
        row = bisect_right(self._lost_runs, txid, key=itemgetter(0))
        return self._lost_runs[row - 1] if row and txid <= self._lost_runs[row - 1][1] else None

    def _gaps(self) -> Iterator[Problem]:
        """Files whose last TXID is no point."""
        reachable = set(self._points)
        before = 0
        for is_point, group in groupby(self._files, key=lambda info: info.max_txid in reachable):
            run = list(group)
            if not is_point:
                yield from self._gap(before, run)
            before = run[-1].max_txid

    def _gap(self, before: TXID, run: Sequence[FileInfo]) -> Iterator[Problem]:
        """Problems of `run`, files beyond a gap that begins after TXID `before`."""
        left_over = [info for info in run if self._is_left_over(info)]
        if left_over:
            more = f", and {len(left_over) - 1} more up to TXID {format_txid(left_over[-1].max_txid)}: "
            what = "is left over" + (more if len(left_over) > 1 else ": ") + "the files before it were deleted"
            means = f"{_NO_MATTER}: newer snapshots replace them"
            yield Problem(Severity.NOTE, self._store.key(left_over[0]), what, means)
        beyond = [info for info in run if info not in left_over]
        if beyond:
            start = min(info.min_txid for info in beyond)
            lost = (beyond[0].max_txid, beyond[-1].max_txid)
            missing = _span("TXID", before + 1, start - 1)
            yield Problem(
                Severity.ERROR,
                self._store.key(beyond[0]),
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
        """Points whose plans do not supply all pages: one problem for each run of them."""
        by_txid = {step.txid: step for step in self._steps}
        for lost in _runs(self._points, self._lacking.__contains__):
            key = self._store.key(by_txid[lost[0]].info)
            what = f"neither it nor a file before it supplies {_pages(self._lacking[lost[0]])}"
            yield Problem(Severity.ERROR, key, what, _cannot_be_restored(lost), lost)

    def _wrong_merges(self) -> Iterator[Problem]:
        """Files that differ from those that they were merged from, if these still exist."""
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
                what = "has another timestamp than the last of the files it was merged from"
                yield Problem(Severity.WARNING, self._store.key(info), what, "--timestamp may find another point")

    def _shape(self, level: int, files: Sequence[FileInfo]) -> Iterator[Problem]:
        """Unusual files of a level; `files` are ascending by (min, max)."""
        if level == SNAPSHOT_LEVEL:
            yield from self._partial_snapshots(files)
            return
        above = max((info.max_txid for info in self._files if info.level == level + 1), default=0)
        for info in files:
            if level == 0 and info.min_txid != info.max_txid:
                what = "has several TXIDs, although it is in level 0"
                yield Problem(Severity.WARNING, self._store.key(info), what, "readers that poll find it late")
            if 0 < level < SNAPSHOT_LEVEL - 1 and info.min_txid <= above < info.max_txid:
                what = f"straddles TXID {format_txid(above)}, where level {level + 1} ends"
                means = f"{_NO_MATTER}, but Litestream skips it when it compacts, and leaves a gap in that level"
                yield Problem(Severity.WARNING, self._store.key(info), what, means)
        yield from self._neighbours(level, files)

    def _partial_snapshots(self, files: Sequence[FileInfo]) -> Iterator[Problem]:
        for info in files:
            if info.min_txid != 1:
                what = "does not begin at TXID 1, although it is in the level of snapshots"
                yield Problem(Severity.WARNING, self._store.key(info), what, "it is not used as a snapshot")

    def _neighbours(self, level: int, files: Sequence[FileInfo]) -> Iterator[Problem]:
        points = set(self._points)
        furthest = files[0]
        for info in files[1:]:
            key = self._store.key(info)
            if info.min_txid <= furthest.max_txid:
                both = _span("TXID", info.min_txid, min(info.max_txid, furthest.max_txid))
                what = f"overlaps {self._store.key(furthest)}: both contain {both}"
                yield Problem(Severity.WARNING, key, what, _NO_MATTER)
            elif info.min_txid > furthest.max_txid + 1 and info.max_txid in points:
                missing = _span("TXID", furthest.max_txid + 1, info.min_txid - 1)
                what = f"follows a gap in level {level}, {missing}"
                yield Problem(Severity.NOTE, key, what, f"{_NO_MATTER}: other files bridge it")
            furthest = max(furthest, info, key=attrgetter("max_txid"))

    def _frame_checksums(self) -> Iterator[Problem]:
        """Invalid frame checksums of large files: restoring does not need them, but mounts check pages by them."""
        for info, reason in self._wrong_frame_checksums.items():
            means = f"{_NO_MATTER}, but mounts cannot check single pages of {self._store.key(info)}"
            yield Problem(Severity.WARNING, frame_checksums_key(info), f"these frame checksums {reason}", means)
        if self._orphan_checksums:
            level, low, high = min(self._orphan_checksums)
            others = len(self._orphan_checksums) - 1
            more = f" (nor do those of {others} more)" if others else ""
            what = f"the file of these frame checksums does not exist{more}"
            yield Problem(
                Severity.NOTE, frame_checksums_key(FileInfo(level, low, high, 0)), what, "retention removes them"
            )

    def _clock(self) -> Iterator[Problem]:
        """Timestamps that decrease from one point to the next."""
        times = [(step, self._contents[step.info].header.timestamp_ms) for step in self._steps]
        back = [after[0] for before, after in pairwise(times) if after[1] < before[1]]
        if back:
            times_text = "once" if len(back) == 1 else f"{len(back)} times"
            what = f"is older than the point before it: the writer's clock was set back {times_text}"
            yield Problem(
                Severity.NOTE, self._store.key(back[0].info), what, "times around this point may be ambiguous"
            )

    def _foreign_objects(self) -> Iterator[Problem]:
        prefixes = {names.level_prefix(self._store.layout, level) for level in names.LEVELS}
        by_directory: dict[str, list[str]] = {}
        for key in self._foreign:
            directory, slash, _ = key.rpartition("/")
            by_directory.setdefault(directory + slash, []).append(key)
        for directory, keys in list(by_directory.items())[:MAX_FOREIGN]:
            what = (
                "does not have the name of an LTX file" if directory in prefixes else "does not belong to the replica"
            )
            more = f" ({len(keys) - 1} more in {directory or 'its root'})" if len(keys) > 1 else ""
            yield Problem(Severity.NOTE, keys[0], what + more, "it is ignored")
        if len(by_directory) > MAX_FOREIGN:
            count = len(by_directory) - MAX_FOREIGN
            yield Problem(Severity.NOTE, "", f"{count} more directories contain foreign objects", "they are ignored")


def _unreachable(files: Iterable[FileInfo]) -> set[FileInfo]:
    files = list(files)
    points = set(reachable_txids(files))
    return {info for info in files if info.max_txid not in points}


def _runs(points: Iterable[TXID], chosen: Callable[[TXID], bool]) -> list[tuple[TXID, TXID]]:
    """The first and the last of each run of chosen points, ascending."""
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
    more = "" if len(ranges) == 1 else f" and others, {count} in total"
    return (f"page {first}" if first == last else f"pages {first}-{last}") + more
