"""`litereplica list`: the databases of running writers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from litereplica.cli import output
from litereplica.cli.daemons import Seconds, require_daemon, running, socket_option
from litereplica.control.client import ask
from litereplica.printable import printable

TIMEOUT_S = 10.0


@click.command("list")
@socket_option
@click.option(
    "--timeout", type=Seconds(), default=f"{TIMEOUT_S:g}s", show_default=True, help="Time limit of an answer."
)
@output.json_option
def command(socket: Path | None, timeout: float, as_json: bool) -> None:
    """List the databases of running writers as Litestream does: path, status, time of the last sync.

    'litereplica status' says more, and includes mounts.

    \b
    Example:
      litereplica list
      litereplica list --json
    """
    if socket is None:
        answers: list[dict[str, Any]] = [daemon.status for daemon in running(target="/list")]
    else:
        answers = [require_daemon(ask(socket, "GET", "/list", limit_s=timeout), socket)]
    databases = [each for answer in answers for each in answer.get("databases") or []]
    if as_json:
        output.print_json({"databases": databases})
        return
    for each in databases:
        last = each.get("last_sync_at") or "never"
        click.echo(printable(f"{each.get('path')} [{each.get('status')}] (last sync: {last})"))
    if not databases:
        output.note("no database is replicated")
