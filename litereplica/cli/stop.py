"""`litereplica stop`: end the replication of one database."""

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
    """End the replication of DB, once everything committed is published. The writer goes on without it.

    'litereplica start' replicates it again, and so does the next start of the writer.

    \b
    Example:
      litereplica stop /srv/app.db
    """
    change_state(database, "/stop", "stopped", socket=socket, timeout_s=timeout, as_json=as_json)
