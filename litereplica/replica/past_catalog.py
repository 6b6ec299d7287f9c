"""The files of a replica for past states: cached listings, page indexes and timestamps.

Clients usually look at many points in a row, so a listing serves for some seconds: listed files stay until retention
deletes them, which is noticed when they are opened. A point that a listing does not show is looked for in another one.
Indexes are cached for states that share files, timestamps for listings of points.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import trio
from cachetools import LRUCache

from litereplica.errors import DamagedFile, NotFound
from litereplica.history.timeline import timestamps
from litereplica.ltxstore.catalog import Catalog
from litereplica.ltxstore.plan import reachable_txids
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.replica.known_catalog import KnownCatalog
from litereplica.types import TXID, FileInfo

LISTING_S = 5.0
"""How long a listing serves: it takes ten LISTs, and a client may look at all points of an hour."""

DOUBT_S = 0.25
"""A listing in order that is younger is believed even if it does not show the point that is looked for."""

INDEX_MEMORY = 16 * 1024 * 1024
"""Bytes of page indexes: those of the small files between two snapshots, for a database of any size."""

TIMES = 4096
"""Times of files that are remembered."""

_ENTRY_SIZE, _FILE_OVERHEAD = 16, 1000


@dataclass(frozen=True, slots=True)
class Point:
    """A TXID that can be restored, and the time of its transaction in milliseconds since the epoch."""

    txid: TXID
    timestamp_ms: int


class PastCatalog(KnownCatalog):
    """A catalog that remembers listings, indexes and times. It shares the known damaged files with `beside`."""

    def __init__(self, store: LTXStore, *, beside: Catalog) -> None:
        super().__init__(store, damaged=beside.damaged)
        self._listed_at = -math.inf
        self.seen: set[int] = set()  # checksums of files that were in the store since it was listed
        self._in_order = False
        self._files: Sequence[FileInfo] = []
        self._points: list[TXID] | None = None
        self._indexes: LRUCache[FileInfo, OpenedFile] = LRUCache(INDEX_MEMORY, getsizeof=_index_size)
        self._times: LRUCache[FileInfo, int] = LRUCache(TIMES)

    @property
    def files(self) -> Sequence[FileInfo]:
        """The files of the last listing."""
        return self._files

    def forget(self, *, indexes: bool = False) -> None:
        """Forget the listing, which is out of date, and the indexes, too, if they are in doubt."""
        self._listed_at = -math.inf
        if indexes:
            self._indexes.clear()

    async def list_all(self, *, after: TXID = 0, in_order: bool = False) -> Sequence[FileInfo]:
        """Return the files of all levels, listed at most `LISTING_S` ago; if `in_order`, in order and `DOUBT_S` ago."""
        age_s = trio.current_time() - self._listed_at
        if age_s > LISTING_S or (in_order and (age_s > DOUBT_S or not self._in_order)):
            self._files = await super().list_all(in_order=in_order)
            self._points, self._listed_at, self._in_order = None, trio.current_time(), in_order
            self.seen.clear()
        return self._files

    async def points(self, newest: int) -> list[Point]:
        """Return the newest points, ascending, without those whose files have gone meanwhile or are damaged."""
        txids = await self._reachable()
        if self.damaged:
            txids = reachable_txids(info for info in self._files if self.store.key(info) not in self.damaged)
        return await self._timed(txids[-newest:])

    async def newest_between(self, first: TXID, last: TXID) -> TXID | None:
        """Return the newest TXID in a range that can be restored, or None."""
        txids = await self._reachable()
        row = bisect_right(txids, last) - 1
        return txids[row] if row >= 0 and txids[row] >= first else None

    async def point(self, txid: TXID) -> Point | None:
        """Return the point of a TXID, or None."""
        txids = await self._reachable()
        if not _has(txids, txid):
            txids = await self._reachable(in_order=True)
        found = await self._timed([txid]) if _has(txids, txid) else []
        return found[0] if found else None

    async def _open(self, info: FileInfo) -> OpenedFile | DamagedFile | NotFound:
        known = self._indexes.get(info)
        if known is not None:
            return known
        opened = await super()._open(info)
        if isinstance(opened, OpenedFile):
            self.seen.add(opened.file_checksum)
            index = replace(opened, pages=None)
            if _index_size(index) <= INDEX_MEMORY // 2:
                self._indexes[info] = index
        else:
            self.forget()
        return opened

    async def _reachable(self, *, in_order: bool = False) -> list[TXID]:
        files = await self.list_all(in_order=in_order)
        if self._points is None:
            self._points = reachable_txids(files)
        return self._points

    async def _timed(self, txids: Sequence[TXID]) -> list[Point]:
        ending: dict[TXID, list[FileInfo]] = {txid: [] for txid in txids}
        for info in self._files:
            if info.max_txid in ending:
                ending[info.max_txid].append(info)
        times = {txid: self._times[info] for txid, infos in ending.items() for info in infos if info in self._times}
        for level in range(max(map(len, ending.values()), default=0)):
            wanted = [infos[level] for txid, infos in ending.items() if txid not in times and level < len(infos)]
            found = await timestamps(self.store, wanted)
            self._times.update(found)
            times |= {info.max_txid: timestamp_ms for info, timestamp_ms in found.items()}
        return [Point(txid, times[txid]) for txid in txids if txid in times]


def _has(txids: Sequence[TXID], txid: TXID) -> bool:
    row = bisect_left(txids, txid)
    return row < len(txids) and txids[row] == txid


def _index_size(opened: OpenedFile) -> int:
    return _ENTRY_SIZE * len(opened.index) + _FILE_OVERHEAD
