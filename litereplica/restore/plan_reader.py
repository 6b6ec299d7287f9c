"""Reading the files of a restore plan into an `Assembly`.

A small file is read whole in one request. Of a large one only the index is read at first. When all files have claimed
their pages, it is read whole and checked by its checksum; or, if it has frame checksums and at most half of it is
wanted, in the wanted ranges, each frame checked by its own. So every page of the database has been checked. If the
newer files are small beside the oldest one, that one is read whole without its index.

Several requests are under way at a time; their results are taken in order, by one thread at a time. In memory are the
pieces under way, and the indexes of large files of which parts are wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import trio

from litereplica.concurrent import Job, in_order
from litereplica.errors import FileVanished, FormatError
from litereplica.format.frame_checksums import wrong_frames
from litereplica.format.frames import decode_frames
from litereplica.ltxstore.file_stream import PIECE_BYTES, FileStream, piece_jobs
from litereplica.ltxstore.frame_checksums import FrameSums
from litereplica.ltxstore.progress import Progress
from litereplica.ltxstore.range_plan import Span, is_better_whole, plan_spans
from litereplica.ltxstore.store import WHOLE_FILE_LIMIT, LTXStore, OpenedFile
from litereplica.restore.database_builder import Assembly, Claim
from litereplica.restore.output_file import OutputFile
from litereplica.storage.base import Blob, ByteRange
from litereplica.types import FileInfo

PARALLELISM = 8
"""Requests under way or waiting to be written, of `PIECE_BYTES` at most: 16 MiB, and as much again while answers are
assembled. Litestream's default."""

BLIND_SHARE = 0.5
"""If the newer files have at most this share of the oldest file's bytes, as much is wanted: no index is needed."""


@dataclass(frozen=True, slots=True)
class FileRead:
    """What is read of a file: bytes and requests. `whole` is True if all of it is read."""

    info: FileInfo
    bytes: int
    requests: int
    whole: bool


class _Step(NamedTuple):
    """What a request has brought: its size in bytes, and what puts it into the database and returns whether to go on.

    `apply` runs in a thread.
    """

    size: int
    apply: Callable[[], bool]


@dataclass(frozen=True, slots=True, eq=False)
class _Large:
    """A large file that has claimed pages. They are in `spans`, unless it is read whole."""

    opened: OpenedFile
    claim: Claim
    spans: list[Span]
    whole: bool


class SourceReader:
    """Reads plans. `file` reports errors of writing. If `is_dry`, only indexes are read, to fill `reads`."""

    def __init__(
        self, store: LTXStore, assembly: Assembly, file: OutputFile | None, progress: Progress, *, is_dry: bool = False
    ) -> None:
        self.reads: list[FileRead] = []
        self.bytes_read = 0
        self._store = store
        self._assembly = assembly
        self._is_dry = is_dry
        self._reporting: Callable[[], AbstractContextManager[None]] = (
            file.reporting if file is not None else nullcontext
        )
        self._progress = progress
        self._sums = FrameSums()
        self._without_sums: set[FileInfo] = set()  # their frame checksums are damaged or have gone
        self._large: list[_Large] = []
        self._stream: FileStream | None = None  # the file that is being read whole

    async def read(self, plan: Sequence[FileInfo], *, parallelism: int) -> None:
        """Read what is missing of a plan. Raises `DamagedFile`, `NotFound`, and the errors of storage."""
        self._assembly.begin(plan)
        self._large = []
        self._stream = None
        self.reads = []
        newest_first = list(reversed(plan))
        blind = self._blind(newest_first)
        opened = [info for info in newest_first if info is not blind]
        if blind is not None and not self._is_dry and not any(info.size > WHOLE_FILE_LIMIT for info in opened):
            jobs: Iterator[Job[_Step]] = itertools.chain(self._openings(opened), self._pieces(blind, None))
            await self._run(jobs, sum(info.size for info in newest_first), parallelism)
            return
        await self._run(self._openings(opened), sum(info.size for info in opened), parallelism)
        self.reads += [_read_of(large) for large in self._large]
        size = sum(read.bytes for read in self.reads) + (blind.size if blind else 0)
        await self._run(self._contents(blind), size, parallelism)

    def _blind(self, newest_first: Sequence[FileInfo]) -> FileInfo | None:
        """Return the oldest file if it is to be read whole, without its index."""
        *newer, oldest = newest_first
        if self._is_dry and not newer:
            return None  # the size of the database is in its index
        if oldest.size <= WHOLE_FILE_LIMIT or self._assembly.is_done(oldest) or oldest.min_txid != 1:
            return None
        return oldest if sum(info.size for info in newer) <= BLIND_SHARE * oldest.size else None

    async def _run(self, jobs: Iterator[Job[_Step]], size: int, parallelism: int) -> None:
        with self._progress(size) as advance:

            async def consume(step: _Step) -> bool:
                self.bytes_read += step.size
                advance(step.size)
                return await trio.to_thread.run_sync(step.apply)

            await in_order(jobs, consume, width=parallelism)

    # --- every file, newest first --------------------------------------------------------------

    def _openings(self, files: Sequence[FileInfo]) -> Iterator[Job[_Step]]:
        for info in files:
            yield partial(self._done if self._assembly.is_done(info) else self._open, info)

    async def _done(self, info: FileInfo) -> _Step:
        await trio.lowlevel.checkpoint()
        return _Step(0, partial(self._skip, info))

    def _skip(self, info: FileInfo) -> bool:
        self._assembly.skip(info)
        return True

    async def _open(self, info: FileInfo) -> _Step:
        opened = await self._store.open(info)
        if opened.info.size != info.size:
            raise self._replaced(info, opened.info.size)
        return _Step(info.size if opened.pages is not None else 0, partial(self._take_opened, opened))

    def _take_opened(self, opened: OpenedFile) -> bool:
        """Let a file whose index has been read claim its pages, and write those of a small one. Runs in a thread."""
        info, index, assembly = opened.info, opened.index, self._assembly
        if assembly.is_claimed:
            return False
        with self._store.blame(info), self._reporting():
            claim = assembly.claim(info, opened.header, index.pgno)
            pgnos = index.pgno[claim.rows]
            if opened.pages is not None:
                self.reads.append(FileRead(info, info.size, 1, whole=True))
                assembly.write(pgnos.tolist(), [opened.pages[row] for row in claim.rows.tolist()])
        if opened.pages is not None:
            if not self._is_dry:
                assembly.settle(pgnos)
                assembly.finish_file(info, opened.header)
        elif len(claim.rows):
            page_size = opened.header.page_size
            spans = plan_spans(index, claim.rows, page_size=page_size, max_bytes=PIECE_BYTES)
            has_sums = opened.sums is not None and opened.sums.head is not None and info not in self._without_sums
            whole = not has_sums or is_better_whole(spans, info.size)
            self._large.append(_Large(opened, claim, spans, whole))
        else:
            assembly.finish_file(info, opened.header)
        return not assembly.is_claimed

    # --- the contents of large files -----------------------------------------------------------

    def _contents(self, blind: FileInfo | None) -> Iterator[Job[_Step]]:
        for large in () if self._is_dry else self._large:
            if large.whole:
                yield from self._pieces(large.opened.info, large)
            else:
                for span in large.spans:
                    yield partial(self._fetch_span, large, span)
        if blind is not None and not self._assembly.is_claimed:
            yield from self._pieces(blind, None)

    def _pieces(self, info: FileInfo, large: _Large | None) -> Iterator[Job[_Step]]:
        if self._is_dry:
            self.reads.append(FileRead(info, info.size, -(-info.size // PIECE_BYTES), whole=True))
            return
        for get in piece_jobs(self._store, info, piece_bytes=PIECE_BYTES):
            yield partial(self._fetch_piece, info, large, get)

    async def _fetch_piece(self, info: FileInfo, large: _Large | None, get: Job[Blob]) -> _Step:
        blob = await get()
        return _Step(len(blob.data), partial(self._take_piece, info, large, blob))

    def _take_piece(self, info: FileInfo, large: _Large | None, blob: Blob) -> bool:
        """Write the next piece of a file that is read whole. Runs in a thread."""
        assembly = self._assembly
        if self._stream is None or self._stream.info is not info:
            self._stream = FileStream(self._store, info, first=_whole(large.opened) if large else None)
            assembly.open_file(info, large.claim if large else None)
        stream = self._stream
        with self._store.blame(info), self._reporting():
            for pages in stream.feed(blob):
                if stream.header is not None:
                    assembly.take(stream.header, pages)
        if stream.is_complete:
            assembly.close_file(stream.finish().header)
        return not assembly.is_complete

    async def _fetch_span(self, large: _Large, span: Span) -> _Step:
        opened = large.opened
        blob = await self._store.get(opened.info, ByteRange(span.start, span.stop))
        self._store.require_same(opened.info, _whole(opened), blob)
        assert opened.sums is not None
        sums = await self._sums.of(self._store.storage, opened.sums, opened.index.pgno[span.rows])
        if None in sums:
            self._without_sums.add(opened.info)
            key = self._store.key(opened.info)
            raise FileVanished(f"the frame checksums of {key} have gone", key=key)  # the next plan reads it whole
        return _Step(len(blob.data), partial(self._take_span, large, span, blob, sums))

    def _take_span(self, large: _Large, span: Span, blob: Blob, sums: list[int | None]) -> bool:
        """Check and write the wanted frames of a span. Runs in a thread."""
        opened, rows = large.opened, span.rows
        index, assembly = opened.index, self._assembly
        pgnos = index.pgno[rows]
        offsets = (index.offset[rows] - np.uint64(span.start)).tolist()
        sizes = index.size[rows].tolist()
        trio.from_thread.check_cancelled()
        with self._store.blame(opened.info), self._reporting():
            if wrong := wrong_frames(blob.data, offsets, sizes, sums):
                raise FormatError(f"page {pgnos[wrong[0]]} is not as the sums beside the file say")
            numbers = pgnos.tolist()
            pages = []
            for page in decode_frames(blob.data, offsets, sizes, numbers, page_size=opened.header.page_size):
                if not isinstance(page, bytes):
                    raise page
                pages.append(page)
            assembly.write(numbers, pages)
        assembly.settle(pgnos)
        if span is large.spans[-1]:
            assembly.finish_file(opened.info, opened.header)
        return not assembly.is_complete

    def _replaced(self, info: FileInfo, size: int) -> FileVanished:
        key = self._store.key(info)
        return FileVanished(f"{key} has {size} bytes, but was listed with {info.size}", key=key)


def _read_of(large: _Large) -> FileRead:
    info = large.opened.info
    if large.whole:
        return FileRead(info, info.size, -(-info.size // PIECE_BYTES), whole=True)
    return FileRead(info, sum(span.stop - span.start for span in large.spans), len(large.spans), whole=False)


def _whole(opened: OpenedFile) -> Blob:
    """Return an empty part of the object that all parts of the file must belong to."""
    return Blob(b"", opened.info.size, opened.etag)
