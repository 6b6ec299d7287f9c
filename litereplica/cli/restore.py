"""`litereplica restore`: a replica's latest state as a database file."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path

import click
import trio

from litereplica.cli import output
from litereplica.cli.params import REPLICA_URL, format_size
from litereplica.format.names import format_txid
from litereplica.ltxstore.restore import RestoreResult, restore
from litereplica.ltxstore.store import open_ltx_store


@click.command()
@click.argument("replica_url", type=REPLICA_URL)
@click.option(
    "-o",
    "--output",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="The database file to write. It appears when it is whole.",
)
@click.option("--force", is_flag=True, help="Replace an existing database and its -wal, -shm and -journal files.")
@output.json_option
def command(replica_url: str, path: Path, force: bool, as_json: bool) -> None:
    """Write a replica's latest state to a database file.

    Every file that is read is checked; a damaged one is avoided where others hold the same transactions.
    With --json, a summary is printed: db_path, txid, page_size, pages, bytes, files, seconds.

    \b
    Example:
      litereplica restore file:///srv/replica -o app.db
      litereplica restore 's3://bucket/app.db?region=eu-west-1' -o app.db --force --json
    """
    start = time.monotonic()
    result = trio.run(_restore, replica_url, path, force)
    seconds = time.monotonic() - start
    if as_json:
        output.print_json(
            {
                "db_path": str(path),
                "txid": format_txid(result.txid),
                "page_size": result.page_size,
                "pages": result.pages,
                "bytes": result.size,
                "files": len(result.files),
                "seconds": round(seconds, 3),
            }
        )
    else:
        files = "1 file" if len(result.files) == 1 else f"{len(result.files)} files"
        made = f"{format_size(result.size)} from {files} in {seconds:.1f} s"
        output.note(f"restored TXID {format_txid(result.txid)} to {path}: {made}")


async def _restore(replica_url: str, path: Path, force: bool) -> RestoreResult:
    """SIGINT and SIGTERM cancel it, so that nothing is left behind."""
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

            async def cancel_on_signal() -> None:
                await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_on_signal)
            store = open_ltx_store(replica_url)
            try:
                result = await restore(store, path, force=force, progress=partial(output.progress, "Restoring"))
            finally:
                await store.aclose()
            nursery.cancel_scope.cancel()
            return result
    raise KeyboardInterrupt
