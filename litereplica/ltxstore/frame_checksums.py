"""The frame checksums of large files: their keys, and loading those of single frames on demand.

This is the reading side. `spooled_file.py` (`publish`) writes them, from what `format/frame_checksums.py` encodes.

A file up to `WHOLE_FILE_LIMIT` is read whole and checked by its own checksum. For a larger one our writer and our
compaction put `sums/<level as %04x>/<min>-<max>.sums` (format: `format/frame_checksums.py`) *before* the file itself,
so that a reader that sees the file finds its frame checksums. The prefix is separate, so that listings of files do not
grow, neither ours nor Litestream's. Files published by other programs have no frame checksums.

Frame checksums are optional: without them, or with those of another file, frames are used unchecked. But one answer is
not final. A missing object is requested again when pages of the file are read, with a growing pause in between; a
damaged one with every such read, since it may be repaired at any time. Objects whose file was never published, or was
deleted by another program, are removed by `compaction/pruner.py`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import trio
from cachetools import LRUCache
from numpy.typing import NDArray

from litereplica.errors import AccessDenied, FormatError, NotFound
from litereplica.format import ltx
from litereplica.format.frame_checksums import HEAD_SIZE, SEGMENT_FRAMES, ChecksumsHead
from litereplica.format.names import format_txid
from litereplica.storage.base import ByteRange, Storage
from litereplica.types import TXID, FileInfo, Pgno

log = logging.getLogger(__name__)

T = TypeVar("T")

FRAME_CHECKSUMS_PREFIX = "sums/"

KEPT_SEGMENTS = 256
"""Number of segments kept in memory, 32 KiB each: those of 2 million pages."""

_KEY = re.compile(r"sums/([0-9a-f]{4})/([0-9a-f]{16})-([0-9a-f]{16})\.sums", re.ASCII)


def frame_checksums_key(info: FileInfo) -> str:
    """Key of the frame checksums of a file, the same in both layouts."""
    return f"{FRAME_CHECKSUMS_PREFIX}{info.level:04x}/{format_txid(info.min_txid)}-{format_txid(info.max_txid)}.sums"


def parse_frame_checksums_key(key: str) -> tuple[int, TXID, TXID] | None:
    """Level and TXIDs (min, max) of the file whose frame checksums have this key; None for any other key."""
    match = _KEY.fullmatch(key)
    return (int(match[1], 16), int(match[2], 16), int(match[3], 16)) if match else None


FIRST_PAUSE_S, LAST_PAUSE_S = 15.0, 3600.0
"""Time before a missing object is requested again, doubled each time up to an hour: a file rarely gets one later, but
the store may have answered 404 or 403 by mistake."""


@dataclass(slots=True, eq=False)
class FileSums:
    """State of the object with the frame checksums of one opened large file.

    `file_checksum`, `header_checksum` and `index_checksum` are those of the file as it was read. `pgnos` are the pages
    of the file; None: all pages of its database. `head` is None until it has been read. `damaged` are the parts of the
    object, by their first byte, that were damaged when they were last read. Before `ask_at` (trio's time, in seconds)
    the object counts as missing.
    """

    key: str
    file_checksum: int
    header_checksum: int
    index_checksum: int
    pgnos: NDArray[np.uint32] | None
    lock_pgno: Pgno
    head: ChecksumsHead | None = field(init=False, default=None)
    damaged: set[int] = field(init=False, default_factory=set)
    ask_at: float = field(init=False, default=-math.inf)
    pause_s: float = field(init=False, default=FIRST_PAUSE_S)
    is_reported: bool = field(init=False, default=False)

    @classmethod
    def of(
        cls, info: FileInfo, header: ltx.Header, index: ltx.PageIndex, *, file_checksum: int, sums: tuple[int, int]
    ) -> FileSums:
        """Make the record of a file whose header and index have been read; `sums` are their two checksums."""
        has_every_page = len(index) == header.snapshot_page_count
        return cls(
            frame_checksums_key(info), file_checksum, *sums, None if has_every_page else index.pgno, header.lock_pgno
        )

    @property
    def is_damaged(self) -> bool:
        """True if a part of the object was damaged when it was last read."""
        return bool(self.damaged)

    def rows(self, pgnos: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the rows of these pages in the file's index. The file must contain all of them."""
        if self.pgnos is not None:
            return np.searchsorted(self.pgnos, pgnos).astype(np.int64)
        rows: NDArray[np.int64] = pgnos.astype(np.int64) - 1 - (pgnos > self.lock_pgno)
        return rows

    async def read_head(self, storage: Storage, *, first: bytes | None = None) -> ChecksumsHead | None:
        """Return the head, reading it if it is unknown; None if it is missing or damaged.

        `first` are its bytes, if they have been read already. Raises `FormatError` if the head shows that the header or
        the index of the file is damaged, and the errors of the store.
        """
        if self.head is None:
            head = await self.read_part(storage, ByteRange(0, HEAD_SIZE), ChecksumsHead.decode, first=first)
            if head is not None and head.file_checksum != self.file_checksum:
                self.note_missing()
            elif head is not None:
                if (head.header_checksum, head.index_checksum) != (self.header_checksum, self.index_checksum):
                    raise FormatError("header or page index does not match its checksum beside the file")
                self.head = head
        return self.head

    async def read_part(
        self, storage: Storage, span: ByteRange, decode: Callable[[bytes], T], *, first: bytes | None = None
    ) -> T | None:
        """Return `decode` of a part of the object, or None if it is missing or damaged.

        A damaged part is read once more: the damage may have happened in transit. `first` is as in `read_head`.
        """
        if trio.current_time() < self.ask_at:
            return None
        try:
            for data in (first, None):
                try:
                    part = decode((await storage.get(self.key, span)).data if data is None else data)
                except FormatError as exc:
                    problem = exc.message
                else:
                    self.damaged.discard(span.start)
                    return part
        except (NotFound, AccessDenied) as exc:
            self.damaged.clear()
            self.note_missing()
            if self.head is not None:
                self._report(exc.message)
            return None
        self.damaged.add(span.start)
        self._report(problem)
        return None

    def note_missing(self) -> None:
        """Record that the object is missing: it is not requested again before a pause."""
        self.ask_at = trio.current_time() + self.pause_s
        self.pause_s = min(2 * self.pause_s, LAST_PAUSE_S)

    def _report(self, problem: str) -> None:
        if not self.is_reported:
            log.warning("%s: pages cannot be checked until the file has been read whole: %s", self.key, problem)
        self.is_reported = True


class FrameSums:
    """A cache of the frame checksums of all files, by segments, of which the least recently used are dropped."""

    def __init__(self) -> None:
        self._segments: LRUCache[tuple[int, int], NDArray[np.uint32]] = LRUCache(KEPT_SEGMENTS)
        self._loading: dict[tuple[int, int], trio.Event] = {}

    async def of(self, storage: Storage, file: FileSums, pgnos: NDArray[np.uint32]) -> list[int | None]:
        """Return the checksum of the frame of each of these pages; None where it is unknown.

        Makes one request for each segment that is not cached, and one for the head if it is unknown. Raises the errors
        of the store: as long as it is unknown whether a file has frame checksums, its pages must not be used. Raises
        `FormatError` if the head shows that the file's header or index is damaged.
        """
        sums: list[int | None] = [None] * len(pgnos)
        head = file.head or await file.read_head(storage)
        if head is None:
            return sums
        rows = file.rows(pgnos)
        numbers = rows // SEGMENT_FRAMES
        for number in np.unique(numbers).tolist():
            segment = await self._segment(storage, file, head, number)
            if segment is not None:
                inside = np.flatnonzero(numbers == number)
                found = segment[rows[inside] - number * SEGMENT_FRAMES]
                for place, value in zip(inside.tolist(), found.tolist(), strict=True):
                    sums[place] = value
        return sums

    async def _segment(
        self, storage: Storage, file: FileSums, head: ChecksumsHead, number: int
    ) -> NDArray[np.uint32] | None:
        name = (file.file_checksum, number)
        while name in self._loading:
            await self._loading[name].wait()
        segment = self._segments.get(name)
        if segment is None:
            self._loading[name] = trio.Event()
            try:
                span = ByteRange(*head.segment_place(number))
                segment = await file.read_part(storage, span, partial(head.decode_segment, number))
            finally:
                self._loading.pop(name).set()
            if segment is not None:
                self._segments[name] = segment
        return segment
