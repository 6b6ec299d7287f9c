"""`litereplica mount`."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from litereplica.cli.params import DURATION, REPLICA_URL, SIZE

if TYPE_CHECKING:
    from litereplica.replica.database import Replica

ROOT_CACHE = Path("/var/cache/litereplica")
LOG_NAME = "mount.log"


@click.command("mount", short_help="Mount a replica as a live, read-only SQLite file.")
@click.argument("replica_url", type=REPLICA_URL)
@click.argument("mountpoint", type=Path)  # click.Path would ask the file system, and so a daemon that may hang
@click.option("--name", help="Name of the database file.  [default: the URL's last component]")
@click.option(
    "--poll-interval", type=DURATION, default="1s", show_default=True, help="How often to look for new transactions."
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Where pages are kept.  [default: ~/.cache/litereplica; for root {ROOT_CACHE}]",
)
@click.option("--cache-size", type=SIZE, default="1GiB", show_default=True, help="Disk space for pages.")
@click.option(
    "--hydrate/--no-hydrate",
    default=True,
    show_default=True,
    help="Fetch the whole database in the background, if --cache-size holds it.",
)
@click.option("--hydrate-rate", type=SIZE, help="Bytes per second that this may take.  [default: no limit]")
@click.option(
    "--max-staleness", type=DURATION, help="Fail reads when there has been no news for so long.  [default: never]"
)
@click.option("--allow-other", is_flag=True, help="Let other users read the database.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground, and log to stderr.")
@click.option(
    "--log-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Where to log.  [default: {LOG_NAME} in the replica's directory below --cache-dir]",
)
def command(
    replica_url: str,
    mountpoint: Path,
    name: str | None,
    poll_interval: float,
    cache_dir: Path | None,
    cache_size: int,
    hydrate: bool,
    hydrate_rate: int | None,
    max_staleness: float | None,
    allow_other: bool,
    foreground: bool,
    log_file: Path | None,
) -> None:
    """Mount the replica at REPLICA_URL below the empty directory MOUNTPOINT.

    The database appears there as one file that follows the primary. Any SQLite client can query it; nobody can
    change it. The command returns when the database can be queried, and the mount goes on in the background until
    'litereplica umount'. What a killed mount left at MOUNTPOINT is taken away first.

    \b
    Example:
      litereplica mount s3://backups/app.db /mnt/live
      sqlite3 /mnt/live/app.db 'SELECT count(*) FROM orders'
    """
    gc.disable()  # what starting allocates stays: looking through it for garbage takes a tenth of the time
    import trio

    from litereplica.cli.background import Ready, run_in_background
    from litereplica.cli.logging_setup import configure_logging
    from litereplica.errors import UsageError
    from litereplica.fuse import mountpoint as mountpoints
    from litereplica.fuse.mount import MountOptions, serve
    from litereplica.fuse.nodes import check_database_name
    from litereplica.replica.allocator import tune_allocator
    from litereplica.storage.url import basename

    path = mountpoints.absolute(mountpoint)
    cache = _replica_cache(cache_dir, replica_url)
    options = MountOptions(
        url=replica_url,
        path=path,
        name=check_database_name(name if name is not None else basename(replica_url)),
        poll_interval_s=poll_interval,
        allow_other=allow_other,
        hydrate=hydrate,
        hydrate_rate=hydrate_rate,
        max_staleness_s=max_staleness,
    )
    if max_staleness is not None and max_staleness <= poll_interval:
        raise UsageError(
            "--max-staleness is not longer than --poll-interval", hint="give it several times that, such as 30s"
        )
    mountpoints.prepare(path)
    configure_logging(log_file.absolute() if log_file else None if foreground else cache / LOG_NAME)

    def work(ready: Ready) -> None:
        def started() -> None:
            gc.freeze()
            gc.enable()
            ready()

        tune_allocator()
        trio.run(serve, options, _opened(replica_url, cache, cache_size), started)

    if foreground:
        work(lambda: None)
        return
    run_in_background(work)
    click.echo(str(path / options.name))


@asynccontextmanager
async def _opened(url: str, cache_dir: Path, cache_size: int) -> AsyncIterator[Replica]:
    from litereplica.ltxstore.store import open_ltx_store
    from litereplica.replica.database import open_replica

    store = open_ltx_store(url)
    try:
        async with open_replica(store, cache_dir=cache_dir, cache_size=cache_size) as replica:
            yield replica
    finally:
        await store.aclose()


def _replica_cache(root: Path | None, url: str) -> Path:
    """The directory of one replica below the cache's root; made here, private to the user."""
    from litereplica.errors import EnvironmentProblem

    if root is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = ROOT_CACHE if os.geteuid() == 0 else Path(home) / "litereplica"
    directory = root.absolute() / hashlib.sha256(url.encode()).hexdigest()[:16]
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot make the cache directory {directory}: {exc.strerror}", hint="choose another with --cache-dir"
        ) from exc
    return directory
