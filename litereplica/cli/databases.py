"""`litereplica databases`: list the databases of a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from litereplica.cli import output
from litereplica.cli.config_file import config_option, no_expand_env_option, read_config
from litereplica.times import format_duration


@click.command()
@config_option
@no_expand_env_option
@output.json_option
def command(config_path: Path | None, no_expand_env: bool, as_json: bool) -> None:
    """Show the databases listed in a configuration file. This also checks the file.

    No store is contacted, and no database is opened. Keys without effect are reported on stderr.
    With --json, a list is printed: path, or dir with pattern, recursive and watch; url, sync_interval_s, lease,
    restore_if_db_not_exists.

    \b
    Example:
      litereplica databases --config /etc/litereplica.yml
      litereplica databases --config litestream.yml --json
    """
    from litereplica.writer.settings import DirectoryTarget

    config = read_config(config_path, expand_env=not no_expand_env)
    records: list[dict[str, Any]] = []
    for database in config.databases:
        target = database.target
        place: dict[str, Any] = {"path": str(target.path)}
        if isinstance(target, DirectoryTarget):
            place = {
                "dir": str(target.path),
                "pattern": target.pattern,
                "recursive": target.recursive,
                "watch": target.watch,
            }
        records.append(
            {
                **place,
                "url": target.url,
                "sync_interval_s": target.settings.sync_interval_s,
                "lease": target.settings.lease.value,
                "restore_if_db_not_exists": database.restore_if_missing,
            }
        )
    for note in config.notes:
        output.note(f"no effect here: {note}")
    for line in config.former:
        output.note(line)
    if config.unset:
        output.note(f"not set: {', '.join(config.unset)}")
    if as_json:
        output.print_json(records)
    else:
        output.print_table(("path", "replica", "sync interval", "lease"), [_row(record) for record in records])


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    path = record["path"] if "path" in record else f"{record['dir']}/{'**/' * record['recursive']}{record['pattern']}"
    return path, record["url"], format_duration(record["sync_interval_s"]), record["lease"]
