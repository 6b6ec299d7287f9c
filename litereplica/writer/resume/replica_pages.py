"""The sums of the replica's pages: kept ones where they hold, else made from the replica's files.

Files are read whole and in order, oldest first, in pieces of which several are under way; what a file says counts once
its CRC is right. Where the kept sums hold for an earlier version that the replica still has, only what
came after it is read. Memory: 8 bytes a page, and the pieces.

Sums that cannot be made (a damaged file, a gap, files that keep vanishing) are no error: everything is published then.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.concurrent import Job, in_order
from litereplica.errors import DamagedFile, FormatError, NotFound, ReplicaError
from litereplica.format import ltx
from litereplica.ltxstore.file_stream import FileStream, piece_jobs
from litereplica.ltxstore.plan import plan_restore, plan_steps
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.database_builder import MIN_BYTES_PER_PAGE
from litereplica.storage.base import Blob, Suffix
from litereplica.types import TXID, FileInfo
from litereplica.writer.database.published import Version
from litereplica.writer.database.sqlite_database import Source
from litereplica.writer.publish.outage_log import OutageLog
from litereplica.writer.publish.page_checksums import PageChanges, PageChecksums, page_sum
from litereplica.writer.publish.wal_match import check_page_size

log = logging.getLogger(__name__)

PARALLELISM = 4
"""Pieces under way or waiting: 16 MiB of memory. The application is not to be slowed down by it."""
ATTEMPTS = 3
"""Plans that are tried: files vanish between a listing and the reading when somebody compacts."""
REPLAN_DELAY_S = 0.25

_Piece: TypeAlias = tuple[FileInfo, Blob]


async def known_pages(
    store: LTXStore, source: Source, sums: PageChecksums, *, last: Version, watch: OutageLog, keep: bool = True
) -> NDArray[np.uint64] | None:
    """The sums of pages 1, 2, … at `last`, the replica's newest version; None when they cannot be established.

    `sums` holds for `last` afterwards; with `keep` false it stays as it is. Raises `UsageError` when the replica's
    pages have another size, and `StorageError` when the store does not answer or refuses.
    """
    reader = _Reader(store, source, sums, watch, keep=keep)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await reader.establish(last)
        except (NotFound, ReplicaError, DamagedFile, OSError) as exc:
            reason = exc
            if not isinstance(exc, NotFound):
                break
        if attempt < ATTEMPTS:
            await trio.sleep(REPLAN_DELAY_S)
    log.warning("cannot tell what the replica has: %s", reason)
    return None


async def carry_on(
    store: LTXStore, source: Source, sums: PageChecksums, *, newest: FileInfo, last: Version, watch: OutageLog
) -> None:
    """Bring sums that are one file behind, since we were killed before they were written, to `last`."""
    if sums.version is None or sums.version.txid != newest.min_txid - 1:
        return
    reader = _Reader(store, source, sums, watch, keep=True)
    try:
        if await reader.still_has(sums.version):
            await reader.read([newest], last, onto=await source.run(sums.load))
    except (NotFound, DamagedFile, OSError) as exc:
        log.debug("the sums of %s stay behind: %s", sums.version, exc)


async def keep_sums(source: Source, sums: PageChecksums, version: Version, known: NDArray[np.uint64]) -> None:
    """`sums` is `known` from now on, those of pages 1, 2, … at `version`."""
    pgno = np.arange(1, len(known) + 1, dtype=np.uint32)
    await source.run(lambda: sums.replace(version, PageChanges(len(known), pgno, known)))


class _FilePages:
    """The file that is being read, and the sums of its pages so far."""

    def __init__(self, store: LTXStore, info: FileInfo) -> None:
        self.stream = FileStream(store, info)
        self.pgno = array("I")
        self.sums = array("Q")


class _Reader:
    """Reads sums from the files of a replica."""

    def __init__(self, store: LTXStore, source: Source, sums: PageChecksums, watch: OutageLog, *, keep: bool) -> None:
        self._store = store
        self._source = source
        self._sums = sums
        self._watch = watch
        self._keep = keep
        self._known = np.empty(0, np.uint64)
        self._most_pages = 0
        self._reading: _FilePages | None = None

    async def establish(self, last: Version) -> NDArray[np.uint64]:
        """The sums at `last`. Raises `ReplicaError`, `NotFound`, `DamagedFile`, `OSError` when they cannot be made."""
        base = self._sums.version
        if base == last:
            return await self._source.run(self._sums.load)
        if base is not None and await self.still_has(base):
            steps = plan_steps(await self._list(after=base.txid, until=last.txid), after=base.txid)
            if steps and steps[-1].max_txid == last.txid:
                return await self.read(steps, last, onto=await self._source.run(self._sums.load))
        plan = plan_restore(await self._list(after=0, until=last.txid), target=last.txid)
        return await self.read(plan, last, onto=np.empty(0, np.uint64))

    async def still_has(self, version: Version) -> bool:
        """Is the L0 file of this version still that which had it?"""
        try:
            blob = await self._store.get(FileInfo(0, version.txid, version.txid, 0), Suffix(ltx.TRAILER_SIZE))
            return ltx.decode_trailer(blob.data) == version.checksum
        except (NotFound, FormatError):
            return False

    async def read(self, files: Sequence[FileInfo], last: Version, *, onto: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Apply files to the sums `onto`, which gives those at `last`, and keep them."""
        log.info("reading %d bytes of %s to know its pages", sum(info.size for info in files), self._store.url)
        self._known, self._reading = onto, None
        self._most_pages = len(onto) + 1 + sum(info.size for info in files) // MIN_BYTES_PER_PAGE

        async def consume(piece: _Piece) -> bool:
            await self._source.run(lambda: self._take(piece))
            return True

        await in_order(self._jobs(files), consume, width=PARALLELISM)
        if self._keep:
            await keep_sums(self._source, self._sums, last, self._known)
        return self._known

    async def _list(self, *, after: TXID, until: TXID) -> list[FileInfo]:
        with self._watch.waiting():
            return [info for info in await self._store.list_levels(after=after) if info.max_txid <= until]

    def _jobs(self, files: Sequence[FileInfo]) -> Iterator[Job[_Piece]]:
        for info in files:
            for get in piece_jobs(self._store, info):
                yield partial(self._fetch, info, get)

    async def _fetch(self, info: FileInfo, get: Job[Blob]) -> _Piece:
        with self._watch.waiting():
            return info, await get()

    def _take(self, piece: _Piece) -> None:
        """The next piece. Runs in a thread."""
        info, blob = piece
        if self._reading is None or self._reading.stream.info is not info:
            self._reading = _FilePages(self._store, info)
        reading = self._reading
        for pages in reading.stream.feed(blob):
            for pgno, page in pages:
                reading.pgno.append(pgno)
                reading.sums.append(page_sum(page))
        if reading.stream.is_complete:
            header = reading.stream.finish().header
            with self._store.blame(info):
                self._apply(header, reading)

    def _apply(self, header: ltx.Header, reading: _FilePages) -> None:
        """A file was read to its end, and is right."""
        check_page_size(header, self._source.page_size, url=self._store.url)
        if header.commit > self._most_pages:
            raise FormatError(f"header claims a database of {header.commit} pages, more than the files can hold")
        if header.commit != len(self._known):
            grown = max(0, header.commit - len(self._known))
            self._known = np.concatenate((self._known[: header.commit], np.zeros(grown, np.uint64)))
        self._known[np.array(reading.pgno, np.int64) - 1] = np.array(reading.sums, np.uint64)
