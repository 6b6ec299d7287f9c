"""`litereplica mount`: open a replica and serve it as a FUSE file system, by default in the background.

options      checked before anything is opened
_opened      the store, the point to mount, and the replica, with retries for `--wait`
fuse         `serve` (live) or `serve_static` (a past state) runs until the mount ends
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from litereplica.cli.params import DURATION, SIZE, log_level_option
from litereplica.cli.point import TIMESTAMP, TXID, Point
from litereplica.cli.replica_of import ReplicaOf, replica_argument

if TYPE_CHECKING:
    from litereplica.fuse.state import MountOptions
    from litereplica.replica.database import Replica

log = logging.getLogger(__name__)

ROOT_CACHE = Path("/var/cache/litereplica")
LOG_NAME = "mount.log"
QUEUED_READS_S = 3.0
"""Time within the read timeout for reads that the kernel sends later, or once more: they fail early, but in turns."""
WAIT_INTERVAL_S = 1.0
"""Between attempts to open the replica with `--wait`."""


@click.command("mount", short_help="Mount a replica as a live, read-only SQLite file.")
@replica_argument
@click.argument("mountpoint", type=Path)  # click.Path would stat() it, and a dead daemon there may hang
@click.option("--name", help="Name of the database file.  [default: that of DB, or the URL's last component]")
@click.option(
    "--poll-interval",
    type=DURATION,
    default="1s",
    show_default=True,
    help="How often to check for new transactions; of a local directory the kernel tells, too.",
)
@click.option(
    "--poll-interval-max",
    type=DURATION,
    default="30s",
    show_default=True,
    help="The longest interval while no file is open. After 10 minutes without an open file polling stops until one is"
    " opened. If not longer than --poll-interval, polling never slows down.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Directory for cached pages.  [default: ~/.cache/litereplica; for root {ROOT_CACHE}]",
)
@click.option("--cache-size", type=SIZE, default="1GiB", show_default=True, help="Disk space for cached pages.")
@click.option(
    "--hydrate/--no-hydrate",
    default=True,
    show_default=True,
    help="Download the whole database in the background, if it fits into --cache-size.",
)
@click.option("--hydrate-rate", type=SIZE, help="Limit of this download, in bytes per second.  [default: no limit]")
@click.option(
    "--read-timeout",
    type=DURATION,
    default="30s",
    show_default=True,
    help="Fail a read if the store does not answer within this time.",
)
@click.option(
    "--max-staleness", type=DURATION, help="Fail reads if the store has not answered for this long.  [default: never]"
)
@click.option(
    "--wait",
    type=DURATION,
    help="Keep trying for this long while the store fails or there is no replica yet.  [default: fail at once]",
)
@click.option("--timestamp", type=TIMESTAMP, help="Mount the database as it was before this time; it does not change.")
@click.option("--txid", type=TXID, help="Mount the database as it was at this TXID.")
@click.option("--allow-other", is_flag=True, help="Let other users read the database.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground, and log to stderr.")
@log_level_option
@click.option(
    "--log-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Log to this file.  [default: {LOG_NAME} in the replica's directory below --cache-dir]",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Whether each line of the log is text or a JSON object.",
)
def command(
    replica: ReplicaOf,
    mountpoint: Path,
    name: str | None,
    poll_interval: float,
    poll_interval_max: float,
    cache_dir: Path | None,
    cache_size: int,
    hydrate: bool,
    hydrate_rate: int | None,
    read_timeout: float,
    max_staleness: float | None,
    wait: float | None,
    timestamp: int | None,
    txid: int | None,
    allow_other: bool,
    foreground: bool,
    log_file: Path | None,
    log_format: str,
) -> None:
    """Mount the replica at REPLICA_URL, or that of the database DB, below the empty directory MOUNTPOINT.

    The database appears there as one read-only file that follows the primary, and any SQLite client can query it. The
    command returns when the database can be queried; the mount continues in the background until 'litereplica umount'.
    A dead mount at MOUNTPOINT, left by a killed daemon, is removed first. The directory MOUNTPOINT loses its write
    permission, so that no client creates an empty database in it while nothing is mounted.

    Past states are in the hidden directory .at of the mount, by time and by TXID, each as a file of its own: 'ls -l' of
    that directory shows the newest. With --timestamp or --txid only that state is mounted, and it does not change.

    \b
    Example:
      litereplica mount s3://backups/app.db /mnt/live
      sqlite3 /mnt/live/app.db 'SELECT count(*) FROM orders'
      sqlite3 /mnt/live/.at/2026-03-01T09:30:00Z/app.db 'SELECT count(*) FROM orders'
      litereplica mount s3://backups/app.db /mnt/then --timestamp '2 hours ago'
      litereplica mount --config /etc/litereplica.yml /srv/app.db /mnt/live
    """
    gc.disable()  # start-up creates no garbage worth collecting: the collector would take a tenth of the time
    import trio

    from litereplica.cli.background import Ready, run_in_background
    from litereplica.cli.hangup import read_anew_on_hangup
    from litereplica.cli.logging_setup import configure_logging
    from litereplica.foreign_directory import open_own_directory
    from litereplica.fuse import mountpoint as mountpoints
    from litereplica.fuse.mount import serve
    from litereplica.fuse.nodes import check_database_name
    from litereplica.fuse.state import MountOptions
    from litereplica.fuse.static_mount import serve_static
    from litereplica.replica.malloc_tuning import tune_allocator

    path, point = mountpoints.absolute(mountpoint), Point(txid=txid, before_ms=timestamp)
    cache = _replica_cache(cache_dir, replica.url, live=point.is_latest)
    options = MountOptions(
        url=replica.url,
        path=path,
        name=check_database_name(name if name is not None else replica.name),
        poll_interval_s=poll_interval,
        poll_interval_max_s=poll_interval_max,
        allow_other=allow_other,
        hydrate=hydrate,
        hydrate_rate=hydrate_rate,
        max_staleness_s=max_staleness,
        read_timeout_s=read_timeout - min(QUEUED_READS_S, read_timeout / 2),
        cache_dir=cache,
        log_file=_log_file(log_file, cache, foreground=foreground),
    )
    _check_staleness(max_staleness, poll_interval)
    mountpoints.prepare(path)
    if log_file is None and not foreground:
        os.close(open_own_directory(cache, owner=os.geteuid()))
    configure_logging(options.log_file, as_json=log_format == "json")

    def work(ready: Ready) -> None:
        def started() -> None:
            gc.freeze()
            gc.enable()
            ready()

        tune_allocator()
        run = serve if point.is_latest else serve_static
        opening = partial(_opened, options, replica, cache, cache_size, point, log.warning if foreground else _warn)
        trio.run(read_anew_on_hangup, lambda: run(options, _opened_within(wait or 0.0, opening), started))

    if foreground:
        work(lambda: None)
        return
    try:
        run_in_background(work)
    except KeyboardInterrupt:
        mountpoints.take_away_dead(path)
        raise
    click.echo(str(path / options.name))


@asynccontextmanager
async def _opened_within(
    limit_s: float, opening: Callable[[], AbstractAsyncContextManager[Replica]]
) -> AsyncIterator[Replica]:
    """Enter the context of `opening()`, retried for `limit_s` while the store fails or has no replica."""
    import trio

    from litereplica.errors import NoReplica, StorageError

    deadline = trio.current_time() + limit_s
    logged = ""
    async with AsyncExitStack() as stack:
        while True:
            try:
                replica = await stack.enter_async_context(opening())
                break
            except (StorageError, NoReplica) as exc:
                if trio.current_time() >= deadline:
                    raise
                if str(exc) != logged:
                    logged = str(exc)
                    log.warning("retrying: %s", logged)
                await trio.sleep(WAIT_INTERVAL_S)
        yield replica


@asynccontextmanager
async def _opened(
    options: MountOptions,
    of: ReplicaOf,
    cache_dir: Path,
    cache_size: int,
    point: Point,
    warn: Callable[[str], None],
) -> AsyncIterator[Replica]:
    from litereplica.cli.nothing_there import explained
    from litereplica.cli.point import resolve
    from litereplica.errors import NoReplica
    from litereplica.ltxstore.store import open_ltx_store
    from litereplica.replica.database import open_replica

    store = open_ltx_store(of.url, credentials=of.credentials)
    try:
        at = await resolve(store, point, warn=warn)
        async with open_replica(
            store,
            cache_dir=cache_dir,
            cache_size=cache_size,
            read_timeout_s=options.read_timeout_s,
            at=at,
        ) as replica:
            yield replica
    except NoReplica as exc:
        raise await explained(store, exc) from exc
    finally:
        await store.aclose()


def _check_staleness(max_staleness_s: float | None, poll_interval_s: float) -> None:
    from litereplica.errors import UsageError

    if max_staleness_s is not None and max_staleness_s <= poll_interval_s:
        raise UsageError(
            "--max-staleness is not longer than --poll-interval", hint="give it several times that, such as 30s"
        )


def _log_file(given: Path | None, cache: Path, *, foreground: bool) -> Path | None:
    """The file to log to; None for stderr."""
    if given is not None:
        return given.absolute()
    return None if foreground else cache / LOG_NAME


def _warn(text: str) -> None:
    """Warn in the log, and on stderr, which is the terminal until the mount can be queried."""
    log.warning("%s", text)
    click.echo(text, err=True)


def _replica_cache(root: Path | None, url: str, *, live: bool) -> Path:
    """Create and return the cache directory of one replica, private to the user.

    Only one process can use it, so mounts of past states use another directory than the live mount.
    """
    from litereplica.errors import EnvironmentProblem
    from litereplica.file_access import make_directories

    if root is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = ROOT_CACHE if os.geteuid() == 0 else Path(home) / "litereplica"
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    directory = root.absolute() / (name if live else f"{name}-past")
    try:
        make_directories(directory)
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot create the cache directory {directory}: {exc.strerror}", hint="choose another with --cache-dir"
        ) from exc
    return directory
