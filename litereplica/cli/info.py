"""`litereplica info`: which daemon answers on a control socket."""

from __future__ import annotations

from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.daemons import Seconds, only_writer, require_daemon, socket_option
from litereplica.cli.list import TIMEOUT_S
from litereplica.control.client import ask
from litereplica.printable import printable
from litereplica.times import format_duration


@click.command()
@socket_option
@click.option(
    "--timeout", type=Seconds(), default=f"{TIMEOUT_S:g}s", show_default=True, help="Time limit of the answer."
)
@output.json_option
def command(socket: Path | None, timeout: float, as_json: bool) -> None:
    """Show version, process, start and number of databases of the running writer, as Litestream does.

    \b
    Example:
      litereplica info
      litereplica info --socket /run/litestream.sock --json
    """
    chosen = only_writer(socket)
    answer = require_daemon(ask(chosen, "GET", "/info", limit_s=timeout), chosen)
    if as_json:
        output.print_json(answer)
        return
    uptime_s = answer.get("uptime_seconds")
    rows = [
        ("PID", answer.get("pid")),
        ("Uptime", format_duration(uptime_s) if isinstance(uptime_s, int) else uptime_s),
        ("Started at", answer.get("started_at")),
        ("Databases", answer.get("database_count")),
    ]
    click.echo(printable(f"litereplica {answer.get('version')}"))
    for name, value in rows:
        click.echo(f"  {f'{name}:':<12}{printable(str(value))}")
