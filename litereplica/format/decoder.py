"""Reading whole LTX files, every check included: as a stream of bounded memory, or at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from litereplica.errors import LTXError
from litereplica.format import checksum, ltx
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
    Memory: one frame, one chunk, and 16 bytes a page.
    """

    def __init__(self) -> None:
        self.header: ltx.Header | None = None
        self._buffer = bytearray()
        self._crc: int | None = None
        self._offset = 0  # of the buffer's first byte in the file
        self._in_frames = True
        self._pgnos: list[int] = []
        self._sizes: list[int] = []

    def feed(self, chunk: bytes | memoryview) -> list[tuple[Pgno, bytes]]:
        """Take the next bytes of the file; return the pages that they complete, ascending."""
        self._buffer += chunk
        used = 0
        if self.header is None:
            if len(self._buffer) < ltx.HEADER_SIZE:
                return []
            used = self._take_header()
        pages = []
        with memoryview(self._buffer) as view:
            for pgno, page, end in self._frames(view, used, self.header):
                pages.append((pgno, page))
                used = end
            if not self._in_frames and self._crc_behind_frames(view, used):
                used += ltx.FRAME_HEADER_SIZE
        del self._buffer[:used]
        self._offset += used
        if not self._in_frames:
            self._check_tail_size()
        return pages

    def finish(self) -> LTXFile:
        """The file has ended. Returns its header and index (`pages` is empty: `feed` returned them)."""
        if self.header is None or self._in_frames:
            raise LTXError(f"LTX file ends after {self._offset + len(self._buffer)} bytes: truncated")
        file_size = self._offset + len(self._buffer)
        tail = bytes(self._buffer[-ltx.TAIL_SIZE :])
        index_size = ltx.decode_index_size(tail, file_size=file_size)
        if index_size + ltx.TAIL_SIZE != len(self._buffer):
            raise LTXError("LTX page index does not fill the space behind the frames")
        file_checksum = ltx.decode_trailer(tail[-ltx.TRAILER_SIZE :])
        crc = checksum.update(self._crc, bytes(self._buffer[:-8]))
        if checksum.stored(crc) != file_checksum:
            raise LTXError(f"LTX file checksum is {file_checksum:016x}, computed {checksum.stored(crc):016x}")
        index = ltx.decode_page_index(bytes(self._buffer[:index_size]), header=self.header, file_size=file_size)
        if not np.array_equal(index.pgno, self._pgnos) or not np.array_equal(index.size, self._sizes):
            raise LTXError("LTX page index does not agree with the frames")
        return LTXFile(self.header, index, [], file_checksum)

    def _take_header(self) -> int:
        data = bytes(self._buffer[: ltx.HEADER_SIZE])
        self.header = ltx.Header.decode(data)
        self._crc = checksum.update(None, data)
        return ltx.HEADER_SIZE

    def _frames(self, view: memoryview, position: int, header: ltx.Header | None) -> Iterator[tuple[Pgno, bytes, int]]:
        """Whole frames from `position` on: (pgno, page, offset behind the frame)."""
        if header is None:
            return
        while self._in_frames and len(view) - position >= ltx.FRAME_HEADER_SIZE:
            pgno, flags = ltx.decode_frame_header(view, position)
            if pgno == 0:
                self._in_frames = False
                return
            self._check_pgno(pgno, header)
            taken = self._payload(view, position, pgno, flags, header.page_size)
            if taken is None:
                return
            page, head_end, end = taken
            self._crc = checksum.update(checksum.update(self._crc, view[position:head_end]), page)
            self._pgnos.append(pgno)
            self._sizes.append(end - position)
            position = end
            yield pgno, page, end

    @staticmethod
    def _payload(
        view: memoryview, position: int, pgno: Pgno, flags: int, page_size: int
    ) -> tuple[bytes, int, int] | None:
        """(page, offset behind the head, offset behind the payload), or None when more bytes are needed."""
        head_end = position + ltx.FRAME_HEADER_SIZE
        if not flags & ltx.FRAME_HAS_SIZE:
            legacy = ltx.decompress_legacy(view[head_end:], pgno=pgno, page_size=page_size)
            return None if legacy is None else (legacy[0], head_end, head_end + legacy[1])
        body = head_end + ltx.SIZE_PREFIX_SIZE
        if len(view) < body:
            return None
        end = body + ltx.decode_payload_size(view, head_end, pgno=pgno, page_size=page_size)
        if len(view) < end:
            return None
        return ltx.decompress_block(view[body:end], pgno=pgno, page_size=page_size), body, end

    def _check_pgno(self, pgno: Pgno, header: ltx.Header) -> None:
        previous = self._pgnos[-1] if self._pgnos else 0
        if not previous < pgno <= header.commit or pgno == header.lock_pgno:
            raise LTXError(f"frame of page {pgno} follows page {previous}, database has {header.commit}")

    def _crc_behind_frames(self, view: memoryview, position: int) -> bool:
        """Once: put the end-of-frames mark at `position` into the checksum."""
        if self._offset + position != ltx.HEADER_SIZE + sum(self._sizes):
            return False
        self._crc = checksum.update(self._crc, view[position : position + ltx.FRAME_HEADER_SIZE])
        return True

    def _check_tail_size(self) -> None:
        longest = len(self._pgnos) * ltx.MAX_INDEX_ENTRY_SIZE + 1 + ltx.TAIL_SIZE
        if len(self._buffer) > longest:
            raise LTXError(f"LTX file has more than {longest} bytes behind its {len(self._pgnos)} frames")


def decode_file(data: bytes | memoryview) -> LTXFile:
    """Decode a whole file in memory, with its pages. Raises `LTXError`."""
    decoder = Decoder()
    pages = [page for _, page in decoder.feed(data)]
    checked = decoder.finish()
    return LTXFile(checked.header, checked.index, pages, checked.file_checksum)
