"""Writing to local files: whole buffers, and names that survive a loss of power."""

from __future__ import annotations

import os
from pathlib import Path


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at an offset of an open file; system calls may write less than they are given."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
