"""Decodes many page frames at once, as an index lists them.

Usual frames, LZ4 blocks with a size, have a fast path here. All others, and those that differ from the index, are
passed to `ltx.decode_frame`, which decodes them or raises the error.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import lz4.block

from litereplica.errors import LTXError
from litereplica.format import ltx
from litereplica.types import Pgno

HEAD = struct.Struct(">IHI")
"""The head of a frame with a size: pgno, flags and payload size."""


def decode_frames(
    data: bytes | memoryview, offsets: Sequence[int], sizes: Sequence[int], pgnos: Sequence[Pgno], *, page_size: int
) -> list[bytes | LTXError]:
    """Return the page, or the error, of each frame. `offsets` and `sizes` are in bytes of `data`."""
    view = memoryview(data)
    pages: list[bytes | LTXError] = []
    for offset, size, pgno in zip(offsets, sizes, pgnos, strict=True):
        page = usual_page(view, offset, size, pgno, page_size)
        if page is None:
            try:
                page = ltx.decode_frame(view[offset : offset + size], pgno=pgno, page_size=page_size)
            except LTXError as exc:
                pages.append(exc)
                continue
        pages.append(page)
    return pages


def usual_page(view: memoryview, offset: int, size: int, pgno: Pgno, page_size: int) -> bytes | None:
    """Return the page of a valid frame of the usual kind; None for any other frame, whether valid or not."""
    if size <= HEAD.size or offset + size > len(view):
        return None
    if HEAD.unpack_from(view, offset) != (pgno, ltx.FRAME_HAS_SIZE, size - HEAD.size) or not pgno:
        return None
    try:
        page = lz4.block.decompress(view[offset + HEAD.size : offset + size], uncompressed_size=page_size)
    except (lz4.block.LZ4BlockError, ValueError):
        return None
    return page if len(page) == page_size else None
