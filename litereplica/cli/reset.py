"""`litereplica reset`: forget the local state of a database."""

from __future__ import annotations

from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.config_file import config_option, no_expand_env_option, read_config
from litereplica.cli.params import DATABASE
from litereplica.errors import UsageError


@click.command()
@click.argument("database", metavar="DB", type=DATABASE)
@click.option("--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
@config_option
@no_expand_env_option
@output.json_option
def command(database: Path, dry_run: bool, config_path: Path | None, no_expand_env: bool, as_json: bool) -> None:
    """Remove what litereplica keeps beside the database DB. The database itself is not changed.

    The next start of its writer compares the database with its replica, page by page, and publishes what differs. Local
    state is never needed for correctness, and damaged state is recovered from without this command. A configuration
    file is only checked. With --json: db_path, removed (the files), dry_run.

    \b
    Example:
      litereplica reset /srv/app.db
      litereplica reset --dry-run /srv/app.db
    """
    from litereplica.writer.database.state_directory import reset

    if config_path is not None:
        read_config(config_path, expand_env=not no_expand_env)
    if not database.is_file():
        raise UsageError(f"there is no database {database}", hint="name an existing database")
    removed = reset(database.resolve(), dry_run=dry_run)
    if as_json:
        output.print_json({"db_path": str(database), "removed": [str(path) for path in removed], "dry_run": dry_run})
        return
    for path in removed:
        click.echo(path)
    what = "would be removed" if dry_run else "removed"
    output.note(f"{what}: {len(removed)} file(s)" if removed else f"{database} has no local state")
