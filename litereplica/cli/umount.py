"""`litereplica umount`: end a mount, or detach it with `--lazy`.

The daemon is asked to end with SIGUSR1, repeatedly, until it has ended and the mount is gone. It refuses while a file
is open; the command then names the processes. The pid comes from the mount's status, and is signalled only if the
kernel confirms that it is the daemon of the user who mounted (`mount_status.py`); else the mount is only taken away.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from litereplica.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from litereplica.cli.mount_status import Daemon
    from litereplica.fuse.mountpoint import Copy, Mount

END_LIMIT_S = 10.0
"""Time that a daemon gets to end; its own limit is less than half of this."""

CHECK_INTERVAL_S = 0.02
ASK_INTERVAL_S = 1.0
"""Between requests to end: a daemon may have refused because of a file that is closed by now. Copies of the mount are
searched for again as well: a starting container has one until it has changed its root."""


@click.command("umount", short_help="Unmount a replica and end its daemon.")
@click.argument("mountpoint", type=Path)  # click.Path would stat() it, and a dead daemon there may hang
@click.option(
    "--lazy",
    is_flag=True,
    help="Detach the mount at once; processes keep their open files until they close them.",
)
def command(mountpoint: Path, lazy: bool) -> None:
    """End the mount at MOUNTPOINT.

    If a process has the database open, the command fails and names the process. With --lazy the path is free at once,
    and the daemon ends when the last of these processes has closed the database.

    \b
    Example:
      litereplica umount /mnt/live
    """
    from litereplica.cli.mount_status import daemon_of, read_status, require_yours
    from litereplica.fuse import mountpoint as mountpoints

    path = mountpoints.absolute(mountpoint)
    mount = mountpoints.mount_at(path)
    if mount is None or mount.type != mountpoints.FILE_SYSTEM_TYPE:
        raise UsageError(f"no replica is mounted at {path}", hint="see 'findmnt -t fuse.litereplica'")
    require_yours(mount)
    if lazy:
        mountpoints.unmount(path, lazy=True)
        return
    status = read_status(mount)
    daemon = None if status is None else daemon_of(mount, status.get("pid"))
    if daemon is not None:
        with daemon:
            _end(mount, path, daemon)
    elif mountpoints.is_dead(mount):
        mountpoints.unmount(path, lazy=True)
    elif not mountpoints.unmount(path, lazy=False):
        raise EnvironmentProblem(f"{path} is in use", hint="end the processes that use it first, or use --lazy")


def _end(mount: Mount, path: Path, daemon: Daemon) -> None:
    """Ask the daemon to end, and wait until it has ended. Raises `EnvironmentProblem` if the mount is in use."""
    from litereplica.fuse import mountpoint as mountpoints

    deadline = time.monotonic() + END_LIMIT_S
    ask_again_at, has_asked = 0.0, False
    while mountpoints.mount_at(path) == mount or daemon.runs:
        now = time.monotonic()
        if now > deadline:
            raise EnvironmentProblem(f"the mount at {path} has not ended", hint="see its log, or use --lazy")
        if now >= ask_again_at and daemon.runs:
            _refuse_if_used(mount, path, daemon.pid)
            copies = mountpoints.copies(mount)
            if copies and has_asked:
                _refuse_for(copies, path)
            if not copies:
                daemon.ask_to_end()
            ask_again_at, has_asked = now + ASK_INTERVAL_S, True
        time.sleep(CHECK_INTERVAL_S)


def _refuse_if_used(mount: Mount, path: Path, daemon: int) -> None:
    from litereplica.fuse import mountpoint as mountpoints

    if mountpoints.mount_at(path) != mount:
        return
    users = mountpoints.clients(path, besides=daemon)
    if users:
        raise EnvironmentProblem(
            f"{path} is in use by {', '.join(map(str, users))}", hint="end these processes first, or use --lazy"
        )


def _refuse_for(copies: Sequence[Copy], path: Path) -> NoReturn:
    raise EnvironmentProblem(
        f"{path} is also mounted at {', '.join(map(str, copies))}",
        hint="unmount it there or end the processes there first, or use --lazy",
    )
