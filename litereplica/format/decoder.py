"""Decodes whole LTX files with every check: as a stream with bounded memory (`Decoder`), or at once (`decode_file`)."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import lz4.block
import numpy as np

from litereplica.errors import LTXError
from litereplica.format import checksum, ltx
from litereplica.format.frames import HEAD
from litereplica.types import Pgno


@dataclass(frozen=True, slots=True, eq=False)
class LTXFile:
    """A whole file that passed every check. `pages` are in the order of `index`."""

    header: ltx.Header
    index: ltx.PageIndex
    pages: list[bytes]
    file_checksum: int


class Decoder:
    """Decodes a file that arrives in chunks: `feed` each of them, then `finish`.

    `feed` returns the pages completed by the chunk. They are known to be valid only after `finish` has returned,
    because the checksum is at the end. Every method raises `LTXError`; the decoder cannot be used after an error.
    Memory: one frame, one chunk, 8 bytes a page, and the index once it arrives. Chunks may have any size: they are
    joined only when the next record is complete, so each byte is copied a fixed number of times.
    """

    def __init__(self) -> None:
        self.header: ltx.Header | None = None
        self._pieces: list[bytes] = []  # bytes that are not decoded yet
        self._held = 0  # number of these bytes
        self._needed = ltx.HEADER_SIZE  # minimum size of the next record
        self._taken = 0  # number of bytes of the file before `_pieces`
        self._in_tail = False  # True after the end mark of the frames
        self._crc: int | None = None
        self._pgnos = array("I")
        self._sizes = array("I")

    def feed(self, chunk: bytes | memoryview) -> list[tuple[Pgno, bytes]]:
        """Decode the next bytes of the file; return the pages that they complete, ascending."""
        return self._feed(chunk, frames=False)

    def feed_frames(self, chunk: bytes | memoryview) -> list[tuple[Pgno, bytes]]:
        """As `feed`, but return whole frames with a size, for `Encoder.frames`.

        Pages are decompressed for the checks, but not kept, so that memory is proportional to the bytes of the file.
        """
        return self._feed(chunk, frames=True)

    def _feed(self, chunk: bytes | memoryview, *, frames: bool) -> list[tuple[Pgno, bytes]]:
        self._pieces.append(bytes(chunk))
        self._held += len(chunk)
        if self._held < self._needed:
            return []
        data = b"".join(self._pieces)
        pages: list[tuple[Pgno, bytes]] = []
        used = self._take(data, pages, frames)
        self._pieces = [data[used:]]
        self._held -= used
        self._taken += used
        if self._in_tail and self._held >= self._needed:
            raise LTXError(f"LTX file has more than {self._needed - 1} bytes after its {len(self._pgnos)} frames")
        return pages

    def take_page(self, pgno: Pgno, size: int, page: bytes) -> None:
        """Add the page of the next frame, which has a size and `size` bytes, instead of feeding these bytes.

        All bytes before must have been fed, up to the end of a frame.
        """
        if self.header is None or self._held or self._in_tail:
            raise LTXError(f"LTX frame of page {pgno} is not expected here")
        self._check_pgno(pgno, self.header)
        head = ltx.encode_frame_head(pgno, size - ltx.frame_head_size(ltx.FRAME_HAS_SIZE))
        self._crc = checksum.update(checksum.update(self._crc, head), page)
        self._pgnos.append(pgno)
        self._sizes.append(size)
        self._taken += size

    def finish(self) -> LTXFile:
        """Check the whole file, after its last byte. Returns header, index and checksum, with `pages` empty."""
        file_size = self._taken + self._held
        if self.header is None or not self._in_tail:
            raise LTXError(f"LTX file ends after {file_size} bytes: truncated")
        tail = memoryview(b"".join(self._pieces))
        self._pieces.clear()
        index_size = ltx.decode_index_size(tail[-ltx.TAIL_SIZE :], file_size=file_size)
        if index_size + ltx.TAIL_SIZE != len(tail):
            raise LTXError("LTX page index does not fill the space after the frames")
        file_checksum = ltx.decode_trailer(tail[-ltx.TRAILER_SIZE :])
        crc = checksum.stored(checksum.update(self._crc, tail[: -ltx.CHECKSUM_SIZE]))
        if crc != file_checksum:
            raise LTXError(f"LTX file checksum is {file_checksum:016x}, computed {crc:016x}")
        index = ltx.decode_page_index(tail[:index_size], header=self.header, file_size=file_size)
        if not np.array_equal(index.pgno, self._pgnos) or not np.array_equal(index.size, self._sizes):
            raise LTXError("LTX page index does not agree with the frames")
        return LTXFile(self.header, index, [], file_checksum)

    def _take(self, data: bytes, pages: list[tuple[Pgno, bytes]], frames: bool) -> int:
        """Decode the complete records at the start of `data`; return their size in bytes."""
        if self._in_tail:
            return 0
        position = 0
        if self.header is None:
            self.header = ltx.Header.decode(data)
            position = ltx.HEADER_SIZE
            self._crc = checksum.update(None, data[:position])
        return self._take_frames(self.header, data, position, pages, frames)

    def _take_frames(
        self, header: ltx.Header, data: bytes, position: int, pages: list[tuple[Pgno, bytes]], frames: bool
    ) -> int:
        """Decode the complete frames from `position` on; return the offset after them."""
        view = memoryview(data)
        while True:
            position = self._take_usual_frames(header, data, position, pages, frames)
            size = ltx.least_frame_size(view[position:], page_size=header.page_size)
            if size > len(data) - position:
                self._needed = size
                return position
            frame = view[position : position + size]
            position += size
            pgno, flags = ltx.decode_frame_header(frame, 0)
            if pgno == 0:
                self._begin_tail(frame)
                return position
            self._check_pgno(pgno, header)
            page = ltx.decode_frame(frame, pgno=pgno, page_size=header.page_size)
            self._crc = checksum.update(checksum.update(self._crc, frame[: ltx.frame_head_size(flags)]), page)
            self._pgnos.append(pgno)
            self._sizes.append(size)
            pages.append((pgno, ltx.encode_frame(pgno, page) if frames else page))

    def _take_usual_frames(
        self, header: ltx.Header, data: bytes, position: int, pages: list[tuple[Pgno, bytes]], frames: bool
    ) -> int:
        """Decode the frames from `position` on that are complete, valid and have a size; return the offset after them.

        This is the fast path: a loop with as little work for each frame as possible.
        """
        unpack, head_size, page_size = HEAD.unpack_from, HEAD.size, header.page_size
        largest = ltx.max_frame_size(page_size) - head_size
        commit, lock_pgno, crc = header.commit, header.lock_pgno, self._crc
        add_pgno, add_size, add_page = self._pgnos.append, self._sizes.append, pages.append
        previous = self._pgnos[-1] if self._pgnos else 0
        limit = len(data) - head_size
        while position < limit:
            pgno, flags, payload_size = unpack(data, position)
            start = position + head_size
            end = start + payload_size
            if (
                flags != ltx.FRAME_HAS_SIZE
                or end > len(data)
                or payload_size > largest
                or not previous < pgno <= commit
                or pgno == lock_pgno
            ):
                break
            try:
                page = lz4.block.decompress(data[start:end], uncompressed_size=page_size)
            except (lz4.block.LZ4BlockError, ValueError):
                break
            if len(page) != page_size:
                break
            crc = checksum.update(checksum.update(crc, data[position:start]), page)
            add_pgno(pgno)
            add_size(end - position)
            add_page((pgno, data[position:end] if frames else page))
            previous, position = pgno, end
        self._crc = crc
        return position

    def _check_pgno(self, pgno: Pgno, header: ltx.Header) -> None:
        previous = self._pgnos[-1] if self._pgnos else 0
        if not previous < pgno <= header.commit or pgno == header.lock_pgno:
            raise LTXError(f"frame of page {pgno} follows page {previous}, database has {header.commit}")

    def _begin_tail(self, end_of_frames: memoryview) -> None:
        """Begin to collect the bytes after the frames for `finish`, up to the size that the frames allow."""
        self._crc = checksum.update(self._crc, end_of_frames)
        self._in_tail = True
        self._needed = len(self._pgnos) * ltx.MAX_INDEX_ENTRY_SIZE + 1 + ltx.TAIL_SIZE + 1


def decode_file(data: bytes | memoryview) -> LTXFile:
    """Decode a whole file in memory, with its pages. Raises `LTXError`."""
    decoder = Decoder()
    pages = [page for _, page in decoder.feed(data)]
    checked = decoder.finish()
    return LTXFile(checked.header, checked.index, pages, checked.file_checksum)
