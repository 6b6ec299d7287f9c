"""`litereplica status`: show the state of writers, of mounts or of a replica.

Daemons are asked on their control sockets (`daemon_status.py`), a replica in its store (`replica_status.py`). Only what
a socket and a table need is imported here: a probe that runs every few seconds must be cheap.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.config_file import config_for, config_to_check_option, is_config_given, no_expand_env_option
from litereplica.cli.daemon_status import Subject, find_records, require_healthy, show_records
from litereplica.cli.daemons import Seconds
from litereplica.control.health import MAX_LAG_S
from litereplica.errors import UsageError

WATCH_INTERVAL_S = 2.0
CLEAR = "\x1b[H\x1b[2J"

max_lag_option = click.option(
    "--max-lag",
    type=Seconds(),
    default=f"{MAX_LAG_S:g}s",
    show_default=True,
    help="With a check: how far behind is too far.",
)


@click.command()
@click.argument("subject", metavar="[DB|DIR|MOUNTPOINT|REPLICA_URL]", required=False)
@config_to_check_option
@no_expand_env_option
@click.option("--all", "is_all", is_flag=True, help="All daemons that you may ask, whatever a configuration names.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds.")
@click.option(
    "--check", is_flag=True, help="Fail, with exit code 10, if a database is failed, stopped, not running or behind."
)
@max_lag_option
@output.json_option
def command(
    subject: str | None,
    config_path: Path | None,
    no_expand_env: bool,
    is_all: bool,
    watch: bool,
    check: bool,
    max_lag: float,
    as_json: bool,
) -> None:
    """Show the state of the writers and mounts of this machine, or of a replica.

    Without an argument: all databases that this user's writers replicate, and all mounts; for root those of all
    users. For a database or a directory: its writer. For a mount point: its position, how far it is behind, who
    reads, and its requests to the store. With --config, or without an argument one of its variables: the databases
    listed in the file, whether they are replicated now or not. For a replica URL: its newest TXID, its lease and
    its files. This costs one listing of each level and one small read.

    With --check, 'litereplica health' does the same and prints less.

    \b
    Example:
      litereplica status
      litereplica status /srv/app.db --json
      litereplica status --config /etc/litereplica.yml --check --max-lag 1m
      litereplica status /mnt/live
      litereplica status 's3://bucket/app.db?region=eu-west-1'
    """
    given = is_config_given()
    if watch and check:
        raise UsageError("--watch never ends, so it cannot --check", hint="remove one of them")
    if subject is not None and "://" in subject and not subject.startswith("sqlite://"):
        if given or is_all or watch or check:
            raise UsageError(
                "--config, --all, --watch and --check cannot be combined with a replica URL", hint="remove them"
            )
        from litereplica.cli.replica_status import show_replica

        show_replica(subject, as_json=as_json)
        return
    if is_all and (subject is not None or given):
        raise UsageError("--all names every daemon", hint="remove --all, or the other argument")
    config = None if is_all else config_for(subject, config_path, expand_env=not no_expand_env)
    wanted = Subject.of(subject, config)
    while True:
        records = find_records(wanted)
        if watch and sys.stdout.isatty():
            click.echo(CLEAR, nl=False)
        show_records(records, wanted, as_json=as_json)
        if not watch:
            break
        time.sleep(WATCH_INTERVAL_S)
    if check:
        require_healthy(records, max_lag_s=max_lag)
