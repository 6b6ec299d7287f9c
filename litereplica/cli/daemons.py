"""What commands that talk to running daemons share: finding the daemon of a database, asking it, and their options.

Imports nothing heavier than the client of the control sockets.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from litereplica.cli import output
from litereplica.cli.params import parse_duration_s
from litereplica.control.client import TIMEOUT_S, Daemon, ask, ask_all
from litereplica.errors import EnvironmentProblem, UsageError
from litereplica.times import with_unit

GRACE_S = 5.0
"""How much longer than the daemon's own time limit a command waits for its answer."""
WRITER = "writer"
MOUNT = "mount"


class Seconds(click.ParamType[float]):
    """A time limit: a number of seconds, as Litestream's commands have it, or a duration such as 1m30s."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration_s(with_unit(str(value)))
        except UsageError as exc:
            self.fail(str(exc), param, ctx)


socket_option = click.option(
    "--socket",
    metavar="FILE",
    type=Path,
    help="The control socket of the daemon.  [default: that of the running daemon]",
)
timeout_option = click.option(
    "--timeout",
    type=Seconds(),
    default=f"{TIMEOUT_S:g}s",
    show_default=True,
    help="Time limit, in seconds or such as 1m30s.",
)


def absolute(database: str) -> Path:
    """The path of a database as the writer has it; `sqlite://` may be in front, as in Litestream."""
    return Path(os.path.abspath(database.removeprefix("sqlite://")))  # noqa: PTH100 - links stay


def running(*, target: str) -> Iterator[Daemon]:
    """Yield every daemon that this user may ask, with its answer to GET `target`; others are named on stderr."""
    return ask_all(os.environ, target=target, warn=output.note)


def writer_of(path: Path, socket: Path | None) -> Path:
    """The socket of the writer of a database: `socket`, if that is given. Raises `EnvironmentProblem`."""
    if socket is not None:
        return socket
    for daemon in running(target=f"/status?path={quote(str(path))}"):
        if daemon.status.get("kind") == WRITER and daemon.status.get("databases"):
            return daemon.socket
    from litereplica.fuse import mountpoint as mountpoints

    mount = mountpoints.mount_holding(path)
    is_replica = mount is not None and mount.type == mountpoints.FILE_SYSTEM_TYPE
    hint = (
        "name the database that is its primary"
        if is_replica
        else f"start one: litereplica replicate {path} REPLICA_URL"
    )
    raise EnvironmentProblem(f"no running writer has the database {path}", hint=hint)


def only_writer(socket: Path | None) -> Path:
    """The socket of the only running writer, or `socket`, if that is given. Raises `EnvironmentProblem`."""
    if socket is not None:
        return socket
    found = [daemon.socket for daemon in running(target="/status") if daemon.status.get("kind") == WRITER]
    if not found:
        raise EnvironmentProblem("no writer is running", hint="start one with 'litereplica replicate'")
    if len(found) > 1:
        raise EnvironmentProblem(
            f"{len(found)} writers are running: {', '.join(map(str, found))}", hint="choose one with --socket"
        )
    return found[0]


def request(socket: Path, target: str, fields: Mapping[str, object], *, timeout_s: float) -> tuple[dict[str, Any], int]:
    """Send a POST request; return the answer and the milliseconds that it took.

    Raises `ControlError`, and `EnvironmentProblem` if there is no daemon or no answer.
    """
    began = time.monotonic()
    limit = int(timeout_s) if timeout_s.is_integer() else timeout_s  # Litestream takes integers only
    answer = ask(socket, "POST", target, {**fields, "timeout": limit}, limit_s=timeout_s + GRACE_S)
    return require_daemon(answer, socket), round((time.monotonic() - began) * 1000)


def require_daemon(answer: dict[str, Any] | None, socket: Path) -> dict[str, Any]:
    """The answer of a daemon. Raises `EnvironmentProblem` if there was none."""
    if answer is None:
        raise EnvironmentProblem(f"no daemon listens on {socket}", hint="start it, or name another with --socket")
    return answer
