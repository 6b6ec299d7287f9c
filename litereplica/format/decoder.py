"""Reading whole LTX files, every check included: as a stream of bounded memory, or at once."""

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
    """A file that was read whole and passed every check. `pages` are in the order of `index`."""

    header: ltx.Header
    index: ltx.PageIndex
    pages: list[bytes]
    file_checksum: int


class Decoder:
    """Decodes a file that arrives in chunks: `feed` each of them, then `finish`.

    `feed` returns the pages completed by the chunk. They are right only once `finish` has returned, because the
    checksum is at the end. Every method raises `LTXError`; afterwards the decoder is of no use.
    Memory: one frame, one chunk, 8 bytes a page, and the index once it arrives. Chunks may have any size: they are
    looked at when the next record is known to be whole, so each byte is copied a fixed number of times.
    """

    def __init__(self) -> None:
        self.header: ltx.Header | None = None
        self._pieces: list[bytes] = []  # what was fed and not taken yet
        self._held = 0  # bytes of it
        self._needed = ltx.HEADER_SIZE  # bytes that the next record has at least
        self._taken = 0  # bytes of the file before `_pieces`
        self._in_tail = False  # behind the end of the frames
        self._crc: int | None = None
        self._pgnos = array("I")
        self._sizes = array("I")

    def feed(self, chunk: bytes | memoryview) -> list[tuple[Pgno, bytes]]:
        """Take the next bytes of the file; return the pages that they complete, ascending."""
        return self._feed(chunk, frames=False)

    def feed_frames(self, chunk: bytes | memoryview) -> list[tuple[Pgno, bytes]]:
        """As `feed`, but return the pages as they are in the file, whole frames with a size, for `Encoder.frames`.

        They are decompressed for the checks, and not kept: memory follows the bytes of the file.
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
            raise LTXError(f"LTX file has more than {self._needed - 1} bytes behind its {len(self._pgnos)} frames")
        return pages

    def take_page(self, pgno: Pgno, size: int, page: bytes) -> None:
        """In place of the bytes of the next frame, `size` of them: its page, which is at hand. For a frame with a size.

        All that was fed must have been taken, up to the end of a frame.
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
        """The file has ended. Returns its header and index (`pages` is empty: `feed` returned them)."""
        file_size = self._taken + self._held
        if self.header is None or not self._in_tail:
            raise LTXError(f"LTX file ends after {file_size} bytes: truncated")
        tail = memoryview(b"".join(self._pieces))
        self._pieces.clear()
        index_size = ltx.decode_index_size(tail[-ltx.TAIL_SIZE :], file_size=file_size)
        if index_size + ltx.TAIL_SIZE != len(tail):
            raise LTXError("LTX page index does not fill the space behind the frames")
        file_checksum = ltx.decode_trailer(tail[-ltx.TRAILER_SIZE :])
        crc = checksum.stored(checksum.update(self._crc, tail[: -ltx.CHECKSUM_SIZE]))
        if crc != file_checksum:
            raise LTXError(f"LTX file checksum is {file_checksum:016x}, computed {crc:016x}")
        index = ltx.decode_page_index(tail[:index_size], header=self.header, file_size=file_size)
        if not np.array_equal(index.pgno, self._pgnos) or not np.array_equal(index.size, self._sizes):
            raise LTXError("LTX page index does not agree with the frames")
        return LTXFile(self.header, index, [], file_checksum)

    def _take(self, data: bytes, pages: list[tuple[Pgno, bytes]], frames: bool) -> int:
        """Take the whole records at the start of `data`; returns the bytes that they have."""
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
        """Take the whole frames from `position` on; returns the offset after them."""
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
        """Take the frames from `position` on that are whole, have a size, and have nothing wrong with them.

        The same as is done with the others, in a loop that has as little to do for each as can be.
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
        """All that follows is held until `finish`, as long as the frames justify it."""
        self._crc = checksum.update(self._crc, end_of_frames)
        self._in_tail = True
        self._needed = len(self._pgnos) * ltx.MAX_INDEX_ENTRY_SIZE + 1 + ltx.TAIL_SIZE + 1


def decode_file(data: bytes | memoryview) -> LTXFile:
    """Decode a whole file in memory, with its pages. Raises `LTXError`."""
    decoder = Decoder()
    pages = [page for _, page in decoder.feed(data)]
    checked = decoder.finish()
    return LTXFile(checked.header, checked.index, pages, checked.file_checksum)
