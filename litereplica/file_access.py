"""Who may access the files and directories that are made here: permission bits and a group.

What is made from a file is no more accessible than that file, unless the user asks for more.
"""

from __future__ import annotations

import grp
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from litereplica.errors import UsageError

MODE_HINT = "write an octal mode such as 0640, in which the owner has 6 and nobody may execute"
GROUP_MODE = 0o640
"""Mode of files for which only a group is wanted."""


@dataclass(frozen=True, slots=True)
class FileAccess:
    """Permission bits of files, without those to execute, and their group (a gid; None: whatever it is).

    It is a limit: the umask and the mode of the directory restrict it further, and a file that cannot have the group
    gives its own group no more than everybody. If it `is_wanted`, a new file gets just this.
    """

    mode: int = 0o666
    gid: int | None = None
    is_wanted: bool = False

    @classmethod
    def of(cls, status: os.stat_result) -> FileAccess:
        """Return the access that a file or directory gives, as a limit."""
        return cls(stat.S_IMODE(status.st_mode) & 0o666, status.st_gid)

    @property
    def directory_mode(self) -> int:
        """Permission bits of a directory: those who may read it may enter it."""
        return self.mode | (self.mode & 0o444) >> 2

    def grant(self, fd: int, *, keep_group: bool = False) -> None:
        """Give this access to a new file or directory, which was made with no more than `mode`. Raises `OSError`."""
        found = os.fstat(fd)
        before = mode = stat.S_IMODE(found.st_mode)
        if self.is_wanted:
            mode = self.directory_mode | before & stat.S_ISGID if stat.S_ISDIR(found.st_mode) else self.mode
        gid = self.gid
        if gid is not None and gid != found.st_gid and mode & 0o070 and not keep_group:
            try:
                os.fchown(fd, -1, gid)
            except PermissionError:
                if self.is_wanted:
                    raise
                mode &= ~0o070 | (mode & 0o007) << 3
        if mode != before:
            os.fchmod(fd, mode)


@dataclass(frozen=True, slots=True)
class WantedAccess:
    """What a user wants instead of the usual limit: permission bits, and the name of a group; None: nothing."""

    mode: int | None = None
    group: str | None = None

    def instead_of(self, limit: FileAccess) -> FileAccess:
        """Return the access for files that would get `limit`. Raises `UsageError` if this user is not in the group."""
        if self.mode is None and self.group is None:
            return limit
        mode = GROUP_MODE if self.mode is None else self.mode
        return FileAccess(mode, limit.gid if self.group is None else _gid_of(self.group), is_wanted=True)


AS_USUAL = WantedAccess()


def parse_mode(text: str) -> int | None:
    """Return the permission bits of an octal mode for files; None if it is not one."""
    mode = int(text, 8) if re.fullmatch("0?[0-7]{3}", text) else 0
    return mode if mode & ~0o066 == 0o600 else None


def _gid_of(group: str) -> int:
    try:
        gid = int(group) if re.fullmatch("[0-9]{1,9}", group) else grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"there is no group {group!r}", hint="name a group of this machine") from None
    if os.geteuid() != 0 and gid not in (os.getegid(), *os.getgroups()):
        raise UsageError(f"this user is not in the group {group}", hint="name a group of this user, or run as root")
    return gid


def make_directories(path: Path, access: FileAccess | None = None) -> list[Path]:
    """Make a directory and its parents, for this user alone or with `access`; returns those made, innermost first."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    made: list[Path] = []
    for each in reversed(missing):
        try:
            each.mkdir(mode=0o700)
        except FileExistsError:
            continue
        made.insert(0, each)
        if access is not None:
            fd = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                access.grant(fd)
            finally:
                os.close(fd)
    return made
