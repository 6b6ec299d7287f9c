"""Encodes LTX files piece by piece."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from litereplica.errors import LTXError
from litereplica.format import checksum, ltx
from litereplica.format.frames import HEAD, usual_page
from litereplica.types import Pgno


class Encoder:
    """Encodes one file: call `start`, then `page` for each page in ascending order (or `frames`), then `finish`.

    Each call returns the next bytes of the file. Raises `LTXError` if the pages do not make a valid file. Memory: 8
    bytes a page, and some tens more while `finish` makes the index.
    """

    def __init__(self, header: ltx.Header) -> None:
        self.header = header
        self._lock_pgno = header.lock_pgno
        self._crc: int | None = None
        self._pgnos = array("I")
        self._sizes = array("I")

    def start(self) -> bytes:
        """Return the header."""
        data = self.header.encode()
        self._crc = checksum.update(None, data)
        return data

    def page(self, pgno: Pgno, page: bytes | memoryview) -> bytes:
        """Return the frame of one page. Pages must be in ascending order."""
        self._check(pgno, len(page))
        frame = ltx.encode_frame(pgno, page)
        self._crc = checksum.update(checksum.update(self._crc, frame[: HEAD.size]), page)
        self._pgnos.append(pgno)
        self._sizes.append(len(frame))
        return frame

    def frames(self, frames: Iterable[tuple[Pgno, bytes]]) -> Iterator[bytes]:
        """Yield further frames, ascending, unchanged. Each must have a size, and is decompressed to check it."""
        page_size = self.header.page_size
        for pgno, frame in frames:
            page = usual_page(memoryview(frame), 0, len(frame), pgno, page_size)
            if page is None:
                raise LTXError(f"invalid frame for page {pgno}")
            self._check(pgno, page_size)
            self._crc = checksum.update(checksum.update(self._crc, frame[: HEAD.size]), page)
            self._pgnos.append(pgno)
            self._sizes.append(len(frame))
            yield frame

    def finish(self) -> bytes:
        """Return the end mark of the frames, the index and the trailer."""
        header = self.header
        if header.is_snapshot and len(self._pgnos) != header.snapshot_page_count:
            raise LTXError(f"snapshot has {len(self._pgnos)} pages, expected {header.snapshot_page_count}")
        sizes = np.array(self._sizes, np.uint32)
        offsets = ltx.HEADER_SIZE + np.cumsum(sizes, dtype=np.uint64) - sizes
        index = ltx.PageIndex(np.array(self._pgnos, np.uint32), offsets, sizes)
        body = ltx.END_OF_FRAMES + ltx.encode_page_index(index)
        post_apply = ltx.encode_trailer(0)[: -ltx.CHECKSUM_SIZE]
        crc = checksum.update(self._crc, body + post_apply)
        return body + ltx.encode_trailer(checksum.stored(crc))

    def _check(self, pgno: Pgno, size: int) -> None:
        header = self.header
        previous = self._pgnos[-1] if self._pgnos else 0
        if not previous < pgno <= header.commit or pgno == self._lock_pgno:
            raise LTXError(f"page {pgno} cannot follow page {previous} in a database of {header.commit}")
        if size != header.page_size:
            raise LTXError(f"page {pgno} has {size} bytes, expected {header.page_size}")
