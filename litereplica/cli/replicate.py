"""`litereplica replicate`: publish a database's transactions to a replica."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import click
import trio

from litereplica.cli import output
from litereplica.cli.logging_setup import configure_logging
from litereplica.cli.params import DURATION, REPLICA_URL
from litereplica.errors import UsageError
from litereplica.format.names import format_txid
from litereplica.ltxstore.store import open_ltx_store
from litereplica.writer.service import Replicator, Statistics, open_replicator
from litereplica.writer.tenure import LeaseMode


@dataclass(frozen=True, slots=True)
class Arguments:
    """What to replicate, to where, and how."""

    database: Path
    url: str
    sync_interval_s: float
    once: bool
    lease: LeaseMode


@click.command()
@click.argument("database", metavar="DB", type=click.Path(path_type=Path))
@click.argument("replica_url", type=REPLICA_URL)
@click.option(
    "--sync-interval",
    type=DURATION,
    default="1s",
    show_default=True,
    help="Publish at most so often. A change after a quiet period is published at once.",
)
@click.option(
    "--no-lease",
    is_flag=True,
    help="Do without the lease that keeps a second writer away: for a store without conditional requests.",
)
@click.option(
    "--wait-lease",
    is_flag=True,
    help="While another writer holds the lease, stand by; then publish what DB holds.",
)
@click.option("--once", is_flag=True, help="Publish what there is, then exit.")
@click.option("--log-file", type=click.Path(path_type=Path, dir_okay=False), help="Log to this file, not to stderr.")
@output.json_option
def command(
    database: Path,
    replica_url: str,
    sync_interval: float,
    no_lease: bool,
    wait_lease: bool,
    once: bool,
    log_file: Path | None,
    as_json: bool,
) -> None:
    """Publish the transactions of the SQLite database DB to REPLICA_URL as they are committed.

    Runs until it gets SIGTERM or SIGINT; then it publishes what is left and exits. Started again, it goes on where it
    stopped. A database in a rollback journal mode is switched to WAL; otherwise nothing in it is changed.
    One writer at a time publishes to a replica. It holds a lease, the object lock.json there, which expires half a
    minute after the writer is gone; started again, it need not wait for that.
    With --once --json, a summary is printed: db_path, url, txid, files, pages, bytes.

    \b
    Example:
      litereplica replicate app.db file:///srv/replica
      litereplica replicate app.db 's3://bucket/app.db?region=eu-west-1' --sync-interval 200ms
      litereplica replicate app.db file:///srv/replica --once
      litereplica replicate app.db file:///srv/replica --wait-lease
    """
    if as_json and not once:
        raise UsageError("--json prints the outcome of --once", hint="add --once, or remove --json")
    if sync_interval <= 0:
        raise UsageError("--sync-interval must be more than 0", hint="write for instance --sync-interval 100ms")
    if no_lease and wait_lease:
        raise UsageError("--no-lease and --wait-lease exclude each other", hint="choose one of them")
    configure_logging(log_file)
    lease = LeaseMode.OFF if no_lease else LeaseMode.WAIT if wait_lease else LeaseMode.HOLD
    arguments = Arguments(database, replica_url, sync_interval, once, lease)
    done = trio.run(_replicate, arguments)
    if as_json:
        output.print_json(
            {
                "db_path": str(database),
                "url": replica_url,
                "txid": format_txid(done.txid),
                "files": done.files,
                "pages": done.pages,
                "bytes": done.bytes,
            }
        )
    elif once:
        what = "nothing new" if done.files == 0 else f"{done.pages} pages in {done.files} file(s)"
        click.echo(f"{database} is published at TXID {format_txid(done.txid)}: {what}")


async def _replicate(arguments: Arguments) -> Statistics:
    store = open_ltx_store(arguments.url)
    try:
        async with open_replicator(
            arguments.database, store, lease=arguments.lease, sync_interval_s=arguments.sync_interval_s
        ) as replicator:
            if arguments.once:
                await replicator.publish_once()
            else:
                await _run_until_signalled(replicator)
            return replicator.statistics()
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()


async def _run_until_signalled(replicator: Replicator) -> None:
    stop = trio.Event()

    async def wait_for_signal() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                stop.set()
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_signal)
        await replicator.run(stop)
        nursery.cancel_scope.cancel()
