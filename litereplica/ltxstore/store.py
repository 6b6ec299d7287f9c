"""The LTX files of one replica in an object store.

Maps levels and TXIDs to keys, and defines which requests each access makes. Every header, index and page that is
returned has passed the checks of `litereplica.format`; anything that fails them raises `DamagedFile` with the key.
What fails is requested once more before, as the damage may have happened in transit. There is no cache and no clock
here. `plan.py` makes plans, and the storage retries.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import trio

from litereplica.concurrent import gather
from litereplica.errors import AccessDenied, DamagedFile, FileVanished, FormatError, NotFound, NotSupported
from litereplica.file_events import Changes
from litereplica.format import decoder, ltx, names
from litereplica.format.frame_checksums import HEAD_SIZE, crc32c
from litereplica.format.generations import backup_prefix
from litereplica.format.names import Layout
from litereplica.ltxstore.frame_checksums import FRAME_CHECKSUMS_PREFIX, FileSums, frame_checksums_key
from litereplica.ltxstore.limits import require_index_size
from litereplica.storage.base import Blob, Body, ByteRange, ObjectInfo, Range, Storage, Suffix
from litereplica.storage.credentials import Credentials
from litereplica.storage.open import open_storage
from litereplica.storage.url import parse_url
from litereplica.storage.wrappers import MeteredStorage, PrefixStorage
from litereplica.types import TXID, FileInfo

T = TypeVar("T")

log = logging.getLogger(__name__)

WHOLE_FILE_LIMIT = 256 * 1024
"""A file of up to this many bytes is read whole, in one request: most files of level 0."""

TAIL_READ = 64 * 1024
"""Bytes read first from the end of a large file. The index of about 10,000 pages fits; a larger one takes another
request."""

INDEX_PIECE = 4 << 20
"""Bytes of a large index that are read at a time: the index of a million pages takes three requests."""

DECODE_HERE = 64 * 1024
"""An index up to this size is decoded in trio's thread, in some milliseconds; a large one takes up to a second."""


LAYOUTS = {"file": Layout.FILE, "s3": Layout.S3}
"""The layout by the scheme of the replica's URL."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenedFile:
    """A file whose header and index are known.

    `pages`, in the order of the index, if the file was read whole and its CRC is valid; None if only the index was
    read. `file_checksum` is that of the trailer; it distinguishes the file from others with the same name. `etag` is
    that of the object that was read. `sums` is the state of a large file's frame checksums; if it has a head, header
    and index have been checked by it.
    """

    info: FileInfo
    header: ltx.Header
    index: ltx.PageIndex
    file_checksum: int
    pages: list[bytes] | None
    etag: str = ""
    sums: FileSums | None = None


class LTXStore:
    """Access to the LTX files below one root."""

    def __init__(self, storage: Storage, layout: Layout) -> None:
        self.storage = storage
        self.layout = layout
        self._refused: set[str] = set()  # keys that were reported
        self._prefixes = {level: names.level_prefix(layout, level) for level in names.LEVELS}

    @property
    def url(self) -> str:
        """The URL of the replica, without credentials: for messages."""
        return self.storage.url

    def key(self, info: FileInfo) -> str:
        """Key of a file below the root."""
        return names.file_key(self.layout, info.level, info.min_txid, info.max_txid)

    async def list_level(self, level: int, *, after: TXID = 0) -> list[FileInfo]:
        """Return the files of a level with a max TXID greater than `after`, ascending by (min, max).

        Makes one listing. Only in level 0, where a file has one TXID, the store skips the files before: in other levels
        a file that begins before `after` may end after it.
        """
        prefix = self._prefixes[level]
        start = prefix + names.format_name(after, after) if level == 0 and after else None
        return self._files_in(level, await self.storage.list(prefix, start_after=start), after=after)

    def _files_in(self, level: int, items: Iterable[ObjectInfo], *, after: TXID) -> list[FileInfo]:
        """Return the LTX files of a level among the objects of a listing."""
        prefix = self._prefixes[level]
        files = []
        for item in items:
            name = item.key.removeprefix(prefix)
            txids = names.parse_name(name)
            if txids is not None and txids[1] > after:
                files.append(FileInfo(level, *txids, item.size, item.modified_ms))
            elif txids is None and names.is_beyond_limit(name) and item.key not in self._refused:
                self._refused.add(item.key)
                log.warning("%s in %s is not used: its TXIDs are beyond the limit", item.key, self.url)
        return files

    def watch(self) -> AbstractAsyncContextManager[Changes]:
        """Tell during the block when files of level 0 may have come. A hint: most stores have none."""
        return self.storage.watch(self._prefixes[0], lambda name: names.parse_name(name) is not None)

    async def list_at_once(self, *, after: TXID = 0) -> list[FileInfo]:
        """Return the files of all levels as `list_levels`, by one listing of everything below the root.

        That is one request for each 1,000 objects instead of ten: for a replica that is one of many.
        """
        items = await self.storage.list("")
        by_level = ([item for item in items if item.key.startswith(self._prefixes[level])] for level in names.LEVELS)
        return [info for level, found in enumerate(by_level) for info in self._files_in(level, found, after=after)]

    async def list_levels(self, *, after: TXID = 0, in_order: bool = False) -> list[FileInfo]:
        """Return the files of all levels with a max TXID greater than `after`, by one listing a level.

        Concurrent listings may miss transactions that are compacted meanwhile. With `in_order` the levels are listed
        one after the other, from level 0 up, so that none is missed: see `replan.py`.
        """
        jobs = [partial(self.list_level, level, after=after) for level in names.LEVELS]
        levels = await gather(jobs, width=1 if in_order else None)
        return [info for files in levels for info in files]

    async def list_replicas(self) -> list[str]:
        """Return the prefixes, ascending, of all replicas below this root that have an LTX file.

        Backups by Litestream 0.3 count too. The prefix of a replica at the root itself is empty. Makes one listing of
        everything below the root.
        """
        keys = [item.key for item in await self.storage.list("")]
        found = {names.replica_prefix(self.layout, key) for key in keys} | set(map(backup_prefix, keys))
        return sorted(prefix for prefix in found if prefix is not None)

    def below(self, prefix: str, *, url: str) -> LTXStore:
        """Return the replica at a prefix, for which `url` is used in messages. Closing it leaves this one open."""
        return LTXStore(PrefixStorage(self.storage, f"{prefix}/", url=url), self.layout)

    async def get(self, info: FileInfo, range: Range | None = None) -> Blob:
        """Return bytes of a file, unchecked. Raises `NotFound` if it does not exist."""
        return await self.storage.get(self.key(info), range)

    async def read_checksum(self, info: FileInfo) -> int:
        """Read the checksum at the end of a file: one small request. The size in `info` need not be correct.

        Raises `NotFound`, and `DamagedFile` if the file does not end in a trailer.
        """
        return await again_if_damaged(partial(self._read_checksum, info))

    async def read_header(self, info: FileInfo) -> ltx.Header:
        """Read the header of a file: one small request. Raises `NotFound`, and `DamagedFile` if it fails a check."""
        return await again_if_damaged(partial(self._read_header, info))

    async def open(self, info: FileInfo) -> OpenedFile:
        """Read header and index of a file, and the pages if it is small.

        A small file takes one request; a large one three concurrent ones, of which two are made later if `info` has
        too small a size, and one more if its index is large.

        Raises:
            NotFound: the file does not exist.
            FileVanished: it was replaced between two requests.
            DamagedFile: it fails a check.
        """
        return await again_if_damaged(partial(self._open, info))

    async def next_l0(self, txid: TXID) -> OpenedFile | None:
        """Return the level 0 file of exactly this TXID, or None: a poll takes one request, three for a large file."""
        if txid > names.MAX_TXID:
            return None
        try:
            return await self.open(FileInfo(0, txid, txid, 0))
        except FileVanished:
            raise
        except NotFound:
            return None

    async def put(self, info: FileInfo, body: Body, *, timestamp_ms: int) -> None:
        """Publish a file under its name. Raises `PreconditionFailed` if the name is taken.

        `timestamp_ms` is that of its header. If the store does not support conditions, this raises `NotSupported` for
        level 0 only: a merged file has the same content whichever program makes it, so it may replace another.
        """
        try:
            await self.storage.put_if_absent(self.key(info), body, modified_ms=timestamp_ms)
        except NotSupported:
            if info.level == 0:
                raise
            await self.storage.put(self.key(info), body, modified_ms=timestamp_ms)

    async def put_frame_checksums(self, info: FileInfo, body: bytes) -> None:
        """Publish the frame checksums of a large file, before the file itself. Replaces those of an earlier file."""
        await self.storage.put(frame_checksums_key(info), body)

    async def list_frame_checksums(self) -> list[ObjectInfo]:
        """Return the objects with the frame checksums of all levels, by one listing."""
        return await self.storage.list(FRAME_CHECKSUMS_PREFIX)

    async def delete(self, infos: Sequence[FileInfo]) -> None:
        """Delete files, and then their frame checksums; objects that do not exist are no error."""
        await self.storage.delete([self.key(info) for info in infos])
        large = [frame_checksums_key(info) for info in infos if info.size > WHOLE_FILE_LIMIT]
        if large:
            await self.storage.delete(large)

    async def aclose(self) -> None:
        """Close the storage."""
        await self.storage.aclose()

    async def _read_checksum(self, info: FileInfo) -> int:
        blob = await self.get(info, Suffix(ltx.TRAILER_SIZE))
        with self.blame(info):
            return ltx.decode_trailer(blob.data)

    async def _read_header(self, info: FileInfo) -> ltx.Header:
        blob = await self.get(info, ByteRange(0, ltx.HEADER_SIZE))
        with self.blame(info):
            header = ltx.Header.decode(blob.data)
            check_name(info, header)
        return header

    async def _open(self, info: FileInfo) -> OpenedFile:
        if info.size <= WHOLE_FILE_LIMIT:
            blob = await self.get(info, ByteRange(0, WHOLE_FILE_LIMIT))
            return self._decode(info, blob) if len(blob.data) == blob.size else await self._open_large(info, blob)
        return await self._open_large(info)

    async def _open_large(self, info: FileInfo, start: Blob | None = None) -> OpenedFile:
        """Open a file that is not read whole; `start` are its first bytes, if they have been read already."""
        jobs = [partial(self.get, info, Suffix(TAIL_READ)), partial(self._get_checksums_head, info)]
        if start is None:
            jobs.append(partial(self.get, info, ByteRange(0, ltx.HEADER_SIZE)))
        tail, beside, *first = await gather(jobs)
        start = start or first[0]
        self.require_same(info, start, tail)
        with self.blame(info):
            header = ltx.Header.decode(start.data)
            check_name(info, header)
            file_checksum = ltx.decode_trailer(tail.data[-ltx.TRAILER_SIZE :])
            index_size = ltx.decode_index_size(tail.data[-ltx.TAIL_SIZE :], file_size=tail.size)
            require_index_size(index_size, header, file_size=tail.size)
        varints = tail.data[-ltx.TAIL_SIZE - index_size : -ltx.TAIL_SIZE]
        if len(varints) < index_size:
            varints = await self._read_index(info, start, index_size)
        with self.blame(info):
            decode = partial(ltx.decode_page_index, varints, header=header, file_size=tail.size)
            index = decode() if index_size <= DECODE_HERE else await trio.to_thread.run_sync(decode)
            own_checksums = (crc32c(start.data[: ltx.HEADER_SIZE]), crc32c(varints))
            sums = FileSums.of(info, header, index, file_checksum=file_checksum, sums=own_checksums)
            if beside.data:
                await sums.read_head(self.storage, first=beside.data)
            else:
                sums.note_missing()
        return OpenedFile(replace(info, size=tail.size), header, index, file_checksum, None, start.etag, sums)

    async def _read_index(self, info: FileInfo, start: Blob, size: int) -> bytes:
        """Return the varints of a large index, read in pieces, so that memory follows what is there."""
        end = start.size - ltx.TAIL_SIZE
        parts = []
        for first in range(end - size, end, INDEX_PIECE):
            piece = await self.get(info, ByteRange(first, min(first + INDEX_PIECE, end)))
            self.require_same(info, start, piece)
            with self.blame(info):
                ltx.require_index_piece(piece.data, is_last=first + INDEX_PIECE >= end)
            parts.append(piece.data)
        return b"".join(parts)

    async def _get_checksums_head(self, info: FileInfo) -> Blob:
        """Return the head of a file's frame checksums; empty data if they are missing or access is denied."""
        try:
            return await self.storage.get(frame_checksums_key(info), ByteRange(0, HEAD_SIZE))
        except (NotFound, AccessDenied):
            return Blob(b"", 0, "")

    def require_same(self, info: FileInfo, first: Blob, other: Blob) -> None:
        """Raise `FileVanished` unless two parts of a file are of the same object."""
        if (first.size, first.etag) != (other.size, other.etag):
            raise FileVanished(f"{self.key(info)} in {self.url} was replaced while it was read", key=self.key(info))

    def _decode(self, info: FileInfo, blob: Blob) -> OpenedFile:
        with self.blame(info):
            file = decoder.decode_file(blob.data)
            check_name(info, file.header)
        sized = replace(info, size=blob.size)
        return OpenedFile(sized, file.header, file.index, file.file_checksum, file.pages, blob.etag)

    @contextmanager
    def blame(self, info: FileInfo) -> Iterator[None]:
        """Translate format errors of the block into `DamagedFile` with this file's key."""
        try:
            yield
        except FormatError as exc:
            raise DamagedFile(
                self.key(info), exc.message, hint="run 'litereplica verify' to see what can be restored"
            ) from exc


async def again_if_damaged(read: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `read`. It is called once more on `DamagedFile`: the damage may have happened in transit."""
    try:
        return await read()
    except DamagedFile:
        return await read()


def check_name(info: FileInfo, header: ltx.Header) -> None:
    """Raise `FormatError` unless a file's header agrees with its name."""
    if (header.min_txid, header.max_txid) != (info.min_txid, info.max_txid):
        raise FormatError(f"header has TXIDs {header.min_txid:016x}-{header.max_txid:016x}, which differ from its name")


def open_ltx_store(url: str, *, credentials: Credentials | None = None) -> LTXStore:
    """Open the replica at a URL. Makes no request. Without `credentials` they come from the environment."""
    return LTXStore(MeteredStorage(open_storage(url, credentials=credentials)), LAYOUTS[parse_url(url).scheme])
