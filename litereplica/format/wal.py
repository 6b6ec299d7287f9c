"""SQLite's write-ahead log: header, frames, and the cumulative checksum, scanned with numpy.

A WAL has a 32-byte header and frames of 24 + page size bytes: pgno u32, commit u32 (the database's size in pages if the
frame ends a transaction, else 0), two salts equal to the header's, and a checksum over all frames so far. The log ends
at the first frame with other salts or a wrong checksum; the bytes after it are from an earlier generation.

The checksum is computed over pairs of words (a, b): s0 += a + s1; s1 += b + s0, modulo 2³². This is linear in the state
and the words. So the contribution of a frame is a product of its words with fixed weights, and the state before the
frame contributes through a product with a fixed 2×2 matrix. All frames of a run are checked at once, where they lie:
`einsum` multiplies without copying the words, which integer matrix products do.

Source: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import WALError
from litereplica.format.sqlite import is_page_size

HEADER_SIZE = 32
FRAME_HEADER_SIZE = 24
MAGIC_LITTLE_ENDIAN = 0x377F0682
MAGIC_BIG_ENDIAN = 0x377F0683
FORMAT_VERSION = 3007000
REFUSED_VERSION = 0xFFFFFFFF
"""A version that no SQLite knows, for `refused_header`."""

Checksum: TypeAlias = tuple[int, int]

_HEADER = struct.Struct(">8I")
_SCAN_CHUNK = 4 << 20
"""Bytes scanned in one step, so that the temporary arrays stay small."""


@dataclass(frozen=True, slots=True)
class WALHeader:
    """The 32-byte header. `big_endian` is the byte order of the words in checksums."""

    page_size: int
    sequence: int
    salt1: int
    salt2: int
    checksum: Checksum
    big_endian: bool

    @classmethod
    def decode(cls, data: bytes | memoryview) -> WALHeader:
        """Decode and verify a header. Raises `WALError`, also for one that was written incompletely."""
        if len(data) < HEADER_SIZE:
            raise WALError(f"WAL header has {len(data)} bytes, expected {HEADER_SIZE}")
        magic, version, page_size, sequence, salt1, salt2, sum1, sum2 = _HEADER.unpack_from(data)
        if magic not in (MAGIC_LITTLE_ENDIAN, MAGIC_BIG_ENDIAN) or version != FORMAT_VERSION:
            raise WALError(f"WAL header has magic {magic:#x}, version {version}")
        if not is_page_size(page_size):
            raise WALError(f"WAL header has page size {page_size}")
        big_endian = magic == MAGIC_BIG_ENDIAN
        if checksum_words(data[:24], (0, 0), big_endian=big_endian) != (sum1, sum2):
            raise WALError("WAL header fails its checksum")
        return cls(page_size, sequence, salt1, salt2, (sum1, sum2), big_endian)

    @property
    def frame_size(self) -> int:
        """Size of a frame in bytes."""
        return FRAME_HEADER_SIZE + self.page_size

    def frame_offset(self, frame: int) -> int:
        """Byte offset of a frame; frames are counted from 0."""
        return HEADER_SIZE + frame * self.frame_size


@dataclass(frozen=True, slots=True, eq=False)
class WALFrames:
    """A run of n valid frames.

    `pgno` (n) and `commit` (n; 0 if the frame ends no transaction) are those of the frames; `checksums` (n, 2) are the
    stored checksums.
    """

    pgno: NDArray[np.uint32]
    commit: NDArray[np.uint32]
    checksums: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.pgno)

    @property
    def committed(self) -> int:
        """Number of frames up to the last one that ends a transaction."""
        ends = np.flatnonzero(self.commit)
        return int(ends[-1]) + 1 if len(ends) else 0

    def checksum_after(self, frames: int) -> Checksum:
        """The state of the checksum after the first `frames` frames (at least one)."""
        first, second = self.checksums[frames - 1]
        return int(first), int(second)


def refused_header(page_size: int) -> bytes:
    """Return a valid header of a format version that no SQLite knows: recovery of such a WAL fails (SQLITE_CANTOPEN).

    With a header that is not valid, recovery would take the WAL for an empty one.
    """
    head = _HEADER.pack(MAGIC_LITTLE_ENDIAN, REFUSED_VERSION, page_size, 0, 0, 0, 0, 0)[:24]
    return head + struct.pack(">2I", *checksum_words(head, (0, 0), big_endian=False))


def scan_frames(data: bytes | memoryview, *, header: WALHeader, previous: Checksum) -> WALFrames:
    """Return the valid frames at the start of `data`, which begins with a frame.

    `previous` is the state of the checksum before it; for frame 0, that of the header. Never raises: an invalid or
    incomplete frame ends the run.
    """
    frame_size = header.frame_size
    count = len(data) // frame_size
    step = max(1, _SCAN_CHUNK // frame_size)
    runs: list[tuple[NDArray[np.uint32], NDArray[np.uint32]]] = []
    for start in range(0, count, step):
        n = min(step, count - start)
        raw = np.frombuffer(data, np.uint8, n * frame_size, start * frame_size).reshape(n, frame_size)
        heads, valid = _valid_frames(raw, header, previous)
        runs.append((heads[:valid, :2], heads[:valid, 4:6]))
        if valid < n:
            break
        previous = int(heads[-1, 4]), int(heads[-1, 5])
    heads_run = np.concatenate([run[0] for run in runs]) if runs else np.empty((0, 2), np.uint32)
    sums = np.concatenate([run[1] for run in runs]) if runs else np.empty((0, 2), np.uint32)
    return WALFrames(heads_run[:, 0].copy(), heads_run[:, 1].copy(), sums)


def _valid_frames(raw: NDArray[np.uint8], header: WALHeader, previous: Checksum) -> tuple[NDArray[np.uint32], int]:
    """The frames' headers as u32 (n, 6), and how many of the first frames are valid."""
    heads = np.ascontiguousarray(raw[:, :FRAME_HEADER_SIZE]).view(">u4").astype(np.uint32)
    good = (heads[:, 2] == header.salt1) & (heads[:, 3] == header.salt2) & (heads[:, 0] != 0)
    salted = len(good) if good.all() else int(np.argmin(good))
    if salted == 0:
        return heads, 0
    order = ">u4" if header.big_endian else "<u4"
    weights, transfer = _weights(header.page_size)
    sized = raw[:salted, :8].view(order).astype(np.uint32) @ weights[:, :2].T
    pages = raw[:salted, FRAME_HEADER_SIZE:].view(order).astype(np.uint32, copy=False)
    added = sized + np.stack([np.einsum("ij,j->i", pages, column[2:]) for column in weights], axis=1)
    before = np.empty((salted, 2), np.uint32)
    before[0] = previous
    before[1:] = heads[: salted - 1, 4:6]
    matches = (before @ transfer + added == heads[:salted, 4:6]).all(axis=1)
    return heads, salted if matches.all() else int(np.argmin(matches))


@cache
def _weights(page_size: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return the (2, words) weights of a frame's words, and the (2, 2) matrix that carries the state over it.

    The words are the first two of the frame's header and those of its page. The matrix is to be multiplied from the
    right; all is modulo 2³².
    """
    pairs = (8 + page_size) // 8
    step = np.array(((1, 1), (1, 2)), np.uint32)  # (s0, s1) of a row vector through one pair
    pair = np.array(((1, 1), (0, 1)), np.uint32)  # what (a, b) add to (s0, s1)
    weights = np.empty((pairs, 2, 2), np.uint32)
    power = np.eye(2, dtype=np.uint32)
    for i in range(pairs - 1, -1, -1):
        weights[i] = pair @ power
        power = step @ power
    return np.ascontiguousarray(weights.reshape(2 * pairs, 2).T), power


def checksum_words(data: bytes | memoryview, state: Checksum, *, big_endian: bool) -> Checksum:
    """Compute the checksum word by word, for headers; returns its new state."""
    s0, s1 = state
    words = struct.unpack(f"{'>' if big_endian else '<'}{len(data) // 4}I", data)
    for a, b in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + a + s1) & 0xFFFFFFFF
        s1 = (s1 + b + s0) & 0xFFFFFFFF
    return s0, s1
