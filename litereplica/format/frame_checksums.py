"""The frame checksums of one LTX file, by which any part of it can be checked without the other parts.

The file's own checksum can be verified only by reading the whole file. So a large file is accompanied by an object with
a checksum of each page frame, of the header and of the page index. All big-endian:

    head      "LRS1", frames u32, file checksum u64, then the checksums u32 of header, index, and this head
    segments  for every 8,192 frames, in the order of the index: the checksum u32 of each, then that of the segment u32

The checksums are CRC-32C: it detects every change within 32 consecutive bits, and all but one in 2³² of the others.
(CRC-64/GO-ISO, the file's checksum, has too few terms to be truncated.) The checksum of a segment includes the file's
checksum and the segment's number, so that a segment of another file or another place is detected. The number of a
segment determines its offset, so each can be read alone.
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
"""32 KiB of checksums for some 20 MB of a file with pages of 4 KiB: little beside one block, and two dozen segments
cover 200,000 pages."""

CHECKSUM_SIZE = 4
_HEAD = struct.Struct(">4sIQII")
_SUM = struct.Struct(">I")
_PLACE = struct.Struct(">QI")
HEAD_SIZE = _HEAD.size + CHECKSUM_SIZE


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """The CRC-32C of a header, an index or a frame, as it is in the file."""
    return crc32.iscsi(data)


@dataclass(frozen=True, slots=True)
class ChecksumsHead:
    """Identifies the file by `file_checksum` and number of frames, and has the checksums of its header and index."""

    frames: int
    file_checksum: int
    header_checksum: int
    index_checksum: int

    def encode(self) -> bytes:
        """Return the head, with its own checksum."""
        head = _HEAD.pack(MAGIC, self.frames, self.file_checksum, self.header_checksum, self.index_checksum)
        return head + _SUM.pack(crc32c(head))

    @classmethod
    def decode(cls, data: bytes | memoryview) -> ChecksumsHead:
        """Decode what the object begins with. Raises `FormatError`."""
        if len(data) < HEAD_SIZE:
            raise FormatError(f"frame checksums have {len(data)} bytes, expected {HEAD_SIZE} or more")
        magic, frames, file_checksum, header_checksum, index_checksum = _HEAD.unpack_from(data)
        (stored,) = _SUM.unpack_from(data, _HEAD.size)
        if magic != MAGIC or stored != crc32c(data[: _HEAD.size]):
            raise FormatError("frame checksums have an invalid head")
        return cls(frames, file_checksum, header_checksum, index_checksum)

    def segment_place(self, number: int) -> tuple[int, int]:
        """Start and stop of a segment, in bytes of the object."""
        start = HEAD_SIZE + number * (SEGMENT_FRAMES + 1) * CHECKSUM_SIZE
        return start, start + (self._segment_frames(number) + 1) * CHECKSUM_SIZE

    def encode_segment(self, number: int, checksums: NDArray[np.uint32]) -> bytes:
        """Return a segment with these checksums of frames."""
        body = checksums.astype(">u4").tobytes()
        return body + _SUM.pack(self._segment_sum(number, body))

    def decode_segment(self, number: int, data: bytes | memoryview) -> NDArray[np.uint32]:
        """Return the checksums of the frames of a segment. Raises `FormatError`."""
        start, stop = self.segment_place(number)
        if len(data) != stop - start:
            raise FormatError(f"segment {number} of frame checksums has {len(data)} bytes, expected {stop - start}")
        body = data[:-CHECKSUM_SIZE]
        if _SUM.unpack(data[-CHECKSUM_SIZE:])[0] != self._segment_sum(number, body):
            raise FormatError(f"segment {number} of frame checksums is damaged, or of another file")
        return np.frombuffer(body, ">u4").astype(np.uint32)

    def _segment_frames(self, number: int) -> int:
        return min(SEGMENT_FRAMES, self.frames - number * SEGMENT_FRAMES)

    def _segment_sum(self, number: int, body: bytes | memoryview) -> int:
        return crc32.iscsi(body, crc32c(_PLACE.pack(self.file_checksum, number)))


class FrameChecksumsEncoder:
    """Computes the frame checksums of a file from the pieces that `Encoder` returns: `feed` each one, then `finish`.

    Memory: 4 bytes a page, and the last piece.
    """

    def __init__(self) -> None:
        self._header: bytes | None = None
        self._last: bytes | None = None
        self._checksums = array("I")

    def feed(self, piece: bytes) -> None:
        """Add the next piece: the header, then each frame, then the end of the file."""
        if self._header is None:
            self._header = piece
            return
        if self._last is not None:
            self._checksums.append(crc32c(self._last))
        self._last = piece

    def finish(self) -> bytes:
        """Return the object, after the last piece."""
        assert self._header is not None
        assert self._last is not None
        index = self._last[ltx.FRAME_HEADER_SIZE : -ltx.TAIL_SIZE]
        file_checksum = ltx.decode_trailer(self._last[-ltx.TRAILER_SIZE :])
        head = ChecksumsHead(len(self._checksums), file_checksum, crc32c(self._header), crc32c(index))
        checksums = np.frombuffer(self._checksums, np.uint32)
        starts = range(0, len(checksums), SEGMENT_FRAMES)
        segments = [head.encode_segment(i, checksums[start : start + SEGMENT_FRAMES]) for i, start in enumerate(starts)]
        return b"".join([head.encode(), *segments])


def wrong_frames(
    data: bytes | memoryview, offsets: Sequence[int], sizes: Sequence[int], expected: Sequence[int | None]
) -> list[int]:
    """Return the rows of the frames in `data` that do not have the `expected` checksum (None: unknown, not checked).

    `offsets` and `sizes` are in bytes of `data`.
    """
    view = memoryview(data)
    rows = enumerate(zip(offsets, sizes, expected, strict=True))
    return [
        row
        for row, (offset, size, wanted) in rows
        if wanted is not None and crc32c(view[offset : offset + size]) != wanted
    ]
