"""Which names of a store a prefix mount shows, and what a name in it means. Pure.

    acme.db                            a database, or a directory
    acme.db-wal, -shm, -pos            files of the database acme.db
    acme.db-journal                    never exists

A name of the store is left out if it could be taken for one of SQLite's own files, for a hidden name of the mount, or
if it cannot be a file name. `Patterns` are those of `--include` and `--exclude`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from litereplica.errors import UsageError
from litereplica.fuse.names import check_database_name

JOURNAL_SUFFIX = "-journal"
OWN_SUFFIXES = ("-wal", "-shm", "-pos")
HIDDEN_NAMES = frozenset({".at", ".each", ".inodes", ".litereplica", ".litereplica.db"})


@dataclass(frozen=True, slots=True)
class Parts:
    """A name as the store has it, and the suffix of one of the database's own files, or an empty one."""

    name: str
    suffix: str


def refusal(name: str) -> str | None:
    """Return why a name of the store is left out; None if it is shown."""
    if name in HIDDEN_NAMES:
        return "it is a hidden name of the mount"
    try:
        check_database_name(name)
    except UsageError as exc:
        return exc.message.removeprefix(f"{name!r} ")
    return None


def parse(name: bytes) -> Parts | None:
    """Return the parts of a name that was looked up; None if there can be no such name."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    suffix = next((each for each in OWN_SUFFIXES if text.endswith(each)), "")
    text = text.removesuffix(suffix)
    return None if refusal(text) is not None else Parts(text, suffix)


class Patterns:
    """Shell patterns of paths. One without a slash is for the last component of a path; `**` stands for any number.

    With patterns to include, a database must match one of them. What matches a pattern to exclude is left out, with
    all that is below it.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include = [pattern.strip("/") for pattern in include]
        self._exclude = [pattern.strip("/") for pattern in exclude]

    def may_show(self, path: str) -> bool:
        """True unless the path, or one above it, is excluded, or no included database can be at it or below it."""
        parts = path.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        if any(_matches(each, pattern) for each in above for pattern in self._exclude):
            return False
        return not self._include or any(_may_lead_to(parts, pattern) for pattern in self._include)

    def includes(self, path: str) -> bool:
        """True if the path is that of a database to show."""
        if not self.may_show(path):
            return False
        return not self._include or any(_matches(path, pattern) for pattern in self._include)


def _matches(path: str, pattern: str) -> bool:
    if "/" not in pattern:
        return fnmatchcase(path.rpartition("/")[2], pattern)
    if "**" in pattern:
        return fnmatchcase(path, pattern)
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _may_lead_to(parts: Sequence[str], pattern: str) -> bool:
    """True if the path is that of a match, or if one may be below it."""
    wanted = pattern.split("/")
    if len(wanted) == 1 or "**" in wanted:
        return True  # a directory may have any name
    return len(parts) <= len(wanted) and all(map(fnmatchcase, parts, wanted))
