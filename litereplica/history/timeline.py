"""Finds points of a replica's history by their time.

A point is a TXID that can be restored: the last TXID of a file to which other files lead. Its time is the timestamp in
the header of that file, which is the writer's time of the transaction. All files that end at a TXID have the same
timestamp, except Litestream's snapshots, which have the time when they were made; so the file of the lowest level is
read.

Listings do not contain it: on S3 they have the time of the upload, and a file of a higher level is uploaded long after
its transactions. So headers are read: few of them, several at once.

Our writer never lets times decrease from one TXID to the next. Those of other writers may, when a clock is set back.
Even then the point that is found is before the given time, and the next point is not.

A writer whose clock was ahead dates points into the future, and goes on from there when the clock is right again. No
transaction is later than the upload of its file, or of a file that follows it. So a point whose header is later than
that by more than `CLOCK_TOLERANCE_MS` counts as of the upload (`_Clocks`). But the store's clock may be wrong instead:
uploads are believed if the newest point agrees with its upload, or lies in the future by our own clock.

A file may vanish between the listing and the read of its header. Its last TXID is then no longer a point, unless
another file ends there.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate

from litereplica.concurrent import gather, in_order
from litereplica.errors import DamagedFile, NoReplica, NotFound, PointNotFound
from litereplica.format.names import format_txid
from litereplica.ltxstore.plan import reachable_txids, require_files
from litereplica.ltxstore.store import LTXStore
from litereplica.times import MINUTE_MS, SECOND_MS, format_duration, format_time, wall_clock_ms
from litereplica.types import TXID, FileInfo

log = logging.getLogger(__name__)

PARALLEL_HEADERS = 16
"""Concurrent reads of headers: half of the connections of S3 storage."""

PROBES = 8
"""Headers read in each step of a search, which divides the remaining points by 9: 5,000 points take four steps."""

CLOCK_TOLERANCE_MS = MINUTE_MS
"""Clocks that differ by less count as right: nobody restores by a time that is more exact than the clocks are."""


async def find_txid(
    store: LTXStore,
    files: Sequence[FileInfo],
    *,
    before_ms: int,
    now_ms: int | None = None,
    warn: Callable[[str], None] = log.warning,
) -> TXID:
    """Return the newest point before a time, in milliseconds since the epoch; a point of exactly that time is not.

    `files` are those of all levels. Reads some eight headers for each factor of nine in the number of points. `warn` is
    called if the result depends on times that lie in the future of `now_ms`, by default this machine's time.

    Raises:
        PointNotFound: no point is before the time.
        NoReplica: there are no files.
        DamagedFile: a header that decides the result is damaged.
        StorageError: a request failed.
    """
    points = _points(files)
    search, newest = _Search(store, files), points[-1]
    clocks = _Clocks(files, now_ms=wall_clock_ms() if now_ms is None else now_ms)
    before, after = 0, None  # the result is `before` or one of `points`, which are between `before` and `after`
    while points:
        probes = sorted({*_evenly(points), points[-1]})
        read = await gather([partial(search.time_of, txid) for txid in probes])
        if probes[-1] == newest:
            clocks.judge(newest, read[-1])
        times = {txid: clocks.corrected(txid, time_ms) for txid, time_ms in zip(probes, read, strict=True)}
        for txid in probes:
            time_ms = times[txid]
            if time_ms is not None and time_ms >= before_ms:
                after = txid
                break
            before = txid if time_ms is not None else before
        unknown = {txid for txid, time_ms in times.items() if time_ms is None}
        points = [txid for txid in points if txid > before and (after is None or txid < after) and txid not in unknown]
    search.require_sound(before, after)
    clocks.explain(before, after, search.times, url=store.url, warn=warn)
    if before:
        return before
    if after is None:
        raise NoReplica("all files of the replica have vanished since they were listed", hint="try again")
    raise PointNotFound(
        f"the replica has no point before {format_time(before_ms)}",
        hint=f"its first point is TXID {format_txid(after)} of {format_time(search.times[after])}",
    )


async def timestamps(store: LTXStore, infos: Iterable[FileInfo]) -> dict[FileInfo, int]:
    """Return the timestamps of the files' headers, in milliseconds since the epoch, by one small request each.

    Vanished files and those with a damaged header are left out. Raises the errors of storage.
    """
    found: dict[FileInfo, int] = {}

    async def read(info: FileInfo) -> tuple[FileInfo, int | None]:
        try:
            return info, await header_timestamp(store, info)
        except (NotFound, DamagedFile):
            return info, None

    async def keep(result: tuple[FileInfo, int | None]) -> bool:
        info, timestamp_ms = result
        if timestamp_ms is not None:
            found[info] = timestamp_ms
        return True

    await in_order((partial(read, info) for info in infos), keep, width=PARALLEL_HEADERS)
    return found


async def header_timestamp(store: LTXStore, info: FileInfo) -> int:
    """Return the timestamp of a file's header. Raises `NotFound`, `DamagedFile`, and the errors of storage."""
    return (await store.read_header(info)).timestamp_ms


def require_point(files: Sequence[FileInfo], txid: TXID) -> None:
    """Raise `PointNotFound`, which names the nearest points, unless `txid` is a point; `NoReplica` without files."""
    points = _points(files)
    row = bisect_left(points, txid)
    if points[row : row + 1] == [txid]:
        return
    near = [format_txid(point) for point in (*points[max(0, row - 1) : row], *points[row : row + 1])]
    hint = f"the nearest: {' and '.join(near)}" if near else "run 'litereplica ltx --level all' to see its files"
    raise PointNotFound(f"the replica cannot be restored to TXID {format_txid(txid)}", hint=hint)


class _Search:
    """Reads the times of points on demand."""

    def __init__(self, store: LTXStore, files: Iterable[FileInfo]) -> None:
        self.times: dict[TXID, int] = {}
        self._store = store
        self._ending: dict[TXID, list[FileInfo]] = defaultdict(list)
        self._damaged: dict[TXID, DamagedFile] = {}
        for info in sorted(files, key=lambda each: each.level):
            self._ending[info.max_txid].append(info)

    async def time_of(self, txid: TXID) -> int | None:
        """The time of a point, from any file that ends there; None if all of them have vanished or are damaged."""
        for info in self._ending[txid]:
            try:
                self.times[txid] = await header_timestamp(self._store, info)
            except NotFound:
                continue
            except DamagedFile as exc:
                self._damaged[txid] = exc
                continue
            return self.times[txid]
        return None

    def require_sound(self, before: TXID, after: TXID | None) -> None:
        """Raise `DamagedFile` if the time of a point between these two is unknown: it may be the result."""
        for txid, error in self._damaged.items():
            if txid not in self.times and before < txid and (after is None or txid < after):
                raise error


class _Clocks:
    """Compares the times of points with those of their uploads, by the listing, and with this machine's."""

    def __init__(self, files: Sequence[FileInfo], *, now_ms: int) -> None:
        self._now_ms = now_ms
        ascending = sorted((info for info in files if info.modified_ms), key=lambda info: info.max_txid)
        uploads = [_end_of_second(info.modified_ms) for info in ascending]
        self._ends = [info.max_txid for info in ascending]
        self._latest_ms = [*accumulate(reversed(uploads), min)][::-1]  # of the points from `_ends[row - 1]` on
        self._at_once = {info.max_txid: info.modified_ms for info in files if info.level == 0}
        self._newest: tuple[TXID, int] | None = None
        self._believes_uploads = False

    def judge(self, newest: TXID, time_ms: int | None) -> None:
        """Decide by the newest point, and the time of its header, which clock to believe."""
        if time_ms is None:
            return
        self._newest = newest, time_ms
        uploaded_ms = self._at_once.get(newest)
        agrees = uploaded_ms is not None and abs(uploaded_ms - time_ms) <= CLOCK_TOLERANCE_MS
        self._believes_uploads = agrees or self._is_ahead(time_ms)

    def corrected(self, txid: TXID, time_ms: int | None) -> int | None:
        """Return the time of a point whose header has `time_ms`."""
        row = bisect_left(self._ends, txid)
        if time_ms is None or not self._believes_uploads or row == len(self._ends):
            return time_ms
        return self._latest_ms[row] if time_ms - self._latest_ms[row] > CLOCK_TOLERANCE_MS else time_ms

    def explain(
        self, before: TXID, after: TXID | None, times: dict[TXID, int], *, url: str, warn: Callable[[str], None]
    ) -> None:
        """Warn if points in the future are next to the result, `before`, or are the result."""
        nearby = [txid for txid in (before, after) if txid in times and self._is_ahead(times[txid])]
        if self._newest is None or not nearby:
            return
        newest, time_ms = self._newest
        ahead = format_duration((time_ms - self._now_ms) // MINUTE_MS * MINUTE_MS // SECOND_MS)
        what = f"the newest point of {url}, TXID {format_txid(newest)} of {format_time(time_ms)}, lies {ahead} in the"
        if all(self.corrected(txid, times[txid]) != times[txid] for txid in nearby):
            then = "points that are dated in the future are found by the time of their upload"
        elif before == newest:
            return
        else:
            then = (
                f"the states after TXID {format_txid(before)} are found by their TXIDs only, see 'litereplica history'"
            )
        warn(f"{what} future, because a clock is or was wrong: {then}")

    def _is_ahead(self, time_ms: int) -> bool:
        return time_ms - self._now_ms > CLOCK_TOLERANCE_MS


def _end_of_second(time_ms: int) -> int:
    """The latest time that a listing may mean: S3's have whole seconds."""
    return time_ms if time_ms % SECOND_MS else time_ms + SECOND_MS - 1


def _points(files: Sequence[FileInfo]) -> list[TXID]:
    require_files(files)
    return reachable_txids(files)


def _evenly(points: Sequence[TXID]) -> list[TXID]:
    """At most `PROBES` of the points, which divide them into equal parts."""
    if len(points) <= PROBES:
        return list(points)
    return [points[(part + 1) * len(points) // (PROBES + 1)] for part in range(PROBES)]
