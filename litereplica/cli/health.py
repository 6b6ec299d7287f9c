"""`litereplica health`: succeed if every database is replicated, or followed, and not too far behind."""

from __future__ import annotations

import click

from litereplica.cli import output
from litereplica.cli.daemon_status import Subject, find_records, require_healthy
from litereplica.cli.status import max_lag_option


@click.command()
@click.argument("subject", metavar="[DB|DIR|MOUNTPOINT]", required=False)
@max_lag_option
@output.json_option
def command(subject: str | None, max_lag: float, as_json: bool) -> None:
    """Fail, with exit code 10, if a database is failed, stopped, not running or further behind than --max-lag.

    Without an argument all daemons of this user are asked, for root those of all users. A probe costs a few hundredths
    of a second, and no request to the store.

    \b
    Example:
      litereplica health --max-lag 1m
      litereplica health /mnt/live
    """
    records = find_records(Subject.of(subject, None))
    require_healthy(records, max_lag_s=max_lag)
    if as_json:
        output.print_json({"status": "healthy", "databases": len(records)})
    else:
        click.echo("1 database is healthy" if len(records) == 1 else f"{len(records)} databases are healthy")
