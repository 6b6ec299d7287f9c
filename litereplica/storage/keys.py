"""Rules for keys that every backend enforces."""

from __future__ import annotations

from litereplica.errors import StorageError


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


def _are_components(parts: list[str]) -> bool:
    return all(part not in ("", ".", "..") for part in parts)


def _is_text(text: str) -> bool:
    """True if every backend can store the text as part of a key: UTF-8 without NUL."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
