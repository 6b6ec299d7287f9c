"""`litereplica wait`: return when a mount shows, or a replica has, a TXID, a time, or everything."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click

from litereplica.cli import output
from litereplica.cli.daemon_status import Subject
from litereplica.cli.daemons import MOUNT, absolute, request, running, socket_option, timeout_option, writer_of
from litereplica.cli.point import TIMESTAMP, TXID
from litereplica.errors import EnvironmentProblem, UsageError
from litereplica.times import format_time


@click.command()
@click.argument("subject", metavar="MOUNTPOINT|FILE|DB")
@click.option("--txid", type=TXID, help="Wait for this TXID, which 'litereplica sync --wait' prints as its position.")
@click.option("--timestamp", type=TIMESTAMP, help="Wait until what is shown is of this time, or later.")
@click.option("--caught-up", is_flag=True, help="Wait for everything that is published, or committed, at this moment.")
@timeout_option
@socket_option
@output.json_option
def command(
    subject: str,
    txid: int | None,
    timestamp: int | None,
    caught_up: bool,
    timeout: float,
    socket: Path | None,
    as_json: bool,
) -> None:
    """Wait until a transaction that begins at MOUNTPOINT sees a position, or until the writer of DB has published it.

    Print the TXID that is reached. A mount asks its store at once for the file that follows, and then as often as it
    polls. FILE is a database in a mount of many; it is opened for that, if nobody has it open. For a writer's database,
    --timestamp and --caught-up mean that everything committed before is in the replica. If the time limit passes first,
    the exit code is 10.

    \b
    Example:
      litereplica wait /mnt/live --txid 000000000000002a
      litereplica wait /mnt/live --caught-up --timeout 2m
      litereplica wait /mnt/all/tenant.db --txid 000000000000002a
    """
    if (txid is not None) + (timestamp is not None) + caught_up != 1:
        raise UsageError("what to wait for must be named", hint="give one of --txid, --timestamp and --caught-up")
    found = Subject.of(subject, None)
    path = found.path if found.mount is not None and found.path is not None else absolute(subject)
    chosen = socket or (writer_of(path, None) if found.mount is None else _socket_of_mount(Path(found.mount.path)))
    fields: dict[str, object] = {"path": str(path)}
    if txid is not None:
        fields["txid"] = f"{txid:016x}"
    if timestamp is not None:
        fields["timestamp"] = format_time(timestamp)
    answer, took_ms = request(chosen, "/wait", fields, timeout_s=timeout)
    if as_json:
        output.print_json({**answer, "duration_ms": took_ms})
    else:
        click.echo(answer.get("txid"))


def _socket_of_mount(path: Path) -> Path:
    for daemon in running(target=f"/status?path={quote(str(path))}"):
        if daemon.status.get("kind") == MOUNT and daemon.status.get("databases"):
            return daemon.socket
    raise EnvironmentProblem(f"the daemon of the mount at {path} does not answer", hint="see its log")
