"""One replica's LTX files in an object store.

Owns the mapping of levels and TXIDs to keys, and the number of requests that each access takes. Every byte that is
returned as a header, an index or a page has passed the checks of `litereplica.format`; whatever fails them
becomes `DamagedFile` with the key. It keeps no state, no cache and no clock, and decides nothing: plans are
`plan.py`'s, retries the storage's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from litereplica.errors import DamagedFile, FormatError, NotFound
from litereplica.format import decoder, ltx, names
from litereplica.format.names import Layout
from litereplica.storage.base import Blob, Body, ByteRange, Range, Storage, Suffix
from litereplica.storage.url import open_storage, parse_url
from litereplica.types import TXID, FileInfo

WHOLE_FILE_LIMIT = 256 * 1024
"""A file of up to this many bytes is read in one request: an ordinary L0, its pages and its index at once."""

TAIL_READ = 64 * 1024
"""First read of the end of a large file: the index of about 10,000 pages fits, larger ones take another request."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenedFile:
    """A file whose header and index are known. `pages`, in the index's order, when it was read whole and its CRC was
    right; None when only the index was read."""

    info: FileInfo
    header: ltx.Header
    index: ltx.PageIndex
    pages: list[bytes] | None


class LTXStore:
    """Access to the LTX files below one root."""

    def __init__(self, storage: Storage, layout: Layout) -> None:
        self.storage = storage
        self.layout = layout

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
        prefix = names.level_prefix(self.layout, level)
        start = prefix + names.format_name(after, after) if level == 0 and after else None
        files = []
        for item in await self.storage.list(prefix, start_after=start):
            txids = names.parse_name(item.key[len(prefix) :])
            if txids is not None and txids[1] > after:
                files.append(FileInfo(level, *txids, item.size, item.modified_ms))
        return files

    async def list_levels(self, *, after: TXID = 0) -> list[FileInfo]:
        """The files of all levels with a max TXID greater than `after`: one listing a level."""
        files: list[FileInfo] = []
        for level in names.LEVELS:
            files += await self.list_level(level, after=after)
        return files

    async def get(self, info: FileInfo, range: Range | None = None) -> Blob:
        """Bytes of a file, unchecked. `NotFound` when it has gone."""
        return await self.storage.get(self.key(info), range)

    async def open(self, info: FileInfo) -> OpenedFile:
        """Header and index, with the pages of a small file: one request for a small file, else two or three."""
        if info.size <= WHOLE_FILE_LIMIT:
            return await self.read(info)
        with self._blame(info):
            tail = await self.get(info, Suffix(TAIL_READ))
            index_size = ltx.decode_index_size(tail.data[-ltx.TAIL_SIZE :], file_size=tail.size)
            ltx.decode_trailer(tail.data[-ltx.TRAILER_SIZE :])
            header = ltx.Header.decode((await self.get(info, ByteRange(0, ltx.HEADER_SIZE))).data)
            self._check_name(info, header)
            index_end = tail.size - ltx.TAIL_SIZE
            if index_size + ltx.TAIL_SIZE <= len(tail.data):
                varints = tail.data[-ltx.TAIL_SIZE - index_size : -ltx.TAIL_SIZE]
            else:
                varints = (await self.get(info, ByteRange(index_end - index_size, index_end))).data
            index = ltx.decode_page_index(varints, header=header, file_size=tail.size)
        return OpenedFile(info, header, index, None)

    async def read(self, info: FileInfo) -> OpenedFile:
        """The whole file in memory, its CRC checked: one request."""
        blob = await self.get(info)
        return self._decode(info, blob)

    async def next_l0(self, txid: TXID) -> OpenedFile | None:
        """The L0 file of exactly this TXID, or None: what a poll asks, and what answers it, in one request."""
        info = FileInfo(0, txid, txid, 0)
        try:
            blob = await self.get(info, ByteRange(0, WHOLE_FILE_LIMIT))
        except NotFound:
            return None
        info = FileInfo(0, txid, txid, blob.size)
        return self._decode(info, blob) if len(blob.data) == blob.size else await self.open(info)

    async def put(self, info: FileInfo, body: Body, *, timestamp_ms: int) -> None:
        """Publish a file under its name, unless the name is taken: then `PreconditionFailed`.

        `timestamp_ms` is that of its header.
        """
        await self.storage.put_if_absent(self.key(info), body, modified_ms=timestamp_ms)

    async def delete(self, infos: Sequence[FileInfo]) -> None:
        """Delete files; those already gone are not an error."""
        await self.storage.delete([self.key(info) for info in infos])

    async def aclose(self) -> None:
        await self.storage.aclose()

    def _decode(self, info: FileInfo, blob: Blob) -> OpenedFile:
        with self._blame(info):
            file = decoder.decode_file(blob.data)
            self._check_name(info, file.header)
        return OpenedFile(info, file.header, file.index, file.pages)

    @staticmethod
    def _check_name(info: FileInfo, header: ltx.Header) -> None:
        if (header.min_txid, header.max_txid) != (info.min_txid, info.max_txid):
            raise FormatError(f"header has TXIDs {header.min_txid:016x}-{header.max_txid:016x}, unlike its name")

    @contextmanager
    def _blame(self, info: FileInfo) -> Iterator[None]:
        try:
            yield
        except FormatError as exc:
            raise DamagedFile(
                self.key(info), exc.message, hint="run 'litereplica ltx' to see what else covers these transactions"
            ) from exc


def open_ltx_store(url: str) -> LTXStore:
    """The replica at a URL. Makes no request."""
    layout = Layout.FILE if parse_url(url).scheme == "file" else Layout.S3
    return LTXStore(open_storage(url), layout)
