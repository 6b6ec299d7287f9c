"""`litereplica unregister`: replicate a database no longer."""

from __future__ import annotations

from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.answers import print_answer
from litereplica.cli.daemons import absolute, only_writer, request, socket_option, timeout_option, writer_of
from litereplica.errors import EnvironmentProblem


@click.command()
@click.argument("database", metavar="DB")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@socket_option
@timeout_option
@output.json_option
def command(database: str, dry_run: bool, socket: Path | None, timeout: float, as_json: bool) -> None:
    """Let the writer of DB publish what is left, and forget DB until it reads its configuration again.

    \b
    Example:
      litereplica unregister /srv/old.db
    """
    path = absolute(database)
    try:
        chosen = writer_of(path, socket)
    except EnvironmentProblem:
        chosen = only_writer(None)  # which then says that it has no such database
    if dry_run:
        shown: dict[str, object] = {"status": "dry_run", "db_path": str(path), "timeout_ms": round(timeout * 1000)}
        print_answer({**shown, "socket": str(chosen)}, as_json=as_json)
        return
    answer, _ = request(chosen, "/unregister", {"path": str(path)}, timeout_s=timeout)
    shown = {"status": answer.get("status"), "db_path": answer.get("path"), "final_txid": answer.get("txid")}
    print_answer({**shown, "socket": str(chosen)}, as_json=as_json)
