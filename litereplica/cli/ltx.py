"""`litereplica ltx`: list the LTX files of a replica."""

from __future__ import annotations

import click

from litereplica.cli import output
from litereplica.cli.nothing_there import explained
from litereplica.cli.on_store import run_on_store
from litereplica.cli.replica_of import ReplicaOf, replica_argument
from litereplica.errors import NoReplica
from litereplica.format.names import LEVELS, format_txid
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.url import redacted
from litereplica.times import format_time
from litereplica.types import FileInfo

ALL = "all"
COLUMNS = ("level", "min_txid", "max_txid", "size", "created")


@click.command()
@replica_argument
@click.option(
    "--level",
    type=click.Choice([*map(str, LEVELS), ALL]),
    default="0",
    show_default=True,
    help="Compaction level; 9 contains the snapshots.",
)
@output.json_option
def command(replica: ReplicaOf, level: str, as_json: bool) -> None:
    """List the LTX files of a replica.

    Sizes are in bytes. A file of level 0 contains one TXID, as the writer published it; files of higher levels are
    merged from lower levels.

    \b
    Example:
      litereplica ltx file:///srv/replica
      litereplica ltx 's3://bucket/app.db?region=eu-west-1' --level all --json
      litereplica ltx --config /etc/litereplica.yml /srv/app.db
    """

    async def listed(store: LTXStore) -> tuple[list[FileInfo], NoReplica | None]:
        found = await (store.list_levels() if level == ALL else store.list_level(int(level)))
        return found, None if found else await explained(store, NoReplica(f"no LTX files in {where}"))

    where = redacted(replica.url) if level == ALL else f"level {level} of {redacted(replica.url)}"
    files, why = run_on_store(replica, listed)
    if as_json:
        output.print_json([record(info) for info in files])
    else:
        rows = [tuple(record(info).values()) for info in files]
        output.print_table(COLUMNS, rows, right=("level", "size"))
    if why is not None:
        output.note(str(why))


def record(info: FileInfo) -> dict[str, object]:
    """One file as JSON, with the keys that `litereplica ltx --json` and `litestream ltx -json` share."""
    return {
        "level": info.level,
        "min_txid": format_txid(info.min_txid),
        "max_txid": format_txid(info.max_txid),
        "size": info.size,
        "timestamp": format_time(max(info.modified_ms, 0), timespec="seconds"),
    }
