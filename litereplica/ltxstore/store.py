"""One replica's LTX files in an object store.

Owns the mapping of levels and TXIDs to keys, and the number of requests that each access takes. Every byte that is
returned as a header, an index or a page has passed the checks of `litereplica.format`; whatever fails them
becomes `DamagedFile` with the key. It keeps no state, no cache and no clock, and decides nothing: plans are
`plan.py`'s, retries the storage's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import trio

from litereplica.concurrent import gather
from litereplica.errors import AccessDenied, DamagedFile, FileVanished, FormatError, NotFound, NotSupported
from litereplica.format import decoder, ltx, names
from litereplica.format.frame_checksums import HEAD_SIZE, sum_of
from litereplica.format.names import Layout
from litereplica.ltxstore.frame_checksums import SUMS_PREFIX, FileSums, sums_key
from litereplica.storage.base import Blob, Body, ByteRange, ObjectInfo, Range, Storage, Suffix
from litereplica.storage.credentials import Credentials
from litereplica.storage.open import open_storage
from litereplica.storage.url import parse_url
from litereplica.storage.wrappers import MeteredStorage, PrefixStorage
from litereplica.types import TXID, FileInfo

WHOLE_FILE_LIMIT = 256 * 1024
"""A file of up to this many bytes is read in one request: an ordinary L0, its pages and its index at once."""

TAIL_READ = 64 * 1024
"""First read of the end of a large file: the index of about 10,000 pages fits, larger ones take another request."""

DECODE_HERE = 64 * 1024
"""Bytes of an index that is decoded on the trio thread, in some milliseconds; a large one takes up to a second."""


LAYOUTS = {"file": Layout.FILE, "s3": Layout.S3}
"""By the scheme of the replica's URL."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenedFile:
    """A file whose header and index are known. `pages`, in the index's order, when it was read whole and its CRC was
    right; None when only the index was read. `file_checksum` is that of the trailer: it tells this file from any
    other that has or had its name. `etag` is that of the object that was read. `sums`, of a large file, say what is
    known of its frame checksums: with a head, its header and index have been checked by them."""

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
        self._prefixes = {level: names.level_prefix(layout, level) for level in names.LEVELS}

    @property
    def url(self) -> str:
        return self.storage.url

    def key(self, info: FileInfo) -> str:
        """Key of a file below the root."""
        return names.file_key(self.layout, info.level, info.min_txid, info.max_txid)

    async def list_level(self, level: int, *, after: TXID = 0) -> list[FileInfo]:
        """The files of a level whose max TXID is greater than `after`, ascending by (min, max).

        One listing. Only level 0, where a file is one TXID, lets the store skip what lies before: in the others a
        file that begins before `after` may end behind it.
        """
        prefix = self._prefixes[level]
        start = prefix + names.format_name(after, after) if level == 0 and after else None
        files = []
        for item in await self.storage.list(prefix, start_after=start):
            txids = names.parse_name(item.key[len(prefix) :])
            if txids is not None and txids[1] > after:
                files.append(FileInfo(level, *txids, item.size, item.modified_ms))
        return files

    async def list_levels(self, *, after: TXID = 0, in_order: bool = False) -> list[FileInfo]:
        """Return the files of all levels with a max TXID greater than `after`: one listing a level.

        Listings made at the same time may miss transactions that are compacted meanwhile. `in_order` makes them one
        after the other, from level 0 up, so that none is missed: see `replan.py`.
        """
        jobs = [partial(self.list_level, level, after=after) for level in names.LEVELS]
        levels = await gather(jobs, width=1 if in_order else None)
        return [info for files in levels for info in files]

    async def list_replicas(self) -> list[str]:
        """The prefixes, ascending, of the replicas below this root that have an LTX file; empty for the root's own.

        One listing of everything below the root.
        """
        prefixes = [names.replica_prefix(self.layout, item.key) for item in await self.storage.list("")]
        return sorted({prefix for prefix in prefixes if prefix is not None})

    def below(self, prefix: str, *, url: str) -> LTXStore:
        """The replica at a prefix; closing it leaves this one open. `url` is its own, for messages."""
        return LTXStore(PrefixStorage(self.storage, f"{prefix}/", url=url), self.layout)

    async def get(self, info: FileInfo, range: Range | None = None) -> Blob:
        """Bytes of a file, unchecked. `NotFound` when it has gone."""
        return await self.storage.get(self.key(info), range)

    async def open(self, info: FileInfo) -> OpenedFile:
        """Header and index, with the pages of a small file.

        A small file takes one request; a large one three at once, and one more when its index is large. What `info`
        says of the size need not be true. Raises `FileVanished` when the file is replaced between two requests.
        """
        if info.size <= WHOLE_FILE_LIMIT:
            blob = await self.get(info, ByteRange(0, WHOLE_FILE_LIMIT))
            if len(blob.data) == blob.size:
                return self._decode(info, blob)
        return await self._open_large(info)

    async def next_l0(self, txid: TXID) -> OpenedFile | None:
        """The L0 file of exactly this TXID, or None: what a poll asks, and what answers it, in one request."""
        info = FileInfo(0, txid, txid, 0)
        try:
            blob = await self.get(info, ByteRange(0, WHOLE_FILE_LIMIT))
        except NotFound:
            return None
        if len(blob.data) == blob.size:
            return self._decode(info, blob)
        return await self._open_large(info)

    async def put(self, info: FileInfo, body: Body, *, timestamp_ms: int) -> None:
        """Publish a file under its name. Raises `PreconditionFailed` if the name is taken.

        `timestamp_ms` is that of its header. A store that does not know conditions raises `NotSupported` for level 0
        only: a merged file has the same content whoever makes it, so that nothing is lost when it replaces another.
        """
        try:
            await self.storage.put_if_absent(self.key(info), body, modified_ms=timestamp_ms)
        except NotSupported:
            if info.level == 0:
                raise
            await self.storage.put(self.key(info), body, modified_ms=timestamp_ms)

    async def put_sums(self, info: FileInfo, body: bytes) -> None:
        """Publish the sums of a large file, before the file itself; they replace those of a file that had its name."""
        await self.storage.put(sums_key(info), body)

    async def list_sums(self) -> list[ObjectInfo]:
        """The sums of all levels. One listing."""
        return await self.storage.list(SUMS_PREFIX)

    async def delete(self, infos: Sequence[FileInfo]) -> None:
        """Delete files, and then their sums; what is already gone is not an error."""
        await self.storage.delete([self.key(info) for info in infos])
        large = [sums_key(info) for info in infos if info.size > WHOLE_FILE_LIMIT]
        if large:
            await self.storage.delete(large)

    async def aclose(self) -> None:
        await self.storage.aclose()

    async def _open_large(self, info: FileInfo) -> OpenedFile:
        start, tail, beside = await gather(
            [
                partial(self.get, info, ByteRange(0, ltx.HEADER_SIZE)),
                partial(self.get, info, Suffix(TAIL_READ)),
                partial(self._get_sums, info),
            ]
        )
        self.require_same(info, start, tail)
        with self.blame(info):
            header = ltx.Header.decode(start.data)
            check_name(info, header)
            file_checksum = ltx.decode_trailer(tail.data[-ltx.TRAILER_SIZE :])
            index_size = ltx.decode_index_size(tail.data[-ltx.TAIL_SIZE :], file_size=tail.size)
            if index_size > header.commit * ltx.MAX_INDEX_ENTRY_SIZE + 1:
                raise FormatError(f"page index claims {index_size} bytes for a database of {header.commit} pages")
        varints = tail.data[-ltx.TAIL_SIZE - index_size : -ltx.TAIL_SIZE]
        if len(varints) < index_size:
            index_end = tail.size - ltx.TAIL_SIZE
            middle = await self.get(info, ByteRange(index_end - index_size, index_end))
            self.require_same(info, start, middle)
            varints = middle.data
        with self.blame(info):
            decode = partial(ltx.decode_page_index, varints, header=header, file_size=tail.size)
            index = decode() if index_size <= DECODE_HERE else await trio.to_thread.run_sync(decode)
            own_sums = (sum_of(start.data[: ltx.HEADER_SIZE]), sum_of(varints))
            sums = FileSums.of(info, header, index, file_checksum=file_checksum, sums=own_sums)
            if beside.data:
                await sums.read_head(self.storage, first=beside.data)
            else:
                sums.note_missing()
        return OpenedFile(replace(info, size=tail.size), header, index, file_checksum, None, start.etag, sums)

    async def _get_sums(self, info: FileInfo) -> Blob:
        """Return the first bytes of the sums of a file; an empty part if there are none or access to them is denied."""
        try:
            return await self.storage.get(sums_key(info), ByteRange(0, HEAD_SIZE))
        except (NotFound, AccessDenied):
            return Blob(b"", 0, "")

    def require_same(self, info: FileInfo, first: Blob, other: Blob) -> None:
        """Two parts of a file are of the same object, else `FileVanished`."""
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
        """Format errors of the block become `DamagedFile` with this file's key."""
        try:
            yield
        except FormatError as exc:
            raise DamagedFile(
                self.key(info), exc.message, hint="run 'litereplica ltx' to see what else covers these transactions"
            ) from exc


def check_name(info: FileInfo, header: ltx.Header) -> None:
    """Raise `FormatError` unless a file's header agrees with its name."""
    if (header.min_txid, header.max_txid) != (info.min_txid, info.max_txid):
        raise FormatError(f"header has TXIDs {header.min_txid:016x}-{header.max_txid:016x}, unlike its name")


def open_ltx_store(url: str, *, credentials: Credentials | None = None) -> LTXStore:
    """The replica at a URL. Makes no request. Without `credentials` they come from the environment."""
    return LTXStore(MeteredStorage(open_storage(url, credentials=credentials)), LAYOUTS[parse_url(url).scheme])
