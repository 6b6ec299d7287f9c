"""Names that a mount gives a meaning, and which names a database in it can have.

Imports no FUSE library: `umount` and `status` read a mount's status file by its name.
"""

from __future__ import annotations

from litereplica.errors import UsageError

STATUS_NAME = ".litereplica"
STATUS_DATABASE_NAME = ".litereplica.db"
AT_NAME = ".at"
XATTR_PREFIX = "user.litereplica."

MAX_NAME_BYTES = 240
"""Of a database: the kernel allows 255, and SQLite appends to it."""

_RESERVED_SUFFIXES = ("-wal", "-shm", "-journal", "-pos")


def check_database_name(name: str) -> str:
    """Return `name` if a database in a mount can have it, else raise `UsageError`."""
    hint = "choose another with --name"
    if (
        not name
        or name in (".", "..", STATUS_NAME, STATUS_DATABASE_NAME, AT_NAME)
        or "/" in name
        or len(name.encode(errors="replace")) > MAX_NAME_BYTES
    ):
        raise UsageError(f"{name!r} is not a file name", hint=hint)
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) < 0xE000 for char in name):
        raise UsageError(f"{name!r} has a control character", hint=hint)
    if name.endswith(_RESERVED_SUFFIXES):
        raise UsageError(f"{name!r} ends like one of SQLite's own files", hint=hint)
    return name
