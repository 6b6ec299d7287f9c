"""Names of LTX files and of the directories of their levels, in both layouts.

The S3 layout is `<level as %04x>/<min>-<max>.ltx`, that of `file://` is `ltx/<level>/<min>-<max>.ltx`; TXIDs are 16
lower-case hexadecimal digits. Objects with other names are ignored.
"""

from __future__ import annotations

import re
from enum import Enum

from litereplica.errors import LTXError
from litereplica.types import SNAPSHOT_LEVEL as SNAPSHOT_LEVEL
from litereplica.types import TXID

LEVELS = range(SNAPSHOT_LEVEL + 1)
MAX_TXID = (1 << 63) - 1
"""The last TXID that a file may have. Greater ones fit into a header, but could not be continued: a file with such a
name is refused."""

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx", re.ASCII)
_TXID = re.compile(r"[0-9a-f]{16}", re.ASCII)


class Layout(Enum):
    """How the directory of a level is named below the root of a replica: a format of the level's number."""

    S3 = "{:04x}"
    FILE = "ltx/{}"


def format_txid(txid: TXID) -> str:
    """Format a TXID as 16 lower-case hexadecimal digits. Raises `LTXError` if it is out of range."""
    if not 0 <= txid < 1 << 64:
        raise LTXError(f"TXID {txid} is out of range")
    return f"{txid:016x}"


def parse_txid(text: str) -> TXID:
    """Parse a TXID as `format_txid` writes it. Raises `LTXError`."""
    if not _TXID.fullmatch(text):
        raise LTXError(f"TXID {text!r} is not 16 lower-case hexadecimal digits")
    return int(text, 16)


def format_name(min_txid: TXID, max_txid: TXID) -> str:
    """The file name `<min>-<max>.ltx`. Raises `LTXError` for an invalid range."""
    if not 1 <= min_txid <= max_txid <= MAX_TXID:
        raise LTXError(f"TXID range {min_txid}-{max_txid} is not valid")
    return f"{format_txid(min_txid)}-{format_txid(max_txid)}.ltx"


def parse_name(name: str) -> tuple[TXID, TXID] | None:
    """The TXIDs (min, max) in a file name; None if it is not the name of an LTX file."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    low, high = int(match[1], 16), int(match[2], 16)
    return (low, high) if 1 <= low <= high <= MAX_TXID else None


def is_beyond_limit(name: str) -> bool:
    """True if a file has the name of an LTX file, except that its last TXID is greater than `MAX_TXID`."""
    match = _NAME.fullmatch(name)
    return match is not None and int(match[2], 16) > MAX_TXID


def level_prefix(layout: Layout, level: int) -> str:
    """The key prefix of a level, with a final slash. Raises `LTXError` for an invalid level."""
    if level not in LEVELS:
        raise LTXError(f"level {level} is not in 0..{SNAPSHOT_LEVEL}")
    return f"{layout.value.format(level)}/"


def file_key(layout: Layout, level: int, min_txid: TXID, max_txid: TXID) -> str:
    """The key of a file below the root of its replica."""
    return level_prefix(layout, level) + format_name(min_txid, max_txid)


def replica_prefix(layout: Layout, key: str) -> str | None:
    """The prefix of the replica to which the LTX file at `key` belongs, without a final slash; empty for the root.

    None if `key` does not have the form `[<prefix>/]<directory of a level>/<min>-<max>.ltx`.
    """
    match = _FILE_KEYS[layout].fullmatch(key)
    return None if match is None or parse_name(match["name"]) is None else match["prefix"] or ""


def _file_keys(layout: Layout) -> re.Pattern[str]:
    directories = "|".join(re.escape(layout.value.format(level)) for level in LEVELS)
    return re.compile(rf"(?:(?P<prefix>.+)/)?(?:{directories})/(?P<name>[^/]+)", re.DOTALL)


_FILE_KEYS = {layout: _file_keys(layout) for layout in Layout}
