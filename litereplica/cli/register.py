"""`litereplica register`: replicate one more database."""

from __future__ import annotations

from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.answers import print_answer
from litereplica.cli.daemons import absolute, only_writer, request, socket_option, timeout_option
from litereplica.cli.params import REPLICA_URL


@click.command()
@click.argument("database", metavar="DB")
@click.option("--replica", "replica_url", type=REPLICA_URL, metavar="REPLICA_URL", required=True, help="Its replica.")
@socket_option
@timeout_option
@output.json_option
def command(database: str, replica_url: str, socket: Path | None, timeout: float, as_json: bool) -> None:
    """Let a running writer replicate DB, too, until that writer ends.

    The configuration file is not changed: name the database there as well if it is to be replicated after the next
    start.

    \b
    Example:
      litereplica register /srv/new.db --replica s3://backups/new.db
    """
    path = absolute(database)
    chosen = only_writer(socket)
    fields = {"path": str(path), "replica_url": replica_url}
    answer, _ = request(chosen, "/register", fields, timeout_s=timeout)
    status = str(answer.get("status"))
    shown = {"status": status if as_json else status.replace("_", " "), "db_path": answer.get("path")}
    print_answer({**shown, "replica": replica_url, "socket": str(chosen)}, as_json=as_json)
