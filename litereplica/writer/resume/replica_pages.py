"""Checksums of the replica's pages: from the checksum file where it holds, else from the replica's files.

`_Reader` reads whole files in order, oldest first, several pieces at a time; the checksums of a file count once its
CRC is checked. If the checksum file holds for an earlier version that the replica still has, only later files are
read. Memory: 8 bytes a page, and the pieces. A database that was restored at the replica's newest TXID, and that nobody
has written to since, has its pages: then the checksums are made from its own file (`restored_pages`).

If the files cannot be read (one is damaged, there is a gap, they keep vanishing), all pages are published.
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
from litereplica.errors import DamagedFile, NotFound, ReplicaError
from litereplica.format import ltx
from litereplica.format.sqlite import lock_pgno
from litereplica.ltxstore.file_stream import FileStream, piece_jobs
from litereplica.ltxstore.limits import most_pages, require_commit
from litereplica.ltxstore.plan import plan_restore, plan_steps
from litereplica.ltxstore.replan import Listing, plan_and_read
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.provenance import read_provenance
from litereplica.storage.base import Blob
from litereplica.types import FileInfo
from litereplica.writer.database.published import Published, Version
from litereplica.writer.publish.context import WriterContext
from litereplica.writer.publish.page_checksums import PageChanges, page_checksum
from litereplica.writer.publish.wal_match import check_page_size

log = logging.getLogger(__name__)

PAGES_AT_ONCE = 1000
"""Between looks whether the caller is cancelled: some milliseconds."""
PARALLELISM = 4
"""Pieces under way or waiting, 8 MiB of memory: few, so that the application is not slowed down."""

_Piece: TypeAlias = tuple[FileInfo, Blob]


async def known_pages(context: WriterContext, *, last: Version, keep: bool = True) -> NDArray[np.uint64] | None:
    """Returns the checksums of pages 1, 2, … at `last`, the replica's newest version; None if they cannot be read.

    The checksum file holds for `last` afterwards, unless `keep` is false. Raises `UsageError` if the replica has
    another page size, and `StorageError` if the store does not answer or refuses.
    """
    try:
        return await _Reader(context, keep=keep).establish(last)
    except (NotFound, ReplicaError, DamagedFile, OSError) as exc:
        log.warning("cannot read the pages of the replica, so all pages are published: %s", exc)
        return None


async def restored_pages(context: WriterContext, *, last: Published) -> NDArray[np.uint64] | None:
    """Returns the checksums of pages 1, 2, … at `last`, from the database file, if it is still as it was restored.

    The checksum file holds for `last` afterwards. None if the file is not proved to be that version, or the checksum
    file holds for it already: `known_pages` is needed.
    """
    if context.checksums.version == last.version:
        return None
    known = await context.database.run(lambda: _of_restored_file(context, last))
    if known is not None:
        log.info("%s is as it was restored: the replica need not be read", context.database.path)
        await keep_checksums(context, last.version, known)
    return known


def _of_restored_file(context: WriterContext, last: Published) -> NDArray[np.uint64] | None:
    """The page checksums of the database file itself, without its WAL; None if it is not `last`. Blocks."""
    database = context.database
    proof = read_provenance(database.path)
    if proof is None or (proof.url, proof.txid) != (context.store.url, last.txid):
        return None
    if proof.checksum == 0 or proof.checksum != last.checksum:
        return None
    if database.identity().size != last.commit * database.page_size or not proof.is_untouched(database.path):
        return None
    known = np.zeros(last.commit, np.uint64)
    lock = lock_pgno(database.page_size)
    for pgno in range(1, last.commit + 1):
        if pgno % PAGES_AT_ONCE == 0:
            trio.from_thread.check_cancelled()
        if pgno != lock:
            known[pgno - 1] = page_checksum(database.read_page(pgno))
    return known if proof.is_untouched(database.path) else None  # else a checkpoint came in between


async def carry_on(context: WriterContext, *, newest: FileInfo, last: Version) -> None:
    """Bring checksums that are one file behind `last`, because the process was killed before writing them, to it."""
    database, checksums = context.database, context.checksums
    if checksums.version is None or checksums.version.txid != newest.min_txid - 1:
        return
    reader = _Reader(context, keep=True)
    try:
        if await reader.still_has(checksums.version):
            await reader.read([newest], last, onto=await database.run(checksums.load))
    except (NotFound, DamagedFile, OSError) as exc:
        log.debug("the page checksums of %s stay behind: %s", checksums.version, exc)


async def keep_checksums(context: WriterContext, version: Version, known: NDArray[np.uint64]) -> None:
    """Replace the checksum file by `known`, the checksums of pages 1, 2, … at `version`."""
    pgno = np.arange(1, len(known) + 1, dtype=np.uint32)
    changes = PageChanges(len(known), pgno, known)
    await context.database.run(lambda: context.checksums.replace(version, changes))


class _FilePages:
    """The file that is being read, and the checksums of its pages so far."""

    def __init__(self, store: LTXStore, info: FileInfo) -> None:
        self.stream = FileStream(store, info)
        self.pgno = array("I")
        self.checksums = array("Q")


class _Reader:
    """Computes page checksums from the files of a replica."""

    def __init__(self, context: WriterContext, *, keep: bool) -> None:
        self._context = context
        self._store = context.store
        self._database = context.database
        self._checksums = context.checksums
        self._keep = keep
        self._known = np.empty(0, np.uint64)
        self._most_pages = 0
        self._reading: _FilePages | None = None

    async def establish(self, last: Version) -> NDArray[np.uint64]:
        """Returns the checksums at `last`. Raises `ReplicaError`, `NotFound`, `DamagedFile` and `OSError`."""
        base = self._checksums.version
        if base == last:
            return await self._database.run(self._checksums.load)
        if base is not None and not await self.still_has(base):
            base = None

        async def choose(listing: Listing) -> tuple[list[FileInfo], bool]:
            """Return the files after the kept checksums (and True), else a whole plan (and False)."""
            files = [info for info in listing.sound if info.max_txid <= last.txid]
            steps = plan_steps(files, after=base.txid) if base is not None else []
            if steps and steps[-1].max_txid == last.txid:
                return steps, True
            return plan_restore(files, target=last.txid), False

        async def read(plan: tuple[list[FileInfo], bool]) -> NDArray[np.uint64]:
            files, goes_on = plan
            onto = await self._database.run(self._checksums.load) if goes_on else np.empty(0, np.uint64)
            return await self.read(files, last, onto=onto)

        return await plan_and_read(self._store, choose, read, list_files=self._list)

    async def still_has(self, version: Version) -> bool:
        """True if the replica still has the level 0 file of `version`, with its checksum."""
        try:
            return await self._store.read_checksum(FileInfo(0, version.txid, version.txid, 0)) == version.checksum
        except (NotFound, DamagedFile):
            return False

    async def read(self, files: Sequence[FileInfo], last: Version, *, onto: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Apply files to the checksums `onto`; returns those at `last`, and keeps them if asked to."""
        log.info(
            "reading %d bytes of %s for the checksums of its pages", sum(info.size for info in files), self._store.url
        )
        self._known, self._reading = onto, None
        self._most_pages = len(onto) + 1 + most_pages(sum(info.size for info in files))

        async def consume(piece: _Piece) -> bool:
            await self._database.run(lambda: self._take(piece))
            return True

        await in_order(self._jobs(files), consume, width=PARALLELISM)
        if self._keep:
            await keep_checksums(self._context, last, self._known)
        return self._known

    async def _list(self, *, in_order: bool) -> list[FileInfo]:
        with self._context.outages.waiting():
            return await self._store.list_levels(in_order=in_order)

    def _jobs(self, files: Sequence[FileInfo]) -> Iterator[Job[_Piece]]:
        for info in files:
            for get in piece_jobs(self._store, info):
                yield partial(self._fetch, info, get)

    async def _fetch(self, info: FileInfo, get: Job[Blob]) -> _Piece:
        with self._context.outages.waiting():
            return info, await get()

    def _take(self, piece: _Piece) -> None:
        """Take the next piece. Blocks."""
        info, blob = piece
        if self._reading is None or self._reading.stream.info is not info:
            self._reading = _FilePages(self._store, info)
        reading = self._reading
        for pages in reading.stream.feed(blob):
            for pgno, page in pages:
                reading.pgno.append(pgno)
                reading.checksums.append(page_checksum(page))
        if reading.stream.is_complete:
            header = reading.stream.finish().header
            with self._store.blame(info):
                self._apply(header, reading)

    def _apply(self, header: ltx.Header, reading: _FilePages) -> None:
        """Apply a file that was read to its end and whose CRC is right."""
        check_page_size(header, self._database.page_size, url=self._store.url)
        require_commit(header, self._most_pages)
        if header.commit != len(self._known):
            grown = max(0, header.commit - len(self._known))
            self._known = np.concatenate((self._known[: header.commit], np.zeros(grown, np.uint64)))
        self._known[np.array(reading.pgno, np.int64) - 1] = np.array(reading.checksums, np.uint64)
