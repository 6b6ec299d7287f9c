"""`litereplica umount`."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import click

from litereplica.errors import EnvironmentProblem, UsageError

END_LIMIT_S = 10.0
"""How long a daemon may take to end: it gives itself less than half of that."""

CHECK_INTERVAL_S = 0.02


@click.command("umount", short_help="Unmount a replica and end its daemon.")
@click.argument("mountpoint", type=Path)  # click.Path would ask the file system, and so a daemon that may hang
@click.option(
    "--lazy",
    is_flag=True,
    help="Take the mount away at once; processes inside keep what they have open until they end.",
)
def command(mountpoint: Path, lazy: bool) -> None:
    """End the mount at MOUNTPOINT.

    While a process has the database open the mount stays, and the command says who that is. With --lazy the path
    is free at once, and the daemon ends with the last of them.

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
        return
    _refuse_if_used(path, pid)
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + END_LIMIT_S
    while mountpoints.mount_at(path) == mount or _runs(pid):
        if time.monotonic() > deadline:
            _refuse_if_used(path, pid)
            raise EnvironmentProblem(f"the mount at {path} has not ended", hint="see its log, or use --lazy")
        time.sleep(CHECK_INTERVAL_S)


def _refuse_if_used(path: Path, daemon: int) -> None:
    from litereplica.fuse import mountpoint as mountpoints

    users = mountpoints.clients(path, besides=daemon)
    if users:
        raise EnvironmentProblem(
            f"{path} is in use by {', '.join(map(str, users))}", hint="end them first, or use --lazy"
        )


def _daemon(path: Path) -> int | None:
    """Pid of the daemon behind a mount, which it tells itself; None when it is gone."""
    from litereplica.fuse import mountpoint as mountpoints
    from litereplica.fuse.nodes import STATUS_NAME

    try:
        return int(json.loads(mountpoints.ask((path / STATUS_NAME).read_bytes))["pid"])
    except TimeoutError:
        raise EnvironmentProblem(f"the daemon behind {path} does not answer", hint="use --lazy") from None
    except OSError as exc:
        if mountpoints.is_dead_error(exc):
            return None
        raise


def _runs(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
