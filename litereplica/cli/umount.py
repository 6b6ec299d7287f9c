"""`litereplica umount`: end a mount, or detach it with `--lazy`.

The daemon is asked to end with SIGUSR1, repeatedly, until it has ended and the mount is gone. It refuses while a file
is open; the command then names the processes.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from litereplica.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
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
    from litereplica.fuse import mountpoint as mountpoints

    path = mountpoints.absolute(mountpoint)
    mount = mountpoints.mount_at(path)
    if mount is None or mount.type != mountpoints.FILE_SYSTEM_TYPE:
        raise UsageError(f"no replica is mounted at {path}", hint="see 'findmnt -t fuse.litereplica'")
    pid = None if lazy else _daemon(path)
    if pid is None:
        mountpoints.unmount(path, lazy=True)
    else:
        _end(mount, path, pid)


def _end(mount: Mount, path: Path, pid: int) -> None:
    """Ask the daemon `pid` to end, and wait until it has ended. Raises `EnvironmentProblem` if the mount is in use."""
    from litereplica.fuse import mountpoint as mountpoints

    deadline = time.monotonic() + END_LIMIT_S
    ask_again_at, has_asked = 0.0, False
    while mountpoints.mount_at(path) == mount or _runs(pid):
        now = time.monotonic()
        if now > deadline:
            raise EnvironmentProblem(f"the mount at {path} has not ended", hint="see its log, or use --lazy")
        if now >= ask_again_at and _runs(pid):
            _refuse_if_used(mount, path, pid)
            copies = mountpoints.copies(mount)
            if copies and has_asked:
                _refuse_for(copies, path)
            if not copies:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)
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


def _daemon(path: Path) -> int | None:
    """The pid of the mount's daemon, from its status file; None if the daemon is dead."""
    from litereplica.fuse import mountpoint as mountpoints
    from litereplica.fuse.nodes import STATUS_NAME

    try:
        return int(json.loads(mountpoints.ask((path / STATUS_NAME).read_bytes))["pid"])
    except TimeoutError:
        raise EnvironmentProblem(f"the daemon of the mount at {path} does not answer", hint="use --lazy") from None
    except OSError as exc:
        if mountpoints.is_dead_error(exc):
            return None
        raise


def _runs(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
