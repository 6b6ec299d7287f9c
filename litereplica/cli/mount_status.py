"""What a mount says of itself in its hidden status file, for `status` and `umount`.

Another user may run the daemon, and so write the file. Therefore its size is limited and its form is checked, and a pid
in it counts only if the kernel confirms it.
"""

from __future__ import annotations

import os
import pwd
import select
import signal
from pathlib import Path
from typing import Any

from litereplica.errors import EnvironmentProblem
from litereplica.foreign_directory import parse_object
from litereplica.fuse import mountpoint as mountpoints
from litereplica.fuse.mountpoint import FUSE_DEVICE, Mount
from litereplica.fuse.names import STATUS_NAME

MAX_STATUS_BYTES = 1 << 20
"""A status has some 10 KB."""


def read_status(mount: Mount) -> dict[str, Any] | None:
    """Return the status of a mount, None if its daemon has ended. Root asks as the user who mounted.

    Blocks. Must not be called when there are other threads. Raises `EnvironmentProblem` if the mount belongs to another
    user, if the daemon does not answer in time, or if the answer is no status.
    """
    path = Path(mount.path)
    try:
        text = mountpoints.ask(lambda: _read(path / STATUS_NAME), owner=mount.owner)
    except TimeoutError:
        raise EnvironmentProblem(
            f"the daemon of the mount at {path} does not answer",
            hint="see its log, or end it with 'litereplica umount --lazy'",
        ) from None
    except PermissionError as exc:
        raise _not_yours(mount) from exc
    except OSError as exc:
        if mountpoints.is_dead_error(exc):
            return None
        raise EnvironmentProblem(f"cannot ask the mount at {path}: {exc.strerror}", hint="see its log") from exc
    status = parse_object(text)
    if status is None:
        raise EnvironmentProblem(
            f"the mount at {path} has no status of litereplica", hint="detach it with 'litereplica umount --lazy'"
        )
    return status


def require_alive(mount: Mount) -> None:
    """Raise `EnvironmentProblem` if the daemon of a mount has ended."""
    if mountpoints.is_dead(mount):
        raise EnvironmentProblem(f"the daemon of the mount at {mount.path} is dead", hint="mount it again")


def require_yours(mount: Mount) -> None:
    """Raise `EnvironmentProblem` unless this user may end the mount."""
    if not is_yours(mount):
        raise _not_yours(mount)


def is_yours(mount: Mount) -> bool:
    """True if the mount is this user's, or this user is root."""
    return mount.owner is None or os.geteuid() in (0, mount.owner.uid)


def _not_yours(mount: Mount) -> EnvironmentProblem:
    user = "another user"
    if mount.owner is not None:
        try:
            user = pwd.getpwuid(mount.owner.uid).pw_name
        except KeyError:
            user = f"user {mount.owner.uid}"
    return EnvironmentProblem(
        f"the mount at {mount.path} belongs to {user}", hint="run the command as that user, or as root"
    )


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_STATUS_BYTES)


class Daemon:
    """A process that serves a mount, as the kernel confirms; use as a context manager. It is signalled by descriptor.

    `pid` is for messages.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._pidfd)

    @property
    def runs(self) -> bool:
        """True until the process has ended."""
        return not select.select([self._pidfd], [], [], 0)[0]

    def ask_to_end(self) -> None:
        """Send SIGUSR1; no error if it has ended."""
        if self.runs:
            signal.pidfd_send_signal(self._pidfd, signal.SIGUSR1)


def daemon_of(mount: Mount, pid: object) -> Daemon | None:
    """Return the process `pid` if it belongs to the user of this mount and serves a FUSE file system, else None.

    The descriptor is opened first, so that what is checked is what is signalled.
    """
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 1 << 31:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    daemon = Daemon(pid, pidfd)
    if mount.owner is not None and mount.owner.uid == _uid(pid) and _serves(pid) and daemon.runs:
        return daemon
    os.close(pidfd)
    return None


def _uid(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def _serves(pid: int) -> bool:
    """True if a process has a connection of FUSE open: no other program of that user is ended by mistake."""
    try:
        return any(os.readlink(link) == str(FUSE_DEVICE) for link in Path(f"/proc/{pid}/fd").iterdir())  # noqa: PTH115
    except OSError:
        return False
