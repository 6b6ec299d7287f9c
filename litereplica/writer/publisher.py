"""LTX files from WAL frames and database pages, each put once under the next TXID.

Invariants: a TXID is put with one sequence of bytes only; the position moves when the store has acknowledged the
file, or has been found to hold it; a name that is taken by other content than ours is a `ConflictError`.
A prepared file is kept until it is in the store, so that another attempt sends the same bytes.

Knows nothing of when to publish, nor of checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from litereplica.errors import ConflictError, PreconditionFailed
from litereplica.format import ltx
from litereplica.format.encoder import Encoder
from litereplica.format.wal import HEADER_SIZE as WAL_HEADER_SIZE
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Body, Suffix
from litereplica.types import TXID, FileInfo
from litereplica.writer.crash import CrashPoint, crash_point
from litereplica.writer.resume import frames_covered
from litereplica.writer.source import Source
from litereplica.writer.state import StateDirectory, discard_body
from litereplica.writer.store_watch import StoreWatch
from litereplica.writer.wal_tail import FROM_DATABASE, Batch, WalTail

log = logging.getLogger(__name__)

MAX_BATCH_BYTES = 64 << 20
"""Of WAL in one file, as Litestream cuts it: a reader decodes a file of this size in well under a second."""

CANCEL_CHECK_PAGES = 256
"""A file that is being made is given up within some milliseconds when that is asked for."""

CONFLICT_HINT = "stop the other writer, or replicate to another URL"


class WalMoved(Exception):
    """The WAL was restarted while its frames were being read. Nothing was published; begin again."""


@dataclass(frozen=True, slots=True)
class Published:
    """The newest file of the replica. `commit` is the database's size in pages there, `timestamp_ms` the header's."""

    txid: TXID = 0
    commit: int = 0
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A file ready to be put; with it the frames before `end` are published."""

    info: FileInfo
    header: ltx.Header
    body: Body
    end: int
    pages: int
    whole: bool


class Publisher:
    """Publishes what `tail` has, one file after the other. `last` is the newest file of the replica."""

    def __init__(
        self,
        store: LTXStore,
        source: Source,
        tail: WalTail,
        *,
        state: StateDirectory,
        watch: StoreWatch,
        now_ms: Callable[[], int],
    ) -> None:
        self.last = Published()
        self._store = store
        self._source = source
        self._tail = tail
        self._state = state
        self._watch = watch
        self._now_ms = now_ms
        self._prepared: Prepared | None = None

    async def finish(self) -> Prepared | None:
        """Put the file that was prepared and could not be put, if there is one. Raises as `publish_next`."""
        return await self._put(self._prepared) if self._prepared is not None else None

    async def publish_whole(self, *, commit: int | None) -> Prepared:
        """The whole database as one file; `commit` as in `WalTail.whole`. Raises as `publish_next`."""
        if self._prepared is None:
            self._prepared = await self._source.run(lambda: self._prepare_whole(commit))
        return await self._put(self._prepared)

    async def publish_next(self) -> Prepared | None:
        """The next transactions as one file; None when there are none. The WAL is scanned when none is waiting.

        Raises `WalMoved`, `ConflictError`, and what the store raises: call it again then, and the same file is put.
        """
        if self._prepared is None:
            self._prepared = await self._source.run(self._prepare_next)
        return await self._put(self._prepared) if self._prepared is not None else None

    def discard(self) -> None:
        """Forget the file that was prepared; only once it is in the store, or when nothing more is published."""
        if self._prepared is not None:
            discard_body(self._prepared.body)
            self._prepared = None

    def _prepare_next(self) -> Prepared | None:
        if self._tail.committed == self._tail.position:
            self._tail.scan()
        batch = self._tail.batch(max_bytes=MAX_BATCH_BYTES, previous_commit=self.last.commit)
        return self._encode(batch, whole=False, check=True) if batch is not None else None

    def _prepare_whole(self, commit: int | None) -> Prepared:
        batch = self._tail.whole(page_size=self._source.page_size, commit=commit)
        return self._encode(batch, whole=True, check=commit is None)

    def _encode(self, batch: Batch, *, whole: bool, check: bool) -> Prepared:
        header = self._header(batch)
        encoder = Encoder(header)
        spool = self._state.spool()
        try:
            spool.write(encoder.start())
            for i, (pgno, frame) in enumerate(zip(batch.pgno.tolist(), batch.frame.tolist(), strict=True)):
                if i % CANCEL_CHECK_PAGES == 0:
                    trio.from_thread.check_cancelled()
                page = self._source.read_page(pgno) if frame == FROM_DATABASE else self._tail.read_page(frame)
                if spool.write(encoder.page(pgno, page)):
                    crash_point(CrashPoint.SPOOLED_PART)
            spool.write(encoder.finish())
            body = spool.finish()
        except BaseException:
            spool.discard()
            raise
        if check and not self._tail.is_intact():
            discard_body(body)
            raise WalMoved
        crash_point(CrashPoint.PREPARED)
        info = FileInfo(0, header.min_txid, header.max_txid, spool.size, header.timestamp_ms)
        return Prepared(info, header, body, batch.end, len(batch.pgno), whole)

    def _header(self, batch: Batch) -> ltx.Header:
        wal = self._tail.header
        frame_size = wal.frame_size if wal else 0
        txid = self.last.txid + 1
        return ltx.Header(
            page_size=self._source.page_size,
            commit=batch.commit,
            min_txid=txid,
            max_txid=txid,
            timestamp_ms=max(self._now_ms(), self.last.timestamp_ms),
            wal_offset=WAL_HEADER_SIZE + batch.first * frame_size,
            wal_size=(batch.end - batch.first) * frame_size,
            wal_salt1=wal.salt1 if wal else 0,
            wal_salt2=wal.salt2 if wal else 0,
        )

    async def _put(self, prepared: Prepared) -> Prepared:
        header, end = prepared.header, prepared.end
        try:
            with self._watch.waiting():
                await self._store.put(prepared.info, prepared.body, timestamp_ms=header.timestamp_ms)
        except PreconditionFailed as exc:
            if not await self._is_in_store(prepared):
                header, end = await self._adopt(prepared.info, exc)
        crash_point(CrashPoint.PUT_DONE)
        self.discard()
        self.last = Published(header.max_txid, header.commit, header.timestamp_ms)
        self._tail.advance(end)
        crash_point(CrashPoint.POSITION_MOVED)
        return prepared

    async def _is_in_store(self, prepared: Prepared) -> bool:
        """Does the object that has our name have our content? Size and trailer, which holds a CRC of it all, tell."""
        blob = await self._store.get(prepared.info, Suffix(ltx.TRAILER_SIZE))
        if blob.size != prepared.info.size:
            return False
        if isinstance(prepared.body, bytes):
            return blob.data == prepared.body[-ltx.TRAILER_SIZE :]
        with prepared.body.open("rb") as file:
            file.seek(-ltx.TRAILER_SIZE, 2)
            return blob.data == file.read()

    async def _adopt(self, info: FileInfo, refused: PreconditionFailed) -> tuple[ltx.Header, int]:
        """The header and the end, in frames, of the file that has our name, if it was made from our WAL.

        It is one that we sent before we were killed, and that arrived after we had looked for it.
        """
        blob = await self._store.get(info, Suffix(0))
        found = FileInfo(0, info.min_txid, info.max_txid, blob.size)
        file = await self._store.open(found)
        end = await frames_covered(self._store, file, self._tail)
        if end is None or end <= self._tail.position or not self._continues(file.header):
            raise ConflictError(
                f"another writer has published TXID {info.max_txid:016x} to {self._store.url}", hint=CONFLICT_HINT
            ) from refused
        log.warning("%s was already in the store, from an earlier run: going on behind it", found)
        return file.header, end

    def _continues(self, header: ltx.Header) -> bool:
        wal = self._tail.header
        return wal is not None and header.wal_offset == wal.frame_offset(self._tail.position)
