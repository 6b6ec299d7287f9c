"""Unsigned varints (LEB128) in bulk: seven bits a byte, the lowest first, bit 7 set in all bytes except the last.

Long inputs are processed in steps, so that the temporary arrays stay small beside the values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import LTXError

MAX_SIZE = 10
"""Size in bytes of the longest varint of 64 bits."""

_STEP = 1 << 14
"""Values encoded, or bytes decoded, in one step, with some MB of temporary arrays."""

_GROUPS = np.arange(MAX_SIZE, dtype=np.uint64) * np.uint64(7)
_COLUMNS = np.arange(MAX_SIZE)


def encode(values: NDArray[np.uint64]) -> bytes:
    """Return the varints of the values, one after the other."""
    return b"".join(_encode_step(values[start : start + _STEP]) for start in range(0, len(values), _STEP))


def count(data: bytes | memoryview) -> int:
    """The number of values that end in `data`."""
    raw = np.frombuffer(data, np.uint8)
    return sum(int(np.count_nonzero(raw[start : start + _STEP] < 0x80)) for start in range(0, len(raw), _STEP))


def decode_steps(data: bytes | memoryview, *, group: int = 1) -> Iterator[NDArray[np.uint64]]:
    """Yield the values in `data`, which must contain at least one and no incomplete one, in arrays of bounded size.

    Every array except the last has a multiple of `group` values; `group` is at most 100. Raises `LTXError`, also for a
    value of more than 64 bits.
    """
    raw = np.frombuffer(data, np.uint8)
    if len(raw) == 0 or raw[-1] >= 0x80:
        raise LTXError("LTX page index ends within a varint")
    position = 0
    while position < len(raw):
        window = raw[position : position + _STEP]
        ends = np.flatnonzero(window < 0x80)
        if position + len(window) < len(raw):
            ends = ends[: len(ends) // group * group]
        if len(ends) == 0:
            raise LTXError("LTX page index has a varint of more than 64 bits")
        yield _decode_step(window, ends)
        position += int(ends[-1]) + 1


def _encode_step(values: NDArray[np.uint64]) -> bytes:
    septets = ((values[:, None] >> _GROUPS) & np.uint64(0x7F)).astype(np.uint8)
    used = septets != 0
    size = np.where(used.any(axis=1), MAX_SIZE - used[:, ::-1].argmax(axis=1), 1)
    septets[size[:, None] - 1 > _COLUMNS] |= 0x80
    return septets[size[:, None] > _COLUMNS].tobytes()


def _decode_step(raw: NDArray[np.uint8], ends: NDArray[np.intp]) -> NDArray[np.uint64]:
    """The values whose last bytes are at `ends`."""
    starts = np.concatenate(([0], ends[:-1] + 1))
    size = ends - starts + 1
    longest = int(size.max())
    if longest > MAX_SIZE or (raw[ends[size == MAX_SIZE]] > 1).any():
        raise LTXError("LTX page index has a varint of more than 64 bits")
    values = (raw[starts] & 0x7F).astype(np.uint64)
    for i in range(1, longest):
        rows = np.flatnonzero(size > i)
        values[rows] |= (raw[starts[rows] + i] & 0x7F).astype(np.uint64) << np.uint64(7 * i)
    return values
