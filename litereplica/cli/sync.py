"""`litereplica sync`: publish what is committed now."""

from __future__ import annotations

from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.answers import print_answer
from litereplica.cli.daemons import absolute, request, socket_option, timeout_option, writer_of


@click.command()
@click.argument("database", metavar="DB")
@click.option("--wait", is_flag=True, help="Return when everything committed before is in the replica.")
@socket_option
@timeout_option
@output.json_option
def command(database: str, wait: bool, socket: Path | None, timeout: float, as_json: bool) -> None:
    """Make the writer of DB publish at once, without waiting for its sync interval.

    With --wait, `position` is the TXID, in 16 hexadecimal digits, at which everything committed before is in the
    replica: 'litereplica wait' on a mount waits for it. Without it the command only asks, and returns.

    \b
    Example:
      litereplica sync /srv/app.db --wait
      litereplica wait /mnt/live --txid "$(litereplica sync /srv/app.db --wait --json | jq -r .position)"
    """
    path = absolute(database)
    fields = {"path": str(path), **({"wait": True} if wait else {})}
    answer, took_ms = request(writer_of(path, socket), "/sync", fields, timeout_s=timeout)
    shown: dict[str, object] = {"db_path": answer.get("path"), "txid": answer.get("txid")}
    if wait:
        txid = answer.get("replicated_txid")
        shown["replica_txid"] = txid
        shown["position"] = f"{txid:016x}" if isinstance(txid, int) else ""
    print_answer({**shown, "duration_ms": took_ms}, as_json=as_json)
