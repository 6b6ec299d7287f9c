"""The files of a mount: names, inodes, attributes.

A mount of one database shows `app.db`, `app.db-wal`, `app.db-shm` and `app.db-pos`, and answers for one hidden file,
`.litereplica`, which tells what the daemon is and does as JSON.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from enum import IntEnum

import pyfuse3

from litereplica.errors import UsageError

STATUS_NAME = ".litereplica"
POS_SIZE = 34
"""Bytes of `-pos`: two numbers of 16 hexadecimal digits, a slash, a newline."""

FOREVER_S = 1e9
"""Timeout of entries and attributes: we tell the kernel of every change ourselves, and each question costs a hot
query more than its answer is worth."""

_RESERVED_SUFFIXES = ("-wal", "-shm", "-journal", "-pos")
_MTIME_NS = 0
"""Constant: a change of mtime makes the kernel drop the file's cached pages."""


class Inode(IntEnum):
    """Inode numbers; the root's is given by FUSE."""

    ROOT = 1
    DATABASE = 2
    WAL = 3
    SHM = 4
    POS = 5
    STATUS = 6


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files these are."""

    uid: int
    gid: int


def check_database_name(name: str) -> str:
    """Return `name` when it can name a database in a mount, else raise `UsageError`."""
    hint = "choose another with --name"
    if not name or name in (".", "..", STATUS_NAME) or "/" in name or len(name.encode(errors="replace")) > 240:
        raise UsageError(f"{name!r} is not a file name", hint=hint)
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) < 0xE000 for char in name):
        raise UsageError(f"{name!r} has a control character", hint=hint)
    if name.endswith(_RESERVED_SUFFIXES):
        raise UsageError(f"{name!r} ends like one of SQLite's own files", hint=hint)
    return name


def file_names(database: str) -> dict[bytes, Inode]:
    """The names that a directory listing shows."""
    base = database.encode()
    return {base: Inode.DATABASE, base + b"-wal": Inode.WAL, base + b"-shm": Inode.SHM, base + b"-pos": Inode.POS}


def attributes(inode: int, *, size: int, owner: Owner) -> pyfuse3.EntryAttributes:
    """Attributes of a file, or of the root directory."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = stat.S_IFDIR | 0o555 if inode == Inode.ROOT else stat.S_IFREG | 0o444
    entry.st_nlink = 2 if inode == Inode.ROOT else 1
    entry.st_size = size
    entry.st_blocks = -(-size // 512)
    entry.st_blksize = 4096
    entry.st_uid, entry.st_gid = owner.uid, owner.gid
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = _MTIME_NS
    entry.entry_timeout = entry.attr_timeout = FOREVER_S
    return entry


def no_entry() -> pyfuse3.EntryAttributes:
    """The answer for a name that does not exist and never will, such as `app.db-journal`."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = FOREVER_S
    return entry
