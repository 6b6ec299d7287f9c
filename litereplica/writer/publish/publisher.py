"""Makes LTX files from WAL frames and database pages, and puts each under the next TXID.

Invariants: a TXID is put with one sequence of bytes only; the position moves once the store has acknowledged the file
or is found to hold it; a name that is taken by other content than ours is a `ConflictError`. A prepared file is kept
until it is in the store, so that another attempt sends the same bytes.

The replicator decides when to publish and when to checkpoint.
"""

from __future__ import annotations

import itertools
import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import ConflictError, PreconditionFailed
from litereplica.format import ltx
from litereplica.format.encoder import Encoder
from litereplica.format.names import SNAPSHOT_LEVEL, format_txid
from litereplica.format.wal import HEADER_SIZE as WAL_HEADER_SIZE
from litereplica.ltxstore.spooled_file import SpooledFile, publish
from litereplica.storage.base import Suffix
from litereplica.types import TXID, FileInfo, Pgno
from litereplica.writer.database.published import Published
from litereplica.writer.database.state_directory import Lineage
from litereplica.writer.database.wal_follower import FROM_DATABASE, Batch
from litereplica.writer.publish.context import WriterContext
from litereplica.writer.publish.page_checksums import PageChanges, page_checksum
from litereplica.writer.publish.source_check import require_sound, require_unchanged
from litereplica.writer.publish.wal_match import frames_covered, newest_file

log = logging.getLogger(__name__)

MAX_BATCH_BYTES = 64 << 20
"""Of WAL in one file, as Litestream cuts it: a reader decodes a file of this size in well under a second."""

PAGES_AT_ONCE = 256
"""Pages that are read and then encoded between two checks for cancellation: some milliseconds of work."""
BYTES_AT_ONCE = 1 << 20
"""Fewer pages if these have more bytes than this."""

CONFLICT_HINT = "stop the other writer, or replicate to another URL"


class WalMoved(Exception):
    """The WAL was restarted while its frames were being read. Nothing was published; attach again."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A file ready to be put, with which the frames before `end` are published.

    `file_checksum` is as in `OpenedFile`; `whole` tells that the file has every page of the database.
    """

    info: FileInfo
    header: ltx.Header
    file: SpooledFile
    end: int
    changes: PageChanges
    file_checksum: int
    whole: bool

    @property
    def pages(self) -> int:
        return len(self.changes.pgno)


@dataclass(frozen=True, slots=True)
class Adopted:
    """A file that was found where ours was to be put; with it the frames before `end` are published."""

    published: Published
    end: int


class Publisher:
    """Publishes what the WAL has, one file after the other.

    `last` is the newest file of the replica; `lineage` is set once the database is attached.
    """

    def __init__(self, context: WriterContext) -> None:
        self.last = Published()
        self._context = context
        self._store = context.store
        self._database = context.database
        self._wal = context.wal
        self._state = context.state
        self._checksums = context.checksums
        self._lease = context.lease
        self._outages = context.outages
        self._now_ms = context.now_ms
        self._prepared: Prepared | None = None
        self.lineage: Lineage | None = None

    def resume(self, last: Published) -> None:
        """Continue after `last`, the newest file of the replica."""
        self.last = last

    def begin_lineage(self, lineage: Lineage) -> None:
        """Write files with its current node id from now on."""
        self.lineage = lineage

    async def finish(self) -> Prepared | None:
        """Put the file that was prepared but not put, if there is one. Raises as `publish_next`."""
        return await self._put(self._prepared) if self._prepared is not None else None

    async def publish_whole(self, *, commit: int | None) -> Prepared:
        """Publish the whole database as one file; `commit` as in `WalFollower.whole`. Raises as `publish_next`."""
        if self._prepared is None:
            self._prepared = await self._database.run(lambda: self._encode(self._all(commit), check=commit is None))
        return await self._put(self._prepared)

    async def publish_difference(
        self, known: NDArray[np.uint64], *, commit: int | None, goes_on: bool = False, in_doubt: bool = False
    ) -> Prepared | None:
        """Publish the pages whose checksums differ from `known`, those of the replica, as one file; None if none do.

        `goes_on`: the WAL goes on from the replica, so that nothing is published here unless other pages differ than
        those of its new frames. Such pages are logged, and all that differ if the file is `in_doubt`, because it was
        replaced or overwritten. Raises `SourceMalformed`, else as `publish_whole`.
        """
        if self._prepared is None:
            self._prepared = await self._database.run(
                lambda: self._prepare_difference(known, commit, goes_on, in_doubt)
            )
        return await self._put(self._prepared) if self._prepared is not None else None

    async def publish_snapshot(self) -> Prepared:
        """Publish the newest published state as a snapshot that is made from the database, not from other files.

        If that state has a snapshot already, the whole database is published as the next TXID first. Nothing may be
        left to publish by `publish_next`. Raises as that.
        """
        while True:
            prepared = await self._database.run(self._prepare_snapshot)
            try:
                with self._outages.waiting():
                    async with self._lease.kept():
                        await self._send(prepared)
                return prepared
            except PreconditionFailed:
                commit = self.last.commit if self._wal.is_in_database else None
                await self.publish_whole(commit=commit)
            finally:
                prepared.file.discard()

    async def differs(self, known: NDArray[np.uint64], *, commit: int | None) -> bool:
        """True if the database has other pages than `known`. Publishes nothing; arguments as in `publish_difference`.

        Raises `WalMoved`.
        """

        def compare() -> bool:
            batch = self._all(commit)
            differ = batch.commit != len(known) or len(self._differing(batch, known)) > 0
            if commit is None and not self._wal.is_intact():
                raise WalMoved
            return differ

        return await self._database.run(compare)

    async def publish_next(self) -> Prepared | None:
        """Publish the next transactions as one file; None if there are none. Scans the WAL if none is waiting.

        Raises `WalMoved`, `ConflictError`, and the errors of the store: call it again then, and the same file is put.
        """
        if self._prepared is None:
            self._prepared = await self._database.run(self._prepare_next)
        return await self._put(self._prepared) if self._prepared is not None else None

    def discard(self) -> None:
        """Discard the prepared file, once it is in the store or nothing more is to be published."""
        if self._prepared is not None:
            self._prepared.file.discard()
            self._prepared = None

    def _prepare_snapshot(self) -> Prepared:
        require_unchanged(self._context, self.last)
        require_sound(self._database, in_doubt=True)
        in_database, page_size, commit = self._wal.is_in_database, self._database.page_size, self.last.commit
        if in_database:
            batch = self._wal.whole(page_size=page_size, commit=commit)
        else:
            batch = self._wal.published(page_size=page_size, commit=commit)
        header = ltx.Header(
            page_size=page_size,
            commit=batch.commit,
            min_txid=1,
            max_txid=self.last.txid,
            timestamp_ms=self.last.timestamp_ms,
            node_id=self.lineage.current if self.lineage is not None else 0,
        )
        return self._encode_file(batch, header, level=SNAPSHOT_LEVEL, check=not in_database)

    def _prepare_next(self) -> Prepared | None:
        if self._wal.committed == self._wal.position:
            self._wal.scan()
        batch = self._wal.batch(max_bytes=MAX_BATCH_BYTES, previous_commit=self.last.commit)
        if batch is None:
            return None
        require_unchanged(self._context, self.last)  # the frames of the batch are made for what the file has
        return self._encode(batch, check=True)

    def _prepare_difference(
        self, known: NDArray[np.uint64], commit: int | None, goes_on: bool, in_doubt: bool
    ) -> Prepared | None:
        batch = self._all(commit)
        rows = self._differing(batch, known)
        if commit is None and not self._wal.is_intact():
            raise WalMoved
        if not len(rows) and batch.commit == len(known):
            self._wal.advance(batch.end)
            self.last = replace(self.last, commit=batch.commit)
            return None
        foreign = self._foreign_pages(batch, rows, len(known))
        if goes_on and foreign == 0:
            return None
        require_sound(self._database, in_doubt=goes_on or in_doubt)
        if foreign and (goes_on or in_doubt):
            log.warning(
                "%d pages of %s differ from TXID %s of %s, and not by its WAL: they are published",
                foreign, self._database.path, format_txid(self.last.txid), self._store.url,
            )  # fmt: skip
        if batch.end:  # by this page a later start finds where in the WAL the file ends
            last = np.flatnonzero(batch.pgno == self._wal.pgno_at(batch.end - 1))
            rows = np.union1d(rows, last)
        return self._encode(replace(batch, pgno=batch.pgno[rows], frame=batch.frame[rows]), check=commit is None)

    def _foreign_pages(self, batch: Batch, rows: NDArray[np.int64], known: int) -> int:
        """How many of the differing `rows`, and of `known` pages that are gone, no unpublished frame explains."""
        unexplained = batch.frame[rows] < self._wal.position
        if self._wal.committed > self._wal.position:  # a transaction grows or shrinks the database
            return int(np.count_nonzero(unexplained & (batch.pgno[rows] <= known)))
        return int(np.count_nonzero(unexplained)) + max(0, known - batch.commit)

    def _all(self, commit: int | None) -> Batch:
        return self._wal.whole(page_size=self._database.page_size, commit=commit)

    def _differing(self, batch: Batch, known: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows of the pages whose checksums are not those of `known`, or that `known` does not have."""
        checksums = np.fromiter(
            itertools.chain.from_iterable(map(page_checksum, pages) for _, pages in self._pages(batch)),
            np.uint64,
            len(batch.pgno),
        )
        differ = np.ones(len(checksums), bool)
        old = int(np.searchsorted(batch.pgno, len(known), side="right"))
        differ[:old] = checksums[:old] != known[batch.pgno[:old].astype(np.int64) - 1]
        return np.flatnonzero(differ)

    def _pages(self, batch: Batch) -> Iterator[tuple[list[Pgno], list[bytes]]]:
        """Page numbers and pages, some at a time. Raises `trio.Cancelled` between them."""
        count = max(1, min(PAGES_AT_ONCE, BYTES_AT_ONCE // self._database.page_size))
        for start in range(0, len(batch.pgno), count):
            trio.from_thread.check_cancelled()
            pgnos = batch.pgno[start : start + count].tolist()
            frames = batch.frame[start : start + count].tolist()
            read_page, read_frame = self._database.read_page, self._wal.read_page
            pages = [
                read_page(pgno) if frame == FROM_DATABASE else read_frame(frame)
                for pgno, frame in zip(pgnos, frames, strict=True)
            ]
            yield pgnos, pages

    def _encode(self, batch: Batch, *, check: bool) -> Prepared:
        return self._encode_file(batch, self._header(batch), level=0, check=check)

    def _encode_file(self, batch: Batch, header: ltx.Header, *, level: int, check: bool) -> Prepared:
        encoder = Encoder(header)
        file = self._state.spool()
        checksums = array("Q")
        try:
            file.write([encoder.start()])
            for pgnos, pages in self._pages(batch):
                checksums.extend(map(page_checksum, pages))
                file.write([encoder.page(pgno, page) for pgno, page in zip(pgnos, pages, strict=True)])
            end = encoder.finish()
            file.write([end])
            file.finish()
            if check and not self._wal.is_intact():
                raise WalMoved
        except BaseException:
            file.discard()
            raise
        info = FileInfo(level, header.min_txid, header.max_txid, file.size, header.timestamp_ms)
        changes = PageChanges(batch.commit, batch.pgno, np.frombuffer(checksums, np.uint64))
        checksum = ltx.decode_trailer(end[-ltx.TRAILER_SIZE :])
        return Prepared(info, header, file, batch.end, changes, checksum, len(batch.pgno) == header.snapshot_page_count)

    def _header(self, batch: Batch) -> ltx.Header:
        wal = self._wal.header
        frame_size = wal.frame_size if wal else 0
        txid = self.last.txid + 1
        return ltx.Header(
            page_size=self._database.page_size,
            commit=batch.commit,
            min_txid=txid,
            max_txid=txid,
            timestamp_ms=max(self._now_ms(), self.last.timestamp_ms),
            wal_offset=WAL_HEADER_SIZE + batch.first * frame_size,
            wal_size=(batch.end - batch.first) * frame_size,
            wal_salt1=wal.salt1 if wal else 0,
            wal_salt2=wal.salt2 if wal else 0,
            node_id=self.lineage.current if self.lineage is not None else 0,
        )

    async def _put(self, prepared: Prepared) -> Prepared:
        adopted: Adopted | None = None
        try:
            with self._outages.waiting():
                await self._lease.put(lambda: self._send(prepared), verify=self._require_newest)
        except PreconditionFailed as exc:
            if not await self._is_in_store(prepared):
                adopted = await self._adopt(prepared.info, exc)
        self.discard()
        sent = Published.of(prepared.header, prepared.file_checksum)
        previous, self.last = self.last, adopted.published if adopted else sent
        self._wal.advance(adopted.end if adopted else prepared.end)
        if adopted is None:
            with trio.CancelScope(shield=True):
                await self._database.run(lambda: self._record(previous, prepared))
        return prepared

    def _record(self, previous: Published, prepared: Prepared) -> None:
        if prepared.whole:
            self._checksums.replace(self.last.version, prepared.changes)
        else:
            self._checksums.record(previous.version, self.last.version, prepared.changes)

    async def _send(self, prepared: Prepared) -> None:
        await publish(
            self._store,
            prepared.info,
            prepared.file,
            timestamp_ms=prepared.header.timestamp_ms,
            exclusive=self._lease.creates_exclusively(),
        )

    async def _require_newest(self) -> None:
        """Raises `ConflictError` if the replica goes beyond `last`. (The next TXID may be ours: its put shows.)"""
        txid, _ = await newest_file(self._store)
        if txid > self.last.txid + 1:
            raise self._conflict(txid)

    def _conflict(self, txid: TXID) -> ConflictError:
        return ConflictError(f"another writer has published TXID {txid:016x} to {self._store.url}", hint=CONFLICT_HINT)

    async def _is_in_store(self, prepared: Prepared) -> bool:
        """True if the object under our name has our content: the same size and trailer, which has a CRC of the file."""
        blob = await self._store.get(prepared.info, Suffix(ltx.TRAILER_SIZE))
        return blob.size == prepared.info.size and blob.data == ltx.encode_trailer(prepared.file_checksum)

    async def _adopt(self, info: FileInfo, refused: PreconditionFailed) -> Adopted:
        """Returns the file that has our name, if it was made from our WAL.

        It was sent before this process was killed, and arrived after the next one had looked for it.
        """
        blob = await self._store.get(info, Suffix(0))
        found = FileInfo(0, info.min_txid, info.max_txid, blob.size)
        file = await self._store.open(found)
        end = await frames_covered(self._store, file, self._wal)
        if end is None or end <= self._wal.position or not self._continues(file.header):
            raise self._conflict(info.max_txid) from refused
        log.warning("%s was already in the store, from an earlier run: going on behind it", found)
        return Adopted(Published.of(file.header, file.file_checksum), end)

    def _continues(self, header: ltx.Header) -> bool:
        wal = self._wal.header
        return wal is not None and header.wal_offset == wal.frame_offset(self._wal.position)
