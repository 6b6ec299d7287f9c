"""Reading what many files hold, every check included: whole and streamed, or header and index only.

Files are read in pieces, several requests at a time, and decoded by one thread. A file that turns out damaged or has
gone is an answer, not an error. Memory: `PARALLELISM` pieces, and 12 bytes for each page of each file that was read,
or 4 where only indexes were.
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
from litereplica.format.frame_checksums import HEAD_SIZE, SEGMENT_FRAMES, SUM_SIZE, SumsHead
from litereplica.history.coverage import Contents
from litereplica.ltxstore.file_stream import FileStream, piece_jobs
from litereplica.ltxstore.frame_checksums import sums_key
from litereplica.ltxstore.progress import Advance
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Blob, ByteRange
from litereplica.types import FileInfo

PARALLELISM = 16
"""Requests under way, with 32 MiB of pieces: half of the connections that S3 storage has."""

Answer: TypeAlias = Contents | DamagedFile | NotFound
"""What a file holds, or what is wrong with it, or that it has gone."""

_Piece: TypeAlias = tuple[FileInfo, Blob | NotFound | None]
"""Bytes of a file, or why there are none; None when the file has its answer already."""


async def read_whole(store: LTXStore, files: Sequence[FileInfo], advance: Advance) -> dict[FileInfo, Answer]:
    """The contents of each file, with digests of its pages, all of its bytes read and its CRC checked.

    `advance` is called with each further number of bytes read. Raises the errors of storage.
    """
    reader = _Reader(store)

    async def take(piece: _Piece) -> bool:
        await trio.to_thread.run_sync(reader.take, piece)
        advance(len(piece[1].data) if isinstance(piece[1], Blob) else 0)
        return True

    await in_order(reader.jobs(files), take, width=PARALLELISM)
    return reader.answers


async def read_indexes(store: LTXStore, files: Sequence[FileInfo], advance: Advance) -> dict[FileInfo, Answer]:
    """The contents of each file without digests. A small file is read whole and its CRC checked, of a large one header
    and index are read. `advance` is called with the size of each file. Raises the errors of storage.
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


async def wrong_sums(store: LTXStore, contents: Mapping[FileInfo, Contents]) -> dict[FileInfo, str]:
    """The files whose sums are wrong, and why. A file without sums is not among them.

    Reads the sums whole, 4 bytes for each page of the files. Raises the errors of storage.
    """
    wrong: dict[FileInfo, str] = {}

    async def check(info: FileInfo, held: Contents) -> tuple[FileInfo, str | None]:
        segments = -(-len(held.pgno) // SEGMENT_FRAMES)
        most = HEAD_SIZE + (len(held.pgno) + segments) * SUM_SIZE
        try:
            blob = await store.storage.get(sums_key(info), ByteRange(0, most))
        except NotFound:
            return info, None
        try:
            head = SumsHead.decode(blob.data)
            if (head.file_checksum, head.frames) != (held.file_checksum, len(held.pgno)):
                return info, "are another file's"
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
        """The next piece, in order. Runs in a thread."""
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
