"""The records of an LTX file, version 3: header, page frames, page index, trailer. All big-endian.

    header    100 bytes
    frames    pgno u32, flags u16, [size u32,] payload; ascending by pgno
    end       six zero bytes
    index     varint triples (pgno, offset, size), a zero varint, u64 = bytes of all that
    trailer   post-apply checksum u64, file checksum u64

A payload with flag 0x1 has a size, and is an LZ4 *block* of exactly one page; without the flag it is an LZ4 *frame*, as
in older files. The file checksum is a CRC-64/GO-ISO over everything before it, with each page in place of its payload.
Only files with the NoChecksum flag are accepted, which have no database checksum, as those of Litestream (which also
refuses all others).

A file whose min TXID is 1 is a snapshot: it has every page 1..commit except the lock page.

`encoder`, `decoder` and `compactor` handle whole files. Source: github.com/superfly/ltx, 0.5.2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import lz4.block
import numpy as np
from numpy.typing import NDArray

from litereplica.errors import LTXError
from litereplica.format import legacy, uvarint
from litereplica.format.checksum import CHECKSUM_FLAG
from litereplica.format.sqlite import is_page_size, lock_pgno
from litereplica.times import MAX_TIME_MS
from litereplica.types import TXID, Pgno

MAGIC = b"LTX1"
HEADER_SIZE = 100
FRAME_HEADER_SIZE = 6
SIZE_PREFIX_SIZE = 4
END_OF_FRAMES = bytes(FRAME_HEADER_SIZE)
INDEX_SIZE_SIZE = 8
CHECKSUM_SIZE = 8
TRAILER_SIZE = 2 * CHECKSUM_SIZE
TAIL_SIZE = INDEX_SIZE_SIZE + TRAILER_SIZE
MIN_FILE_SIZE = HEADER_SIZE + FRAME_HEADER_SIZE + 1 + TAIL_SIZE

NO_CHECKSUM = 0x2
FRAME_HAS_SIZE = 0x1

_ENTRY_VALUES = 3

MAX_INDEX_ENTRY_SIZE = _ENTRY_VALUES * uvarint.MAX_SIZE
"""Bytes of the longest varint triple."""


_FRAMES_OUT_OF_PLACE = "LTX page index has frames that overlap, leave gaps, or lie outside the file"

_HEADER = struct.Struct(">4sIIIQQqQqqIIQ20x")
_FRAME_HEADER = struct.Struct(">IH")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_TRAILER = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 100 bytes. Sizes and offsets in bytes, `commit` in pages, `timestamp_ms` since the epoch.

    The WAL fields name the frames and the WAL that the file was made from; 0 if they do not apply.
    """

    page_size: int
    commit: int
    min_txid: TXID
    max_txid: TXID
    timestamp_ms: int
    wal_offset: int = 0
    wal_size: int = 0
    wal_salt1: int = 0
    wal_salt2: int = 0
    node_id: int = 0

    @property
    def is_snapshot(self) -> bool:
        """True if the file holds the whole database, so that no earlier file is needed."""
        return self.min_txid == 1

    @property
    def lock_pgno(self) -> Pgno:
        """The number of the lock page, which no file contains."""
        return lock_pgno(self.page_size)

    @property
    def snapshot_page_count(self) -> int:
        """Pages that a file with all pages of this commit has: the lock page is left out."""
        return self.commit - (self.lock_pgno <= self.commit)

    def validate(self) -> None:
        """Raise `LTXError` unless every field is one that a file may have."""
        if not is_page_size(self.page_size):
            raise LTXError(f"LTX header has page size {self.page_size}")
        if not 1 <= self.commit <= 0xFFFFFFFE:
            raise LTXError(f"LTX header has a database of {self.commit} pages")
        if not 1 <= self.min_txid <= self.max_txid < 1 << 64:
            raise LTXError(f"LTX header has TXIDs {self.min_txid}-{self.max_txid}")
        if not 0 <= self.timestamp_ms <= MAX_TIME_MS:
            raise LTXError(f"LTX header has timestamp {self.timestamp_ms} ms")
        if not (0 <= self.wal_offset < 1 << 63 and 0 <= self.wal_size < 1 << 63):
            raise LTXError(f"LTX header has WAL offset {self.wal_offset}, size {self.wal_size}")
        if not (0 <= self.wal_salt1 < 1 << 32 and 0 <= self.wal_salt2 < 1 << 32 and 0 <= self.node_id < 1 << 64):
            raise LTXError(f"LTX header has WAL salts {self.wal_salt1}, {self.wal_salt2}, node id {self.node_id}")
        if self.wal_offset == 0 and (self.wal_size or self.wal_salt1 or self.wal_salt2):
            raise LTXError("LTX header has a WAL size or salt without a WAL offset")

    def encode(self) -> bytes:
        """Return the 100 bytes of the header. Raises `LTXError` if a field is invalid."""
        self.validate()
        return _HEADER.pack(
            MAGIC,
            NO_CHECKSUM,
            self.page_size,
            self.commit,
            self.min_txid,
            self.max_txid,
            self.timestamp_ms,
            0,
            self.wal_offset,
            self.wal_size,
            self.wal_salt1,
            self.wal_salt2,
            self.node_id,
        )

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Header:
        """Decode the first 100 bytes of `data`. Raises `LTXError`."""
        if len(data) < HEADER_SIZE:
            raise LTXError(f"LTX header has {len(data)} bytes, expected {HEADER_SIZE}")
        fields = _HEADER.unpack_from(data)
        magic, flags = fields[:2]
        if magic != MAGIC:
            raise LTXError(f"file begins with {bytes(magic)!r}, expected {MAGIC!r}: not an LTX file")
        if flags & ~NO_CHECKSUM:
            raise LTXError(f"LTX header has unknown flags {flags:#x}")
        if not flags & NO_CHECKSUM:
            raise LTXError("LTX file tracks database checksums, which Litestream's files do not")
        page_size, commit, low, high, timestamp, pre_apply, offset, size, salt1, salt2, node = fields[2:]
        if pre_apply:
            raise LTXError("LTX header has a pre-apply checksum beside the NoChecksum flag")
        header = cls(
            page_size=page_size,
            commit=commit,
            min_txid=low,
            max_txid=high,
            timestamp_ms=timestamp,
            wal_offset=offset,
            wal_size=size,
            wal_salt1=salt1,
            wal_salt2=salt2,
            node_id=node,
        )
        header.validate()
        return header


def encode_trailer(file_checksum: int) -> bytes:
    """The last 16 bytes; `file_checksum` in its stored form."""
    return _TRAILER.pack(0, file_checksum)


def decode_trailer(data: bytes | memoryview) -> int:
    """The file checksum of the last 16 bytes of a file. Raises `LTXError`."""
    if len(data) != TRAILER_SIZE:
        raise LTXError(f"LTX trailer has {len(data)} bytes, expected {TRAILER_SIZE}")
    post_apply, file_checksum = _TRAILER.unpack(data)
    if post_apply:
        raise LTXError("LTX trailer has a post-apply checksum beside the NoChecksum flag")
    if not file_checksum & CHECKSUM_FLAG:
        raise LTXError(f"LTX trailer has file checksum {file_checksum:#018x} without bit 63")
    return int(file_checksum)


# --- page frames -----------------------------------------------------------------------------


def max_frame_size(page_size: int) -> int:
    """Size in bytes of the longest frame of a page of this size, with either kind of payload."""
    lz4_bound = page_size + page_size // 255 + 16
    return FRAME_HEADER_SIZE + max(SIZE_PREFIX_SIZE + lz4_bound, page_size + legacy.MAX_OVERHEAD)


def frame_head_size(flags: int) -> int:
    """Size in bytes of the part before the payload, which the file checksum covers unchanged."""
    return FRAME_HEADER_SIZE + (SIZE_PREFIX_SIZE if flags & FRAME_HAS_SIZE else 0)


def encode_frame_head(pgno: Pgno, payload_size: int) -> bytes:
    """Frame header and size prefix: the part of a frame that the file checksum covers unchanged."""
    return _FRAME_HEADER.pack(pgno, FRAME_HAS_SIZE) + _U32.pack(payload_size)


def decode_frame_header(data: bytes | memoryview, offset: int) -> tuple[Pgno, int]:
    """Return (pgno, flags) at `offset`; (0, 0) is the end mark of the frames. Raises `LTXError`."""
    pgno, flags = _FRAME_HEADER.unpack_from(data, offset)
    if flags & ~FRAME_HAS_SIZE:
        raise LTXError(f"frame of page {pgno} has unknown flags {flags:#x}")
    if pgno == 0 and flags:
        raise LTXError(f"frame of page 0 has flags {flags:#x}")
    return pgno, flags


def least_frame_size(data: bytes | memoryview, *, page_size: int) -> int:
    """Return the size in bytes of the frame at the start of `data`; the end mark counts as a frame of 6 bytes.

    If `data` is too short to determine the size, returns a greater number of bytes that are needed. Raises `LTXError`.
    """
    if len(data) < FRAME_HEADER_SIZE:
        return FRAME_HEADER_SIZE
    pgno, flags = decode_frame_header(data, 0)
    if pgno == 0:
        return FRAME_HEADER_SIZE
    head = frame_head_size(flags)
    if not flags & FRAME_HAS_SIZE:
        return head + legacy.least_payload_size(data[head:], pgno=pgno, page_size=page_size)
    if len(data) < head:
        return head
    (size,) = _U32.unpack_from(data, FRAME_HEADER_SIZE)
    if not 1 <= size <= max_frame_size(page_size) - head:
        raise LTXError(f"frame of page {pgno} claims {size} bytes for a page of {page_size}")
    return head + int(size)


def compress_page(page: bytes | memoryview) -> bytes:
    """The payload of a page: an LZ4 block without its size."""
    return bytes(lz4.block.compress(page, store_size=False))


def encode_frame(pgno: Pgno, page: bytes | memoryview) -> bytes:
    """The whole frame of a page."""
    payload = compress_page(page)
    return encode_frame_head(pgno, len(payload)) + payload


def decompress_block(payload: bytes | memoryview, *, pgno: Pgno, page_size: int) -> bytes:
    """The page in an LZ4 block: exactly `page_size` bytes, else `LTXError`."""
    try:
        page = lz4.block.decompress(payload, uncompressed_size=page_size)
    except (lz4.block.LZ4BlockError, ValueError, OverflowError, MemoryError) as exc:
        raise LTXError(f"frame of page {pgno} is not a valid LZ4 block") from exc
    if len(page) != page_size:
        raise LTXError(f"frame of page {pgno} holds {len(page)} bytes, expected {page_size}")
    return bytes(page)


def decode_frame(frame: bytes | memoryview, *, pgno: Pgno, page_size: int) -> bytes:
    """Decode the page in one whole frame that the index lists for `pgno`. Raises `LTXError`."""
    size = least_frame_size(frame, page_size=page_size)
    if size != len(frame):
        raise LTXError(f"frame of page {pgno} has {size} bytes or more, its index says {len(frame)}")
    found, flags = decode_frame_header(frame, 0)
    if found != pgno or pgno == 0:
        raise LTXError(f"frame of page {pgno} is labelled page {found}")
    payload = frame[frame_head_size(flags) :]
    if flags & FRAME_HAS_SIZE:
        return decompress_block(payload, pgno=pgno, page_size=page_size)
    return legacy.decompress(payload, pgno=pgno, page_size=page_size)


# --- page index ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class PageIndex:
    """The locations of the pages in one file: three arrays of equal length, ascending by pgno.

    `pgno` u32, `offset` u64 (of the frame, from the start of the file), `size` u32 (of the frame), in bytes.
    """

    pgno: NDArray[np.uint32]
    offset: NDArray[np.uint64]
    size: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.pgno)

    def position(self, pgno: Pgno) -> int | None:
        """The row of a page; None if the file does not have it."""
        row = int(np.searchsorted(self.pgno, np.uint32(pgno)))
        return row if row < len(self.pgno) and self.pgno[row] == pgno else None

    @property
    def frames_end(self) -> int:
        """Offset of the first byte after the last frame."""
        return int(self.offset[-1]) + int(self.size[-1]) if len(self) else HEADER_SIZE


def encode_page_index(index: PageIndex) -> bytes:
    """Encode an index: varint triples, a zero varint, and the size of both."""
    values = np.empty(3 * len(index) + 1, np.uint64)
    values[0:-1:3], values[1:-1:3], values[2:-1:3] = index.pgno, index.offset, index.size
    values[-1] = 0
    body = uvarint.encode(values)
    return body + _U64.pack(len(body))


def decode_index_size(tail: bytes | memoryview, *, file_size: int) -> int:
    """Bytes of the varints of an index, from the last `TAIL_SIZE` bytes of a file. Raises `LTXError`."""
    if len(tail) != TAIL_SIZE or file_size < MIN_FILE_SIZE:
        raise LTXError(f"LTX file has {file_size} bytes: truncated")
    (size,) = _U64.unpack_from(tail)
    if not 1 <= size <= file_size - (MIN_FILE_SIZE - 1):
        raise LTXError(f"LTX page index claims {size} bytes in a file of {file_size}")
    return int(size)


def require_index_piece(data: bytes, *, is_last: bool) -> None:
    """Raise `LTXError` if a piece of an index has its end mark and is not its last one, or has it too early.

    Only the end mark is a zero byte, so that an index that merely claims to be long is found out by its first piece.
    """
    end = data.find(0)
    if end >= 0 and (not is_last or end != len(data) - 1):
        raise LTXError("LTX page index ends before its size says so")


def decode_page_index(data: bytes | memoryview, *, header: Header, file_size: int) -> PageIndex:
    """Decode and check the varints of an index (without its size) against the header and the file's size.

    The frames must be contiguous from the end of the header to the end mark. Needs little more memory than the index
    itself, however large it is. Raises `LTXError`.
    """
    entries, rest = divmod(uvarint.count(data), _ENTRY_VALUES)
    index = PageIndex(np.empty(entries, np.uint32), np.empty(entries, np.uint64), np.empty(entries, np.uint32))
    filled, last_pgno, end = 0, 0, HEADER_SIZE
    terminator = -1
    for values in uvarint.decode_steps(data, group=_ENTRY_VALUES):
        found = len(values) // _ENTRY_VALUES
        if len(values) % _ENTRY_VALUES:
            terminator = int(values[-1])
        if not found:
            continue
        pgno, offset, size = values[: found * _ENTRY_VALUES].reshape(-1, _ENTRY_VALUES).T
        _check_entries(pgno, offset, size, header=header, after=last_pgno, start=end)
        rows = slice(filled, filled + found)
        index.pgno[rows], index.offset[rows], index.size[rows] = pgno, offset, size
        filled, last_pgno, end = filled + found, int(pgno[-1]), int(offset[-1]) + int(size[-1])
    if rest != 1 or terminator != 0:
        raise LTXError("LTX page index does not end with a zero after whole entries")
    if index.position(header.lock_pgno) is not None:
        raise LTXError(f"LTX file has the lock page {header.lock_pgno}")
    if header.is_snapshot and entries != header.snapshot_page_count:
        raise LTXError(f"LTX snapshot has {entries} pages, expected {header.snapshot_page_count}")
    frames_end = file_size - TAIL_SIZE - len(data) - FRAME_HEADER_SIZE
    if end != frames_end:
        raise LTXError(_FRAMES_OUT_OF_PLACE if entries else "LTX page index is empty, but the file has frames")
    return index


def _check_entries(
    pgno: NDArray[np.uint64],
    offset: NDArray[np.uint64],
    size: NDArray[np.uint64],
    *,
    header: Header,
    after: Pgno,
    start: int,
) -> None:
    """Raise `LTXError` unless the entries have ascending pages after `after`, in contiguous frames from `start` on."""
    if pgno[0] <= after or pgno[-1] > header.commit or (pgno[1:] <= pgno[:-1]).any():
        raise LTXError(f"LTX page index is not ascending within 1..{header.commit}")
    if size.min() <= FRAME_HEADER_SIZE or size.max() > max_frame_size(header.page_size):
        raise LTXError("LTX page index has a frame of impossible size")
    if offset[0] != start or (offset[1:] != offset[:-1] + size[:-1]).any():
        raise LTXError(_FRAMES_OUT_OF_PLACE)
