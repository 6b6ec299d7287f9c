"""`litereplica start`: replicate a database again that was stopped."""

from __future__ import annotations

from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.answers import change_state
from litereplica.cli.daemons import socket_option, timeout_option


@click.command()
@click.argument("database", metavar="DB")
@socket_option
@timeout_option
@output.json_option
def command(database: str, socket: Path | None, timeout: float, as_json: bool) -> None:
    """Replicate DB again, which 'litereplica stop' has stopped.

    \b
    Example:
      litereplica start /srv/app.db
    """
    change_state(database, "/start", "running", socket=socket, timeout_s=timeout, as_json=as_json)
