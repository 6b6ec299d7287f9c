"""The wal-index (`-shm`), by which clients find frames in a WAL, and the changes that a writer makes to it.

    0..47     header            )  valid if both copies are equal
    48..95    second copy       )  and the checksum is correct
    96..135   nBackfill u32, read marks 5 × u32, lock bytes 8, nBackfillAttempted u32, unused u32
    136..     hash block 0: 4,062 page numbers, then (at 16,384) 8,192 hash slots u16
    32768·n   hash block n: 4,096 page numbers, then 8,192 hash slots

Frames are counted from 1. The slot of a frame is `pgno * 383 & 8191` or the next free one; it holds the 1-based
number of the frame within its block. All in native byte order. Source: SQLite's wal.c.

`WalIndex` contains the bytes; each of its methods changes them, and returns the patches in the order in which readers
must see them. The caller takes the locks, and delivers the patches.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from litereplica.format.wal import FORMAT_VERSION, checksum_words
from litereplica.types import Pgno

BLOCK_SIZE = 32768
HEADER_SIZE = 48
CHECKPOINT_INFO = 2 * HEADER_SIZE
PREAMBLE_SIZE = 136
FIRST_BLOCK_FRAMES = 4062
BLOCK_FRAMES = 4096
HASH_SLOTS = 8192
HASH_OFFSET = BLOCK_SIZE - 2 * HASH_SLOTS
HASH_MULTIPLIER = 383

READ_MARKS = 5
MARK_NOT_USED = 0xFFFFFFFF

# byte offsets that clients lock
LOCK_WRITE = 120
LOCK_CHECKPOINT = 121
LOCK_RECOVER = 122
LOCK_READ = 123
LOCK_DMS = 128

_HEADER = struct.Struct("=IIIBBHIIIIII")
_CHECKSUM = struct.Struct("=II")
_MARKS_OFFSET = CHECKPOINT_INFO + 4
_ATTEMPTED_OFFSET = CHECKPOINT_INFO + 4 + 4 * READ_MARKS + 8
_BIG_ENDIAN = sys.byteorder == "big"


class Patch(NamedTuple):
    """Bytes to store at an offset of `-shm`."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexHeader:
    """The 48-byte header. `max_frame` is the last valid frame, `commit` the database's size in pages."""

    page_size: int
    max_frame: int
    commit: int
    change: int
    salt1: int
    salt2: int

    def encode(self) -> bytes:
        """Return the 48 bytes of the header."""
        body = _HEADER.pack(
            FORMAT_VERSION,
            0,
            self.change & 0xFFFFFFFF,
            1,
            _BIG_ENDIAN,
            (self.page_size & 0xFF00) | (self.page_size >> 16),
            self.max_frame,
            self.commit,
            0,
            0,
            self.salt1 & 0xFFFFFFFF,
            self.salt2 & 0xFFFFFFFF,
        )
        return body + _CHECKSUM.pack(*checksum_words(body, (0, 0), big_endian=_BIG_ENDIAN))


def block_of(frame: int) -> int:
    """The hash block of a frame."""
    return (frame + BLOCK_FRAMES - FIRST_BLOCK_FRAMES - 1) // BLOCK_FRAMES


def frames_before(block: int) -> int:
    """Number of frames in the blocks before this one."""
    return 0 if block == 0 else FIRST_BLOCK_FRAMES + (block - 1) * BLOCK_FRAMES


class WalIndex:
    """The bytes of `-shm`, and the changes that the writer and checkpointer make to them.

    `data` is the content of the file; it grows in blocks of 32 KiB and never shrinks. `entered` is the number of frames
    in the hash blocks, published or not.
    """

    def __init__(self, *, page_size: int, commit: int, salt1: int, salt2: int) -> None:
        self.data = bytearray(BLOCK_SIZE)
        self.header = IndexHeader(page_size=page_size, max_frame=0, commit=commit, change=1, salt1=salt1, salt2=salt2)
        self.entered = 0
        self.backfilled = 0
        self.marks = [0, 0] + [MARK_NOT_USED] * (READ_MARKS - 2)
        self._write(self.header_patches() + self._checkpoint_patches())

    def append(self, pgnos: NDArray[np.uint32]) -> list[Patch]:
        """Append frames; readers do not see them before `publish`."""
        patches: list[Patch] = []
        first = self.entered + 1
        self.entered += len(pgnos)
        while len(pgnos):
            block = block_of(first)
            room = frames_before(block + 1) - first + 1
            patches += self._append_to_block(block, first - frames_before(block), pgnos[:room])
            pgnos, first = pgnos[room:], first + room
        return patches

    def publish(self, *, max_frame: int, commit: int) -> list[Patch]:
        """Make all frames up to `max_frame` visible, by writing the header's second copy, then the first."""
        self._next_header(max_frame=max_frame, commit=commit)
        return self._write(self.header_patches())

    def set_mark(self, reader: int, value: int) -> list[Patch]:
        """Set read mark `reader`; its lock must be held exclusively."""
        self.marks[reader] = value
        return self._write([Patch(_MARKS_OFFSET + 4 * reader, struct.pack("=I", value))])

    def set_backfilled(self, frames: int) -> list[Patch]:
        """Publish that the first `frames` frames are in the database file; READ(0) must be held exclusively."""
        self.backfilled = frames
        return self._write(
            [
                Patch(_ATTEMPTED_OFFSET, struct.pack("=I", frames)),
                Patch(CHECKPOINT_INFO, struct.pack("=I", frames)),
            ]
        )

    def restart(self) -> list[Patch]:
        """Begin a new generation without frames; READ(1) to READ(4) must be held exclusively."""
        self._next_header(max_frame=0, commit=self.header.commit, salt1=self.header.salt1 + 1)
        self.entered = 0
        self.backfilled = 0
        self.marks = [0, 0] + [MARK_NOT_USED] * (READ_MARKS - 2)
        return self._write(self.header_patches() + self._checkpoint_patches())

    def find(self, pgno: Pgno, *, max_frame: int) -> int:
        """The newest frame of a page up to `max_frame`, found as readers do; 0 if there is none."""
        for block in range(block_of(max_frame), -1, -1) if max_frame else ():
            zero = frames_before(block)
            table, pages = self._views(block)
            slot, found = pgno * HASH_MULTIPLIER & HASH_SLOTS - 1, 0
            while entry := int(table[slot]):
                if zero + entry <= max_frame and pages[entry - 1] == pgno:
                    found = zero + entry
                slot = (slot + 1) & HASH_SLOTS - 1
            if found:
                return found
        return 0

    def header_patches(self) -> list[Patch]:
        """Both copies of the header, in the order of their writing."""
        data = self.header.encode()
        return [Patch(HEADER_SIZE, data), Patch(0, data)]

    def _next_header(self, *, max_frame: int, commit: int, salt1: int | None = None) -> None:
        old = self.header
        self.header = IndexHeader(
            page_size=old.page_size,
            max_frame=max_frame,
            commit=commit,
            change=old.change + 1,
            salt1=old.salt1 if salt1 is None else salt1,
            salt2=old.salt2,
        )

    def _checkpoint_patches(self) -> list[Patch]:
        info = struct.pack(f"={1 + READ_MARKS}I8xII", self.backfilled, *self.marks, self.backfilled, 0)
        return [Patch(CHECKPOINT_INFO, info)]

    def _write(self, patches: list[Patch]) -> list[Patch]:
        for offset, data in patches:
            self.data[offset : offset + len(data)] = data
        return patches

    def _views(self, block: int) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
        """(hash slots, page numbers) of a block, as views of `data`."""
        base = block * BLOCK_SIZE
        start = base + (PREAMBLE_SIZE if block == 0 else 0)
        pages = np.frombuffer(self.data, np.uint32, (base + HASH_OFFSET - start) // 4, start)
        return np.frombuffer(self.data, np.uint16, HASH_SLOTS, base + HASH_OFFSET), pages

    def _append_to_block(self, block: int, first: int, pgnos: NDArray[np.uint32]) -> list[Patch]:
        """Add the frames `first`, `first + 1`, … of a block, with these page numbers."""
        base = block * BLOCK_SIZE
        start = base + (PREAMBLE_SIZE if block == 0 else 0)
        if len(self.data) < base + BLOCK_SIZE:
            self.data.extend(bytes(base + BLOCK_SIZE - len(self.data)))
        if first == 1:
            self.data[start : base + BLOCK_SIZE] = bytes(base + BLOCK_SIZE - start)
        table, pages = self._views(block)
        pages[first - 1 : first - 1 + len(pgnos)] = pgnos
        _fill_slots(table, pgnos, first)
        del table, pages
        if first == 1:
            return [Patch(start, bytes(self.data[start : base + BLOCK_SIZE]))]
        entries = start + 4 * (first - 1)
        hashes = base + HASH_OFFSET
        return [
            Patch(entries, bytes(self.data[entries : entries + 4 * len(pgnos)])),
            Patch(hashes, bytes(self.data[hashes : base + BLOCK_SIZE])),
        ]


def _fill_slots(table: NDArray[np.uint16], pgnos: NDArray[np.uint32], first: int) -> None:
    """Add the frames `first`, `first + 1`, … of a block as SQLite does: each in the first free slot from its own on.

    So the frames of a page are in ascending order along the chain of slots.
    """
    slots = table.data
    homes = (pgnos.astype(np.int64) * HASH_MULTIPLIER & HASH_SLOTS - 1).tolist()
    for entry, home in enumerate(homes, first):
        slots[_next_free(table, home) if slots[home] else home] = entry


def _next_free(table: NDArray[np.uint16], slot: int) -> int:
    """The first free slot from `slot` on, cyclically; at least half of them are free.

    Vectorised, because a page that changes in every transaction makes a chain of thousands of slots.
    """
    rest = table[slot:]
    nearest = int(rest.argmin())
    return slot + nearest if rest[nearest] == 0 else int(table.argmin())
