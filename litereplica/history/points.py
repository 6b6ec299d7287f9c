"""The points that a replica can be restored to, and what the headers of its files tell of each.

A point is one small request. Many are read at once, in order, and handed on as they arrive, so that a history of any
length takes the memory of its listing. What a file has besides its header is read for few points only.
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
from litereplica.ltxstore.store import LTXStore, check_name
from litereplica.storage.base import ByteRange
from litereplica.types import TXID, FileInfo

SMALL_FILE_BYTES = 64 * 1024
"""A file of so many bytes is read whole where its index is wanted: most of level 0, in as many requests."""

COUNTED_POINTS = 1000
"""Of more points only headers are read: 100 bytes each instead of up to 64 KiB."""


@dataclass(frozen=True, slots=True)
class Point:
    """A TXID that can be restored.

    `published` is the size in bytes of the file that came with it: of those that end there the one of the lowest level.
    `levels` are those that have a file ending there. From the file's header, and None when it is damaged: the time
    (milliseconds since the epoch), the page size, and the database's size in pages. `changed` is the number of pages
    that the file has, where that is known and not the whole database.
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
        """Bytes of the database."""
        return None if self.page_size is None or self.commit is None else self.page_size * self.commit


@dataclass(frozen=True, slots=True)
class Selection:
    """Points to be read, ascending; each with the files that end there, lowest level first. `total` counts the points
    there would have been without a limit."""

    ending: dict[TXID, list[FileInfo]]
    total: int


async def select_points(
    store: LTXStore, *, since_ms: int | None = None, until_ms: int | None = None, limit: int | None = None
) -> Selection:
    """The points from a time to another (milliseconds since the epoch, both included); the newest `limit` of them.

    Lists all levels, and reads some headers for each time. Raises `NoReplica` and as `timeline.find_txid`.
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
    """Hand the points to `consume`, ascending. One that has gone since the listing is left out.

    Without `count_pages`, and of more than `COUNTED_POINTS` points, only headers are read, and `changed` is unknown.
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
    """From the first of the files whose header can be read; None when all have gone."""
    levels = tuple(info.level for info in infos)
    published = infos[0].size
    gone = 0
    for info in infos:
        try:
            header, changed = await _read_header(store, info, counting)
        except NotFound:
            gone += 1
        except DamagedFile:
            continue
        else:
            return Point(txid, published, levels, header.timestamp_ms, header.page_size, header.commit, changed)
    return None if gone == len(infos) else Point(txid, published, levels, None, None, None, None)


async def _read_header(store: LTXStore, info: FileInfo, counting: bool) -> tuple[ltx.Header, int | None]:
    """The header, and how many pages the file has if that is wanted, and costs no further request."""
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
