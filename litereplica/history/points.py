"""The points that a replica can be restored to, with facts from the headers of its files.

`select_points` lists the files and selects points; `read_points` reads one header for each, by one small request.
Several are read concurrently, and passed on in order as they arrive, so that a history of any length takes no more
memory than its listing. Pages are counted, from the index, only if there are few points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from litereplica.concurrent import in_order
from litereplica.errors import DamagedFile, NotFound, PointNotFound
from litereplica.format import ltx
from litereplica.format.names import SNAPSHOT_LEVEL
from litereplica.history.timeline import PARALLEL_HEADERS, find_txid
from litereplica.ltxstore.plan import reachable_txids, require_files
from litereplica.ltxstore.store import LTXStore, again_if_damaged, check_name
from litereplica.storage.base import ByteRange
from litereplica.types import TXID, FileInfo

SMALL_FILE_BYTES = 64 * 1024
"""A file up to this size, as most of level 0, is read whole in the same request if its index is needed."""

COUNTED_POINTS = 1000
"""If there are more points, only headers are read: 100 bytes each instead of up to 64 KiB."""


@dataclass(frozen=True, slots=True)
class Point:
    """A TXID that can be restored.

    `levels` are those with a file that ends at `txid`; `published` is the size in bytes of the one of the lowest level.
    From its header, None if it is damaged: `timestamp_ms` (since the epoch), `page_size`, and `commit`, the database's
    size in pages. `changed` is the number of pages in the file, if it is known and not a snapshot.
    """

    txid: TXID
    published: int
    levels: tuple[int, ...]
    timestamp_ms: int | None
    page_size: int | None
    commit: int | None
    changed: int | None

    @property
    def size(self) -> int | None:
        """Size of the database in bytes."""
        return None if self.page_size is None or self.commit is None else self.page_size * self.commit


@dataclass(frozen=True, slots=True)
class Selection:
    """Selected points, ascending, each with the files that end there, lowest level first.

    `total` is the number of points without the limit.
    """

    ending: dict[TXID, list[FileInfo]]
    total: int


async def select_points(
    store: LTXStore, *, since_ms: int | None = None, until_ms: int | None = None, limit: int | None = None
) -> Selection:
    """Select the points between two times (milliseconds since the epoch, both included); the newest `limit` of them.

    Lists all levels, and reads some headers for each time. Raises `NoReplica` and the errors of `timeline.find_txid`.
    """
    files = await store.list_levels()
    require_files(files)
    txids = reachable_txids(files)
    if since_ms is not None:
        first = await _last_before(store, files, since_ms)
        txids = [txid for txid in txids if txid > first]
    if until_ms is not None:
        last = await _last_before(store, files, until_ms + 1)
        txids = [txid for txid in txids if txid <= last]
    chosen = txids if limit is None else txids[-limit:]
    ending: dict[TXID, list[FileInfo]] = defaultdict(list)
    for info in files:
        ending[info.max_txid].append(info)
    by_level = {txid: sorted(ending[txid], key=lambda info: (info.level, info.size)) for txid in chosen}
    return Selection(by_level, len(txids))


async def read_points(
    store: LTXStore,
    selection: Selection,
    consume: Callable[[Point], Awaitable[None]],
    *,
    count_pages: bool = True,
) -> None:
    """Read the selected points, and pass them to `consume` in ascending order. Vanished points are left out.

    Without `count_pages`, or with more than `COUNTED_POINTS` points, only headers are read, and `changed` is None.
    Raises the errors of storage.
    """
    counting = count_pages and len(selection.ending) <= COUNTED_POINTS

    async def keep(point: Point | None) -> bool:
        if point is not None:
            await consume(point)
        return True

    jobs = (partial(_read_point, store, txid, infos, counting) for txid, infos in selection.ending.items())
    await in_order(jobs, keep, width=PARALLEL_HEADERS)


async def _last_before(store: LTXStore, files: Sequence[FileInfo], before_ms: int) -> TXID:
    """The newest point before a time, 0 if there is none."""
    try:
        return await find_txid(store, files, before_ms=before_ms)
    except PointNotFound:
        return 0


async def _read_point(store: LTXStore, txid: TXID, infos: Sequence[FileInfo], counting: bool) -> Point | None:
    """Read a point from the first file whose header is valid; None if all of them have vanished."""
    levels = tuple(info.level for info in infos)
    published = infos[0].size
    gone = 0
    for info in infos:
        try:
            header, changed = await again_if_damaged(partial(_read_header, store, info, counting))
        except NotFound:
            gone += 1
        except DamagedFile:
            continue
        else:
            return Point(txid, published, levels, header.timestamp_ms, header.page_size, header.commit, changed)
    return None if gone == len(infos) else Point(txid, published, levels, None, None, None, None)


async def _read_header(store: LTXStore, info: FileInfo, counting: bool) -> tuple[ltx.Header, int | None]:
    """Read the header, and with `counting` the number of pages if that takes no further request."""
    counting = counting and info.size <= SMALL_FILE_BYTES and info.level != SNAPSHOT_LEVEL
    blob = await store.get(info, ByteRange(0, SMALL_FILE_BYTES if counting else ltx.HEADER_SIZE))
    with store.blame(info):
        header = ltx.Header.decode(blob.data)
        check_name(info, header)
        if not counting or len(blob.data) != blob.size:
            return header, None
        end = blob.size - ltx.TAIL_SIZE
        index_size = ltx.decode_index_size(blob.data[end:], file_size=blob.size)
        index = ltx.decode_page_index(blob.data[end - index_size : end], header=header, file_size=blob.size)
        return header, len(index)
