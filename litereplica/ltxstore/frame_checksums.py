"""The sums beside large files: where they are, and those of single frames, loaded as they are needed.

A file up to `WHOLE_FILE_LIMIT` is read whole and checked by its own checksum. Beside a larger one our writer and our
compaction put `sums/<level as %04x>/<min>-<max>.sums` (its content is `format/frame_checksums.py`'s), *before* the file
itself, so that a reader that sees the file finds them. The prefix is separate, so that listings of files do not grow,
neither ours nor Litestream's, which ignores the objects that it does not list. Files that others published have none.

Sums are an addition: without them, with those of another file, or with damaged ones, frames are as unknown as they
would be without. Sums whose file was never published, or was deleted by somebody else, are swept by `retention.py`.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import numpy as np
import trio
from cachetools import LRUCache
from numpy.typing import NDArray

from litereplica.errors import AccessDenied, FormatError, NotFound
from litereplica.format import ltx
from litereplica.format.frame_checksums import SEGMENT_FRAMES, SumsHead
from litereplica.format.names import format_txid
from litereplica.storage.base import ByteRange, Storage
from litereplica.types import TXID, FileInfo, Pgno

log = logging.getLogger(__name__)

SUMS_PREFIX = "sums/"

KEPT_SEGMENTS = 256
"""Segments in memory, 32 KiB each: those of 2 million pages."""

_KEY = re.compile(r"sums/([0-9a-f]{4})/([0-9a-f]{16})-([0-9a-f]{16})\.sums", re.ASCII)


def sums_key(info: FileInfo) -> str:
    """Key of the sums of a file, the same in both layouts."""
    return f"{SUMS_PREFIX}{info.level:04x}/{format_txid(info.min_txid)}-{format_txid(info.max_txid)}.sums"


def parse_sums_key(key: str) -> tuple[int, TXID, TXID] | None:
    """Level and TXIDs (min, max) of the file that sums are of; None when it is no key of sums."""
    match = _KEY.fullmatch(key)
    return (int(match[1], 16), int(match[2], 16), int(match[3], 16)) if match else None


@dataclass(frozen=True, slots=True, eq=False)
class FileSums:
    """The sums that belong to an opened file. `pgnos` are the pages that it has; None: every page of its database."""

    key: str
    head: SumsHead
    pgnos: NDArray[np.uint32] | None
    lock_pgno: Pgno

    @classmethod
    def of(cls, info: FileInfo, head: SumsHead, header: ltx.Header, index: ltx.PageIndex) -> FileSums:
        has_every_page = len(index) == header.snapshot_page_count
        return cls(sums_key(info), head, None if has_every_page else index.pgno, header.lock_pgno)

    def rows(self, pgnos: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Where these pages, which the file must have, stand in its index."""
        if self.pgnos is not None:
            return np.searchsorted(self.pgnos, pgnos).astype(np.int64)
        rows: NDArray[np.int64] = pgnos.astype(np.int64) - 1 - (pgnos > self.lock_pgno)
        return rows


class FrameSums:
    """The sums of frames of any files: segments are fetched once, and the most recent ones kept."""

    def __init__(self) -> None:
        self._segments: LRUCache[tuple[int, int], NDArray[np.uint32]] = LRUCache(KEPT_SEGMENTS)
        self._damaged: set[tuple[int, int]] = set()
        self._gone: set[int] = set()  # checksums of files whose sums were there when they were opened
        self._loading: dict[tuple[int, int], trio.Event] = {}

    async def of(self, storage: Storage, file: FileSums, pgnos: NDArray[np.uint32]) -> list[int | None]:
        """The sum of the frame of each of these pages; None where it cannot be known.

        One request for each segment that is not at hand. Raises what the store raises: that a file has sums is known,
        so without them nothing of it is to be used.
        """
        rows = file.rows(pgnos)
        numbers = rows // SEGMENT_FRAMES
        sums: list[int | None] = [None] * len(rows)
        for number in np.unique(numbers).tolist():
            segment = await self._segment(storage, file, number)
            if segment is not None:
                inside = np.flatnonzero(numbers == number)
                found = segment[rows[inside] - number * SEGMENT_FRAMES]
                for place, value in zip(inside.tolist(), found.tolist(), strict=True):
                    sums[place] = value
        return sums

    async def _segment(self, storage: Storage, file: FileSums, number: int) -> NDArray[np.uint32] | None:
        name = (file.head.file_checksum, number)
        while name not in self._damaged and file.head.file_checksum not in self._gone:
            if (segment := self._segments.get(name)) is not None:
                return segment
            if name in self._loading:
                await self._loading[name].wait()
                continue
            self._loading[name] = trio.Event()
            try:
                segment = await self._load(storage, file, number)
            finally:
                self._loading.pop(name).set()
            if segment is None:
                self._damaged.add(name)
            else:
                self._segments[name] = segment
        return None

    async def _load(self, storage: Storage, file: FileSums, number: int) -> NDArray[np.uint32] | None:
        """A segment from the store; one that is not right is asked for once more: that may have happened on the way."""
        problem = ""
        for _ in range(2):
            try:
                blob = await storage.get(file.key, ByteRange(*file.head.segment_place(number)))
                return file.head.decode_segment(number, blob.data)
            except FormatError as exc:
                problem = exc.message
            except (NotFound, AccessDenied) as exc:
                self._gone.add(file.head.file_checksum)
                problem = exc.message
                break
        log.warning("%s: pages of this file cannot be checked before it has been read whole: %s", file.key, problem)
        return None
