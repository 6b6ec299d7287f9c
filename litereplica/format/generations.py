"""Names of the files of a backup by Litestream 0.3, which is not LTX.

    generations/<16 hex digits>/snapshots/<index>.snapshot.lz4        the database, when WAL file `index` was current
    generations/<16 hex digits>/wal/<index>_<offset>.wal.lz4          a piece of that WAL file, from a byte offset on

Index and offset have 8 hexadecimal digits, large offsets up to 16. Each file is an LZ4 frame. A generation is an
unbroken sequence of WAL files: the database is its snapshot with all WAL files from that index on.
Source: github.com/benbjohnson/litestream, v3.go.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "generations/"

_KEY = re.compile(
    r"generations/(?P<generation>[0-9a-f]{16})/"
    r"(?:snapshots/(?P<snapshot>[0-9a-f]{8})\.snapshot|wal/(?P<index>[0-9a-f]{8})_(?P<offset>[0-9a-f]{8,16})\.wal)\.lz4",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class GenerationName:
    """What the name of a file says. `offset` is None for a snapshot."""

    generation: str
    index: int
    offset: int | None


def parse_key(key: str) -> GenerationName | None:
    """Parse the key of a file below the root of its backup; None if it is not one."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    if match["snapshot"] is not None:
        return GenerationName(match["generation"], int(match["snapshot"], 16), None)
    return GenerationName(match["generation"], int(match["index"], 16), int(match["offset"], 16))


def backup_prefix(key: str) -> str | None:
    """The prefix of the backup to which the file at `key` belongs, without a final slash; None if it is not one."""
    prefix, found, rest = ("/" + key).rpartition("/" + PREFIX)
    return prefix[1:] if found and parse_key(PREFIX + rest) is not None else None
