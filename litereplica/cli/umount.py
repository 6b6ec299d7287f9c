"""`litereplica umount`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import click

from litereplica.errors import EnvironmentProblem, UsageError

ANSWER_LIMIT_S = 5.0
"""How long a daemon may take to say who it is: it answers from memory."""

END_LIMIT_S = 10.0
"""How long a daemon may take to end: it gives itself less than half of that."""

CHECK_INTERVAL_S = 0.02


@click.command("umount", short_help="Unmount a replica and end its daemon.")
@click.argument("mountpoint", type=click.Path(path_type=Path))
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
    if lazy or mountpoints.is_dead(path):
        mountpoints.unmount(path, lazy=True)
        return
    pid = _daemon(path)
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


def _daemon(path: Path) -> int:
    """Pid of the daemon behind a mount, which it tells itself."""
    from litereplica.fuse.nodes import STATUS_NAME

    answer: list[int] = []

    def ask() -> None:
        answer.append(json.loads((path / STATUS_NAME).read_bytes())["pid"])

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_LIMIT_S)
    if not answer:
        raise EnvironmentProblem(f"the daemon behind {path} does not answer", hint="use --lazy")
    return answer[0]


def _runs(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
