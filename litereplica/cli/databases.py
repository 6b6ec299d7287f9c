"""`litereplica databases`: list the databases of a configuration file, or the replicas below a URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from litereplica.cli import output
from litereplica.cli.config_file import config_option, no_expand_env_option, read_config
from litereplica.cli.replica_of import ReplicaOf, find_replica
from litereplica.times import format_duration

if TYPE_CHECKING:
    from litereplica.ltxstore.store import LTXStore


@click.command()
@click.argument("url", metavar="[REPLICA_URL]", required=False)
@config_option
@no_expand_env_option
@output.json_option
def command(url: str | None, config_path: Path | None, no_expand_env: bool, as_json: bool) -> None:
    """Show the databases listed in a configuration file, or those that have replicas below REPLICA_URL.

    This also checks the file; keys without effect are reported on stderr. No store is contacted, and no database is
    opened. With --json, a list is printed: path, or dir with pattern, recursive and watch; replica (the kind of store),
    url, sync_interval_ms, lease, restore_if_db_not_exists.

    With a URL, everything below it is listed, which takes a request for each thousand objects. Backups by Litestream
    0.3 are listed too. With --json: prefix, url.

    \b
    Example:
      litereplica databases --config /etc/litereplica.yml
      litereplica databases --config litestream.yml --json
      litereplica databases s3://backups
    """
    if url is not None:
        _show_below(find_replica(url, config_path, expand_env=not no_expand_env), as_json=as_json)
        return
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
                "replica": target.url.partition("://")[0],
                "url": target.url,
                "sync_interval_ms": round(target.settings.sync_interval_s * 1000),
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


def _show_below(replica: ReplicaOf, *, as_json: bool) -> None:
    from litereplica.cli.on_store import run_on_store
    from litereplica.storage.url import parse_url, redacted

    async def listed(store: LTXStore) -> list[str]:
        return await store.list_replicas()

    root = parse_url(replica.url)
    records = [{"prefix": prefix, "url": str(root.below(prefix))} for prefix in run_on_store(replica, listed)]
    if as_json:
        output.print_json(records)
    elif records:
        output.print_table(
            ("database", "url"), [(root.below(each["prefix"]).basename, each["url"]) for each in records]
        )
    else:
        output.note(f"no replica below {redacted(replica.url)}")


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    path = record["path"] if "path" in record else f"{record['dir']}/{'**/' * record['recursive']}{record['pattern']}"
    return path, record["url"], format_duration(record["sync_interval_ms"] / 1000), record["lease"]
