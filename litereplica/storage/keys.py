"""Rules for keys and ranges that every backend enforces."""

from __future__ import annotations

from collections.abc import Iterable

from litereplica.errors import StorageError
from litereplica.storage.base import ByteRange, DirectoryListing, ObjectInfo, Range


def validate_key(key: str) -> None:
    """Raise `StorageError` unless `key` is components joined by `/`, none of them empty, `.` or `..`."""
    if not _are_components(key.split("/")) or not _is_text(key):
        raise StorageError(f"{key!r} is not a valid key", key=key)


def validate_prefix(prefix: str) -> None:
    """Raise `StorageError` unless `prefix` is the beginning of a valid key; it may be empty."""
    *directories, _ = prefix.split("/")
    if not _are_components(directories) or not _is_text(prefix):
        raise StorageError(f"{prefix!r} is not the beginning of a valid key", key=prefix)


def validate_directory(prefix: str) -> None:
    """Raise `StorageError` unless `prefix` is empty, or a valid key followed by `/`."""
    validate_prefix(prefix)
    if prefix and not prefix.endswith("/"):
        raise StorageError(f"{prefix!r} does not end with a slash", key=prefix)


def is_key(key: str) -> bool:
    """True if a name found in a store is a valid key."""
    return _are_components(key.split("/")) and _is_text(key)


def directory_of(prefix: str, prefixes: Iterable[str], objects: Iterable[ObjectInfo]) -> DirectoryListing:
    """The directory at `prefix`, of a store's answer: keys that begin with it, and the beginnings of longer ones."""
    names = {each.removeprefix(prefix).strip("/") for each in prefixes if each.startswith(prefix)}
    directly = {info.key: info for info in objects if info.key.startswith(prefix) and is_key(info.key)}
    here = [info for key, info in sorted(directly.items()) if "/" not in key.removeprefix(prefix)]
    return DirectoryListing(sorted(name for name in names if is_key(name) and "/" not in name), here)


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


def _are_components(parts: list[str]) -> bool:
    return all(part not in ("", ".", "..") for part in parts)


def _is_text(text: str) -> bool:
    """True if every backend can store the text as part of a key: UTF-8 without NUL."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
