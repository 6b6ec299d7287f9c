"""Reads and checks many files: whole (`read_whole`), header and index only (`read_indexes`), or their frame checksums.

Files are read in pieces, with several concurrent requests, and decoded by one thread. A damaged or vanished file is a
result, not an error. Memory: `PARALLELISM` pieces, and for each page of each file 12 bytes, or 4 if only indexes are
read.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import trio

from litereplica.concurrent import Job, in_order
from litereplica.errors import DamagedFile, FileVanished, FormatError, NotFound
from litereplica.format import checksum
from litereplica.format.frame_checksums import CHECKSUM_SIZE, HEAD_SIZE, SEGMENT_FRAMES, ChecksumsHead
from litereplica.history.coverage import Contents
from litereplica.ltxstore.file_stream import FileStream, piece_jobs
from litereplica.ltxstore.frame_checksums import frame_checksums_key
from litereplica.ltxstore.progress import Advance
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Blob, ByteRange
from litereplica.types import FileInfo

PARALLELISM = 16
"""Concurrent requests, with 32 MiB of pieces: half of the connections of S3 storage."""

Answer: TypeAlias = Contents | DamagedFile | NotFound
"""The content of a file, or the error if it is damaged or has vanished."""

_Piece: TypeAlias = tuple[FileInfo, Blob | NotFound | None]
"""Bytes of a file, or the error; None if the file has its answer already."""


async def read_whole(store: LTXStore, files: Sequence[FileInfo], advance: Advance) -> dict[FileInfo, Answer]:
    """Read each file whole and check its CRC. Returns the contents with digests of the pages, or the errors.

    `advance` is called with the number of bytes read since the last call. Raises the errors of storage.
    """
    reader = _Reader(store)

    async def take(piece: _Piece) -> bool:
        await trio.to_thread.run_sync(reader.take, piece)
        advance(len(piece[1].data) if isinstance(piece[1], Blob) else 0)
        return True

    await in_order(reader.jobs(files), take, width=PARALLELISM)
    return reader.answers


async def read_indexes(store: LTXStore, files: Sequence[FileInfo], advance: Advance) -> dict[FileInfo, Answer]:
    """Read header and index of each file. Returns the contents without digests, or the errors.

    A small file is read whole, and its CRC is checked. `advance` is called with the size of each file. Raises the
    errors of storage.
    """
    answers: dict[FileInfo, Answer] = {}

    async def read(info: FileInfo) -> tuple[FileInfo, Answer]:
        try:
            opened = await store.open(info)
        except (DamagedFile, NotFound) as exc:
            return info, exc
        return info, Contents(opened.header, opened.index.pgno, None, opened.file_checksum)

    async def keep(result: tuple[FileInfo, Answer]) -> bool:
        info, answers[info] = result
        advance(info.size)
        return True

    await in_order((partial(read, info) for info in files), keep, width=PARALLELISM)
    return answers


async def wrong_frame_checksums(store: LTXStore, contents: Mapping[FileInfo, Contents]) -> dict[FileInfo, str]:
    """Return the files whose frame checksums are invalid, with the reason. A file without any is not among them.

    Reads all frame checksums, 4 bytes for each page of the files. Raises the errors of storage.
    """
    wrong: dict[FileInfo, str] = {}

    async def check(info: FileInfo, held: Contents) -> tuple[FileInfo, str | None]:
        segments = -(-len(held.pgno) // SEGMENT_FRAMES)
        most = HEAD_SIZE + (len(held.pgno) + segments) * CHECKSUM_SIZE
        try:
            blob = await store.storage.get(frame_checksums_key(info), ByteRange(0, most))
        except NotFound:
            return info, None
        try:
            head = ChecksumsHead.decode(blob.data)
            if (head.file_checksum, head.frames) != (held.file_checksum, len(held.pgno)):
                return info, "belong to another file"
            for number in range(segments):
                start, stop = head.segment_place(number)
                head.decode_segment(number, blob.data[start:stop])
        except FormatError as exc:
            return info, f"are damaged: {exc.message}"
        return info, None

    async def keep(result: tuple[FileInfo, str | None]) -> bool:
        info, reason = result
        if reason is not None:
            wrong[info] = reason
        return True

    await in_order((partial(check, *each) for each in contents.items()), keep, width=PARALLELISM)
    return wrong


Read: TypeAlias = Callable[[LTXStore, Sequence[FileInfo], Advance], Awaitable[dict[FileInfo, Answer]]]


class _Reader:
    """Decodes the pieces of one file after the other."""

    def __init__(self, store: LTXStore) -> None:
        self.answers: dict[FileInfo, Answer] = {}
        self._store = store
        self._stream: FileStream | None = None
        self._digests = array("Q")

    def jobs(self, files: Sequence[FileInfo]) -> Iterator[Job[_Piece]]:
        for info in files:
            for get in piece_jobs(self._store, info):
                yield partial(self._fetch, info, get)

    def take(self, piece: _Piece) -> None:
        """Decode the next piece. Runs in a thread."""
        info, answer = piece
        if info in self.answers or answer is None:
            return
        if isinstance(answer, NotFound):
            self.answers[info] = answer
            return
        try:
            self._feed(info, answer)
        except (DamagedFile, FileVanished) as exc:
            self.answers[info] = exc

    async def _fetch(self, info: FileInfo, get: Job[Blob]) -> _Piece:
        if info in self.answers:
            return info, None
        try:
            return info, await get()
        except NotFound as exc:
            return info, exc

    def _feed(self, info: FileInfo, blob: Blob) -> None:
        if self._stream is None or self._stream.info is not info:
            self._stream, self._digests = FileStream(self._store, info), array("Q")
        for pages in self._stream.feed(blob):
            self._digests.extend(checksum.update(None, page) for _, page in pages)
        if self._stream.is_complete:
            file = self._stream.finish()
            digests = np.frombuffer(self._digests, np.uint64)
            self.answers[info] = Contents(file.header, file.index.pgno, digests, file.file_checksum)
