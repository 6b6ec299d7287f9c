"""Reads a whole LTX file in pieces.

    piece_jobs ──► concurrent.in_order ──► FileStream.feed, in a thread ──► pages
    (requests)      (several at a time)    FileStream.finish after the last piece

All pieces must be of the same object, which must have the size that was listed; otherwise the file was replaced, and
`FileVanished` is raised. The header must agree with the file's name. Pages are known to be valid only after `finish`,
because the checksum is at the file's end. The caller decides what to do with the pages, and when to list again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import trio

from litereplica.concurrent import Job, in_order
from litereplica.errors import FileVanished
from litereplica.format import ltx
from litereplica.format.decoder import Decoder, LTXFile
from litereplica.ltxstore.store import LTXStore, check_name
from litereplica.storage.base import Blob, ByteRange
from litereplica.types import FileInfo, Pgno

PIECE_BYTES = 2 << 20
"""Bytes of one request: its transfer takes longer than its round trip, and several fit in memory."""

PARALLEL_PIECES = 4
"""Concurrent requests for a file that is only checked: nobody waits for it."""

FEED_BYTES = 128 * 1024
"""Bytes decoded at a time. A page is compressed to a 250th of its size at best, so these are at most 32 MB of pages."""


def piece_jobs(store: LTXStore, info: FileInfo, *, piece_bytes: int | None = None) -> Iterator[Job[Blob]]:
    """Yield the requests for a file's bytes in order, of `PIECE_BYTES` each by default; at least one."""
    step = piece_bytes or PIECE_BYTES
    for start in range(0, max(info.size, 1), step):
        yield partial(store.get, info, ByteRange(start, start + step))


async def read_whole(store: LTXStore, info: FileInfo) -> LTXFile:
    """Read a file whole, and check it. Returns header, index and checksum, without pages.

    Raises `DamagedFile`, `NotFound` (also if it is not the listed file), and the errors of storage.
    """
    stream = FileStream(store, info)

    async def take(piece: Blob) -> bool:
        await trio.to_thread.run_sync(_consume, stream, piece)
        return True

    await in_order(piece_jobs(store, info), take, width=PARALLEL_PIECES)
    return await trio.to_thread.run_sync(stream.finish)


def _consume(stream: FileStream, piece: Blob) -> None:
    for _ in stream.feed(piece):
        pass


class ListedObject:
    """Checks that pieces are of the object that was listed. `first` is a part of it that was read before, if any."""

    def __init__(self, store: LTXStore, info: FileInfo, *, first: Blob | None = None) -> None:
        self._store = store
        self._info = info
        self._first = first

    def require(self, piece: Blob) -> None:
        """Raise `FileVanished` unless the piece is of the same object as the first one, with the listed size."""
        self._first = self._first or piece
        self._store.require_same(self._info, self._first, piece)
        if piece.size != self._info.size:
            key = self._store.key(self._info)
            raise FileVanished(f"{key} has {piece.size} bytes, but was listed with {self._info.size}", key=key)


class FileStream:
    """Decodes the pieces of one file, in their order. Runs in worker threads, one at a time.

    Raises `DamagedFile` if the file fails a check, `FileVanished` if it was replaced, `trio.Cancelled` between parts of
    a piece. The stream cannot be used after an error.
    """

    def __init__(self, store: LTXStore, info: FileInfo, *, first: Blob | None = None) -> None:
        self.info = info
        self._store = store
        self._object = ListedObject(store, info, first=first)
        self._decoder = Decoder()
        self._fed = 0
        self._is_named = False

    @property
    def header(self) -> ltx.Header | None:
        """The header, which agrees with the file's name, once it has been fed."""
        return self._decoder.header

    @property
    def is_complete(self) -> bool:
        """True when all bytes have been fed: `finish` comes next."""
        return self._fed >= self.info.size

    def feed(self, piece: Blob) -> Iterator[list[tuple[Pgno, bytes]]]:
        """Decode the next piece; yield its complete pages in ascending order, those of `FEED_BYTES` at a time."""
        self._object.require(piece)
        with memoryview(piece.data) as data, self._store.blame(self.info):
            for start in range(0, len(data), FEED_BYTES):
                trio.from_thread.check_cancelled()
                pages = self._decoder.feed(data[start : start + FEED_BYTES])
                self._check_name()
                yield pages
        self._fed += len(piece.data)

    def finish(self) -> LTXFile:
        """Check the whole file. Returns header, index and checksum, without pages."""
        with self._store.blame(self.info):
            return self._decoder.finish()

    def _check_name(self) -> None:
        if not self._is_named and self._decoder.header is not None:
            check_name(self.info, self._decoder.header)
            self._is_named = True
