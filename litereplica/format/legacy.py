"""Decodes page payloads of older LTX files: one LZ4 *frame* for each page, whose size is not stored.

    magic u32, flags u8, block maximum u8, [content size u64,] header checksum u8
    blocks: size u32 (top bit: stored, not compressed), data, [checksum u32]
    four zero bytes, [content checksum u32]; all little-endian

Finds the end of such a frame, and checks that it contains exactly one page. Frames with a dictionary and skippable
frames are refused: no program wrote LTX files with them.
Source: github.com/lz4/lz4, doc/lz4_Frame_format.md.
"""

from __future__ import annotations

import struct

import lz4.frame

from litereplica.errors import LTXError
from litereplica.types import Pgno

MAX_OVERHEAD = 64
"""Bytes by which a payload may exceed its page, for headers and checksums: an incompressible page is stored."""

_MAGIC = 0x184D2204
_VERSION_MASK, _VERSION = 0xC0, 0x40
_BLOCK_CHECKSUM, _CONTENT_SIZE, _CONTENT_CHECKSUM = 0x10, 0x08, 0x04
_UNSUPPORTED = 0x02 | 0x01  # a reserved bit, and a dictionary
_STORED = 1 << 31

_START = struct.Struct("<IB")
_U32 = struct.Struct("<I")
_HEADER_SIZE = 7  # without a content size
_CHECKSUM_SIZE = 4


def least_payload_size(data: bytes | memoryview, *, pgno: Pgno, page_size: int) -> int:
    """Return the size in bytes of the payload at the start of `data`.

    If `data` is too short to determine it, returns a greater number of bytes that are needed. Raises `LTXError`.
    """
    if len(data) < _START.size:
        return _START.size
    magic, flags = _START.unpack_from(data)
    if magic != _MAGIC or flags & _VERSION_MASK != _VERSION or flags & _UNSUPPORTED:
        raise LTXError(f"frame of page {pgno} is not a valid LZ4 frame")
    position = _HEADER_SIZE + (8 if flags & _CONTENT_SIZE else 0)
    behind_block = _CHECKSUM_SIZE if flags & _BLOCK_CHECKSUM else 0
    while position <= page_size + MAX_OVERHEAD:
        if len(data) < position + _U32.size:
            return position + _U32.size
        (block,) = _U32.unpack_from(data, position)
        position += _U32.size
        if block == 0:
            return position + (_CHECKSUM_SIZE if flags & _CONTENT_CHECKSUM else 0)
        position += (block & ~_STORED) + behind_block
    raise LTXError(f"frame of page {pgno} claims {position} bytes for a page of {page_size}")


def decompress(payload: bytes | memoryview, *, pgno: Pgno, page_size: int) -> bytes:
    """Decompress the page in a whole payload. Raises `LTXError`."""
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        page = decompressor.decompress(payload, max_length=page_size)
        if not decompressor.eof:
            page += decompressor.decompress(b"", max_length=1)
    except (RuntimeError, ValueError, EOFError, MemoryError) as exc:
        raise LTXError(f"frame of page {pgno} is not a valid LZ4 frame") from exc
    if not decompressor.eof or len(page) != page_size:
        more = "" if decompressor.eof else "or more "
        raise LTXError(f"frame of page {pgno} holds {len(page)} {more}bytes, expected {page_size}")
    return bytes(page)
