"""The sums of one LTX file: checksums by which any part of it can be checked without the rest.

The file's own checksum is known to be right only when all of the file has been read. So beside a large file lies
another object with a sum of each page frame, of the header and of the page index. All big-endian:

    head      "LRS1", frames u32, file checksum u64, sum of the header u32, sum of the index u32, sum of the head u32
    segments  for every 8,192 frames, in the order of the index: a sum of each u32, then a sum of the segment u32

A sum is a CRC-32C: it finds every change within 32 bits in a row, and of others all but one in 2³². (CRC-64/GO-ISO,
the file's checksum, has too few terms for a part of it to do.) That of a segment begins with the file's checksum and
the segment's number, so that neither another file's nor another place's sums are taken for it. A segment lies where
its number says, and can be read alone.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fastcrc import crc32
from numpy.typing import NDArray

from litereplica.errors import FormatError
from litereplica.format import ltx

MAGIC = b"LRS1"
SEGMENT_FRAMES = 8192
"""32 KiB of sums, for some 20 MB of a file with pages of 4 KiB: little beside one block, and two dozen of them cover
200,000 pages."""

SUM_SIZE = 4
_HEAD = struct.Struct(">4sIQII")
_SUM = struct.Struct(">I")
_PLACE = struct.Struct(">QI")
HEAD_SIZE = _HEAD.size + SUM_SIZE


def sum_of(data: bytes | bytearray | memoryview) -> int:
    """The sum of a header, an index or a frame, as the file has them."""
    return crc32.iscsi(data)


@dataclass(frozen=True, slots=True)
class SumsHead:
    """Which file the sums are of: that with this checksum, with so many frames; and the sums of header and index."""

    frames: int
    file_checksum: int
    header_sum: int
    index_sum: int

    def encode(self) -> bytes:
        head = _HEAD.pack(MAGIC, self.frames, self.file_checksum, self.header_sum, self.index_sum)
        return head + _SUM.pack(sum_of(head))

    @classmethod
    def decode(cls, data: bytes | memoryview) -> SumsHead:
        """Decode what the object begins with. Raises `FormatError`."""
        if len(data) < HEAD_SIZE:
            raise FormatError(f"sums have {len(data)} bytes, expected {HEAD_SIZE} or more")
        magic, frames, file_checksum, header_sum, index_sum = _HEAD.unpack_from(data)
        (stored,) = _SUM.unpack_from(data, _HEAD.size)
        if magic != MAGIC or stored != sum_of(data[: _HEAD.size]):
            raise FormatError("sums have a head that is not valid")
        return cls(frames, file_checksum, header_sum, index_sum)

    def segment_place(self, number: int) -> tuple[int, int]:
        """Where a segment begins and ends, in bytes of the object."""
        start = HEAD_SIZE + number * (SEGMENT_FRAMES + 1) * SUM_SIZE
        return start, start + (self._segment_frames(number) + 1) * SUM_SIZE

    def encode_segment(self, number: int, sums: NDArray[np.uint32]) -> bytes:
        body = sums.astype(">u4").tobytes()
        return body + _SUM.pack(self._segment_sum(number, body))

    def decode_segment(self, number: int, data: bytes | memoryview) -> NDArray[np.uint32]:
        """The sums of the frames of a segment. Raises `FormatError`."""
        start, stop = self.segment_place(number)
        if len(data) != stop - start:
            raise FormatError(f"segment {number} of sums has {len(data)} bytes, expected {stop - start}")
        body = data[:-SUM_SIZE]
        if _SUM.unpack(data[-SUM_SIZE:])[0] != self._segment_sum(number, body):
            raise FormatError(f"segment {number} of sums is damaged, or another file's")
        return np.frombuffer(body, ">u4").astype(np.uint32)

    def _segment_frames(self, number: int) -> int:
        return min(SEGMENT_FRAMES, self.frames - number * SEGMENT_FRAMES)

    def _segment_sum(self, number: int, body: bytes | memoryview) -> int:
        return crc32.iscsi(body, sum_of(_PLACE.pack(self.file_checksum, number)))


class SumsEncoder:
    """Makes the sums of a file from its pieces, as `Encoder` returns them: `feed` each one in order, then `finish`.

    Memory: 4 bytes a page, and the last piece.
    """

    def __init__(self) -> None:
        self._header: bytes | None = None
        self._last: bytes | None = None
        self._sums = array("I")

    def feed(self, piece: bytes) -> None:
        """Take the header, then each frame, then the end of the file: one piece each."""
        if self._header is None:
            self._header = piece
            return
        if self._last is not None:
            self._sums.append(sum_of(self._last))
        self._last = piece

    def finish(self) -> bytes:
        """The object: the file has ended with the last piece."""
        assert self._header is not None
        assert self._last is not None
        index = self._last[ltx.FRAME_HEADER_SIZE : -ltx.TAIL_SIZE]
        file_checksum = ltx.decode_trailer(self._last[-ltx.TRAILER_SIZE :])
        head = SumsHead(len(self._sums), file_checksum, sum_of(self._header), sum_of(index))
        sums = np.frombuffer(self._sums, np.uint32)
        starts = range(0, len(sums), SEGMENT_FRAMES)
        segments = [head.encode_segment(i, sums[start : start + SEGMENT_FRAMES]) for i, start in enumerate(starts)]
        return b"".join([head.encode(), *segments])


def wrong_frames(
    data: bytes | memoryview, offsets: Sequence[int], sizes: Sequence[int], expected: Sequence[int | None]
) -> list[int]:
    """Rows of the frames that are not as expected. `offsets` and `sizes` are in bytes of `data`; None: not known."""
    view = memoryview(data)
    rows = enumerate(zip(offsets, sizes, expected, strict=True))
    return [
        row
        for row, (offset, size, wanted) in rows
        if wanted is not None and sum_of(view[offset : offset + size]) != wanted
    ]
