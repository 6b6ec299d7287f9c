"""`litereplica health`: succeed if every database is replicated, or followed, and not too far behind."""

from __future__ import annotations

from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.config_file import config_for, config_to_check_option, no_expand_env_option
from litereplica.cli.daemon_status import Subject, find_records, require_healthy
from litereplica.cli.status import max_lag_option


@click.command()
@click.argument("subject", metavar="[DB|DIR|MOUNTPOINT]", required=False)
@config_to_check_option
@no_expand_env_option
@max_lag_option
@output.json_option
def command(subject: str | None, config_path: Path | None, no_expand_env: bool, max_lag: float, as_json: bool) -> None:
    """Fail, with exit code 10, if a database is failed, stopped, not running or further behind than --max-lag.

    Without an argument all daemons of this user are asked, for root those of all users. That one is missing is seen
    only where it is named: with --config, or without an argument one of its variables, each database listed in the
    file must be replicated now; a mount is named by its mount point. A probe costs a few hundredths of a second, and
    no request to the store.

    \b
    Example:
      litereplica health --config /etc/litereplica.yml --max-lag 1m
      litereplica health /mnt/live
    """
    records = find_records(Subject.of(subject, config_for(subject, config_path, expand_env=not no_expand_env)))
    require_healthy(records, max_lag_s=max_lag)
    if as_json:
        output.print_json({"status": "healthy", "databases": len(records)})
    else:
        click.echo("1 database is healthy" if len(records) == 1 else f"{len(records)} databases are healthy")
