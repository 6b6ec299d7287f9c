"""A database file that appears under its name only when it is whole and durable.

It is written under a temporary name in the same directory, fsynced and renamed. A new file has mode 0600; one that
replaces another has the mode and, if this user may set them, owner and group of that; what the user wants comes before
both. A missing directory is made, for those who may read the file, and removed again if the file is not published. An
existing file is replaced only on request, and not while another process has it open in WAL mode: that one would go on
with the old, unlinked file and lose what it writes.

The `-wal`, `-shm` and `-journal` of an old database must never lie beside the new file, since SQLite would apply them
to it. If there are any, the old database is removed first, then these, then the new one is renamed. A crash in between
leaves the old database whole, or none.

From `open` on, names are those of the directory that was opened then: another user may own one above it, and put
another directory, or a link, in its place. All functions block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from litereplica.errors import EnvironmentProblem, UsageError
from litereplica.file_access import FileAccess, make_directories
from litereplica.file_io import fsync_directory
from litereplica.file_locks import lock_holder
from litereplica.format.walindex import LOCK_DMS

SIDECARS = ("-wal", "-shm", "-journal")

_NAME_CHARACTERS = 50
"""Characters of the final name in the temporary one, so that it does not become too long for a file name."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class OutputFile:
    """The file `path` while it is written: `check`, `open`, then `publish` or `discard`.

    A symbolic link is followed, so that the file and its sidecars are those that SQLite would use, unless
    another user made the link. Without `follow` a link itself is replaced. `access` is what the user wants.
    `temporary` is the file's name until it is published.
    """

    def __init__(self, path: Path, *, force: bool, follow: bool = True, access: FileAccess | None = None) -> None:
        self._is_others_link = follow and path.is_symlink() and path.lstat().st_uid not in (0, os.geteuid())
        self._given = path
        self.path = Path(os.path.realpath(path)) if follow else Path(os.path.realpath(path.parent)) / path.name
        self._force = force
        self._access = access
        self.temporary = self.path.with_name(f".{self.path.name[:_NAME_CHARACTERS]}.{secrets.token_hex(6)}.tmp")
        self._fd = self._directory = -1
        self._made: list[Path] = []  # directories, the innermost first

    def check(self) -> None:
        """Raise `UsageError` unless the file may be written, or replaced."""
        if self._is_others_link:
            raise UsageError(f"{self._given} is a symbolic link that another user made", hint="name the file itself")
        nearest = next(parent for parent in self.path.parents if os.path.lexists(parent))
        if not nearest.is_dir():
            raise UsageError(f"{nearest} is not a directory", hint="name another place")
        with contextlib.suppress(FileNotFoundError):
            status = self.path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{self.path} is not a regular file", hint="name a file")
            if status.st_size and not self._force:
                raise UsageError(f"{self.path} exists", hint="name another file, or add --force to replace it")
        if self._force:
            self._require_unused()
        else:
            for sidecar in self._sidecars():
                hint = "move it away, name another file, or add --force to remove it"
                raise UsageError(f"{sidecar} exists, and SQLite would apply it to the new database", hint=hint)

    def open(self) -> int:
        """Create the temporary file, and its directory; returns the descriptor, which stays this object's.

        Raises as `reporting`.
        """
        with self.reporting():
            self._made = make_directories(self.path.parent, self._access)
            self._directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self.temporary.name, flags, 0o600, dir_fd=self._directory)
        return self._fd

    def publish(self) -> None:
        """Make the file durable and give it its name. Raises as `check` and `reporting`."""
        self.check()
        with self.reporting():
            self._inherit()
            os.fsync(self._fd)
            sidecars = [name for name in self._sidecar_names() if self._is_there(name)]
            if sidecars:
                self._remove([self.path.name])
                self._remove(sidecars)
            where = self._directory
            os.rename(self.temporary.name, self.path.name, src_dir_fd=where, dst_dir_fd=where)
            os.fsync(where)
            for made in self._made:
                fsync_directory(made.parent)
        self._made.clear()
        self._close()

    def _inherit(self) -> None:
        """Give the file the access that is wanted, else the mode, owner and group of the one that it replaces."""
        with contextlib.suppress(FileNotFoundError):
            old = os.stat(self.path.name, dir_fd=self._directory, follow_symlinks=False)
            with contextlib.suppress(PermissionError):
                os.fchown(self._fd, old.st_uid, -1)
            os.fchmod(self._fd, stat.S_IMODE(old.st_mode) & 0o777)
            FileAccess.of(old).grant(self._fd)
        if self._access is not None:
            self._access.grant(self._fd)

    def discard(self) -> None:
        """Remove the temporary file; no error if there is none."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.temporary.name, dir_fd=self._directory)
        self._close()
        with contextlib.suppress(OSError):  # somebody else has put something there
            while self._made:
                self._made.pop(0).rmdir()

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn an `OSError` of the block into `EnvironmentProblem`."""
        try:
            yield
        except OSError as exc:
            if exc.errno in _NO_SPACE:
                raise EnvironmentProblem(
                    f"no space left in {self.path.parent} for {self.path.name}",
                    hint="free some, or name a file on another file system",
                ) from exc
            raise EnvironmentProblem(
                f"cannot write {self.path}: {exc.strerror}", hint="check the directory's permissions and file system"
            ) from exc

    def _require_unused(self) -> None:
        """Raise `UsageError` if a process has the database open in WAL mode: it holds a lock on the `-shm`."""
        shm = self.path.with_name(f"{self.path.name}-shm")
        try:
            fd = os.open(shm, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            process = lock_holder(fd, LOCK_DMS)
        finally:
            os.close(fd)
        if process is not None:
            hint = "stop it first: it would not notice, and what it writes would be lost"
            raise UsageError(f"{self.path} is open in process {process}", hint=hint)

    def _sidecars(self) -> list[Path]:
        paths = [self.path.with_name(name) for name in self._sidecar_names()]
        return [path for path in paths if os.path.lexists(path)]

    def _sidecar_names(self) -> list[str]:
        return [self.path.name + suffix for suffix in SIDECARS]

    def _is_there(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _remove(self, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)
        os.fsync(self._directory)

    def _close(self) -> None:
        for fd in (self._fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory = -1
