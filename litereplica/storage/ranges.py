"""Rules for ranges that every backend enforces."""

from __future__ import annotations

from litereplica.storage.base import ByteRange, Range


def resolve_range(range: Range | None, size: int) -> slice:
    """The part of an object of `size` bytes that `range` means, with `0 <= start <= stop <= size`."""
    if range is None:
        return slice(0, size)
    if isinstance(range, ByteRange):
        start = min(range.start, size)
        return slice(start, max(start, min(range.stop, size)))
    return slice(max(0, size - range.length), size)


def validate_range(range: Range | None) -> None:
    """Raise `ValueError` for negative positions or lengths, which are always a bug of the caller."""
    if isinstance(range, ByteRange):
        negative = range.start < 0 or range.stop < range.start
    else:
        negative = range is not None and range.length < 0
    if negative:
        raise ValueError(f"not a range of bytes: {range}")


def is_empty(range: Range) -> bool:
    """True if a range is empty, which HTTP cannot express."""
    return range.start == range.stop if isinstance(range, ByteRange) else range.length == 0
