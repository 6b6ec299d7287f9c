"""The files of a mount: names, inodes, attributes.

A mount of one database shows `app.db`, `app.db-wal`, `app.db-shm` and `app.db-pos`, and answers for one hidden file,
`.litereplica`, which tells what the daemon is and does as JSON, and one hidden directory, `.at`, of past states. What
is in there has inodes of its own, from `FIRST_PAST_INODE` up (`at_tree.py`). A mount of a past state shows `app.db` and
`app.db-pos`.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from enum import IntEnum

import pyfuse3

from litereplica.errors import UsageError

STATUS_NAME = ".litereplica"
AT_NAME = ".at"
POS_SIZE = 34
"""Bytes of `-pos`: two numbers of 16 hexadecimal digits, a slash, a newline."""

FOREVER_S = 1e9
"""Timeout of entries and attributes: we tell the kernel of every change ourselves, and each question costs a hot
query more than its answer is worth."""

_RESERVED_SUFFIXES = ("-wal", "-shm", "-journal", "-pos")
_MTIME_NS = 0
"""Constant: a change of mtime makes the kernel drop the file's cached pages."""

FIRST_PAST_INODE = 1024
"""Below it are the files of `Inode`."""


class Inode(IntEnum):
    """Inode numbers; the root's is given by FUSE."""

    ROOT = 1
    DATABASE = 2
    WAL = 3
    SHM = 4
    POS = 5
    STATUS = 6
    AT = 7


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files these are."""

    uid: int
    gid: int


def check_database_name(name: str) -> str:
    """Return `name` when it can name a database in a mount, else raise `UsageError`."""
    hint = "choose another with --name"
    if not name or name in (".", "..", STATUS_NAME, AT_NAME) or "/" in name or len(name.encode(errors="replace")) > 240:
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


def static_file_names(database: str) -> dict[bytes, Inode]:
    """The same for a mount of a past state: no `-wal` and no `-shm`, so that clients take it as it is."""
    base = database.encode()
    return {base: Inode.DATABASE, base + b"-pos": Inode.POS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A file or a directory as the kernel gets to know it. `size` in bytes; its name may be believed for a time."""

    inode: int
    is_directory: bool = False
    size: int = 0
    mtime_ns: int = _MTIME_NS
    entry_timeout_s: float = FOREVER_S


def attributes(node: Node, owner: Owner) -> pyfuse3.EntryAttributes:
    """Attributes of a file or directory. Nobody but us changes it, so they are true until we say otherwise."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = node.inode
    entry.st_mode = stat.S_IFDIR | 0o555 if node.is_directory else stat.S_IFREG | 0o444
    entry.st_nlink = 2 if node.is_directory else 1
    entry.st_size = node.size
    entry.st_blocks = -(-node.size // 512)
    entry.st_blksize = 4096
    entry.st_uid, entry.st_gid = owner.uid, owner.gid
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.mtime_ns
    entry.entry_timeout, entry.attr_timeout = node.entry_timeout_s, FOREVER_S
    return entry


def no_entry(*, ever: bool = True) -> pyfuse3.EntryAttributes:
    """The answer for a name that does not exist, and `ever` will not, such as `app.db-journal`."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = FOREVER_S if ever else 0
    return entry
