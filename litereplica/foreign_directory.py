"""Opens files and directories of ours that lie where others may write: beside a database, in /tmp, in a cache.

Whoever can write to a directory can put a link, a pipe or a file of theirs where we expect ours. So nothing here
follows a symbolic link in the last component (except one that this user or root made, where a user names the file),
waits for a pipe, or writes to a file that has another name elsewhere.
A directory of ours counts only if nobody else can write to it; its files are opened relative to its descriptor, so that
it cannot be exchanged meanwhile.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from litereplica.errors import EnvironmentProblem

MAX_NOTE_BYTES = 1 << 20
"""Largest size of a note that is read whole; ours have some hundred bytes."""

_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MOST_LINKS = 40
"""As many as Linux follows in a path."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def open_regular(path: Path | str, flags: int, *, dir_fd: int | None = None) -> int:
    """Return a descriptor of a regular file, which gets mode 0600 if it is made; `flags` are those of open(2).

    Raises `OSError` for anything else, and for a file with several names if it is opened for writing.
    """
    fd = os.open(path, flags & ~os.O_TRUNC | _SAFE, 0o600, dir_fd=dir_fd)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if flags & os.O_ACCMODE != os.O_RDONLY and found.st_nlink > 1:
            raise OSError(errno.EPERM, "the file has another name, which would change as well")
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_own_file(path: Path, flags: int) -> int:
    """Return a descriptor of a regular file of this user or root, which gets mode 0600 if it is made.

    A symbolic link is followed if this user or root made it. Raises `OSError` for anything else, and as `open_regular`.
    """
    for _ in range(_MOST_LINKS):
        try:
            fd = open_regular(path, flags)
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            path = path.parent / _target_of_own_link(path)
            continue
        if not _is_own(os.fstat(fd)):
            os.close(fd)
            raise PermissionError(errno.EPERM, "another user owns the file")
        return fd
    raise OSError(errno.ELOOP, "it leads through too many symbolic links")


def _target_of_own_link(path: Path) -> str:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _is_own(os.fstat(fd)):
            raise PermissionError(errno.EPERM, "another user made the symbolic link")
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def read_note(path: Path | str, *, dir_fd: int | None = None, limit: int = MAX_NOTE_BYTES) -> bytes:
    """Return the content of a regular file, `limit` bytes of it at most. Raises `OSError`."""
    with os.fdopen(open_regular(path, os.O_RDONLY, dir_fd=dir_fd), "rb") as file:
        return file.read(limit)


def parse_object(text: str | bytes | bytearray) -> dict[str, Any] | None:
    """Return the JSON object that somebody else wrote; None if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def open_own_directory(path: Path, *, owner: int) -> int:
    """Return a descriptor of a directory to which nobody but this user, `owner` (a uid) and root can write.

    Raises `OSError` if it cannot be opened, `EnvironmentProblem` if others can write to it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
    found = os.fstat(fd)
    if found.st_uid not in (0, os.geteuid(), owner) or found.st_mode & _OTHERS_WRITE:
        os.close(fd)
        raise EnvironmentProblem(
            f"others may write to {path}, or own it", hint=f"remove it, or run 'chmod 700 {path}' if it is yours"
        )
    return fd


@contextmanager
def opened_own_directory(path: Path) -> Iterator[int]:
    """Yield a descriptor of a directory to which only its owner and root can write. Raises as `open_own_directory`.

    The owner is the user of this process, or the one whose directory it is in.
    """
    fd = open_own_directory(path, owner=path.parent.stat().st_uid)
    try:
        yield fd
    finally:
        os.close(fd)
