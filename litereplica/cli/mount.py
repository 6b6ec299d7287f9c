"""`litereplica mount`: open a replica, or many, and serve them as a FUSE file system, by default in the background.

mount_plan     the options, checked before anything is opened
mount_run      opens and serves the mount, in the process that becomes the daemon
mount_prefix   what a mount of every database below a prefix needs

This process only reads options, starts the daemon and waits for it. The modules that take time to import, `mount_run`
with the event loop, FUSE and arrays, are imported by the daemon: a process is forked and ends faster without them.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import click

from litereplica.cli.background import Ready, run_in_background
from litereplica.cli.fast_imports import fast_imports
from litereplica.cli.logging_setup import configure_logging
from litereplica.cli.metrics_options import listening_at, metrics_options
from litereplica.cli.mount_plan import MountPlan
from litereplica.cli.mount_prefix import HYDRATE, MountCommand, Selection
from litereplica.cli.params import DURATION, SIZE, log_level_option
from litereplica.cli.point import TIMESTAMP, TXID, Point
from litereplica.cli.replica_of import ReplicaOf, replica_argument
from litereplica.control.address import Address
from litereplica.errors import EnvironmentProblem, UsageError
from litereplica.file_access import make_directories
from litereplica.foreign_directory import open_own_directory
from litereplica.fuse import mountpoint as mountpoints
from litereplica.fuse.names import check_database_name
from litereplica.fuse.options import MountOptions

log = logging.getLogger(__name__)

ROOT_CACHE = Path("/var/cache/litereplica")
LOG_NAME = "mount.log"
QUEUED_READS_S = 3.0
"""Time within the read timeout for reads that the kernel sends later, or once more: they fail early, but in turns."""


@click.command("mount", cls=MountCommand, short_help="Mount a replica as a live, read-only SQLite file.")
@replica_argument
@click.argument("mountpoint", type=Path)  # click.Path would stat() it, and a dead daemon there may hang
@click.option("--name", help="Name of the database file.  [default: that of DB, or the URL's last component]")
@click.option(
    "--all/--one",
    "every",
    default=None,
    help="Mount every database below REPLICA_URL, or the one database there.  [default: by what is there]",
)
@click.option("--include", multiple=True, help="With --all: mount only databases that match this pattern. Repeatable.")
@click.option("--exclude", multiple=True, help="With --all: leave out what matches this pattern. Repeatable.")
@click.option(
    "--park-after",
    type=DURATION,
    default="1m",
    show_default=True,
    help="With --all: close a database that no client has had open for this long.",
)
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
    "--hydrate",
    type=click.Choice(HYDRATE),
    help="Download databases in the background while they are in use, if they fit into --cache-size: none, those of"
    " up to 64 MiB, or all. Without a value: all; --no-hydrate: none.  [default: all; small with --all]",
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
@metrics_options
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
    every: bool | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    park_after: float,
    poll_interval: float,
    poll_interval_max: float,
    cache_dir: Path | None,
    cache_size: int,
    hydrate: str | None,
    hydrate_rate: int | None,
    read_timeout: float,
    max_staleness: float | None,
    wait: float | None,
    timestamp: int | None,
    txid: int | None,
    allow_other: bool,
    foreground: bool,
    metrics_addr: Address | None,
    metrics_token_file: Path | None,
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

    If REPLICA_URL has no LTX files itself, and has directories below it, it is a prefix: the mount shows the same
    directories, and each database in them is a live file. A database costs nothing until it is opened.

    \b
    Example:
      litereplica mount s3://backups/app.db /mnt/live
      sqlite3 /mnt/live/app.db 'SELECT count(*) FROM orders'
      sqlite3 /mnt/live/.at/2026-03-01T09:30:00Z/app.db 'SELECT count(*) FROM orders'
      litereplica mount s3://backups/app.db /mnt/then --timestamp '2 hours ago'
      litereplica mount --config /etc/litereplica.yml /srv/app.db /mnt/live
      litereplica mount s3://backups/tenants /mnt/all
    """
    path = mountpoints.absolute(mountpoint)
    point = Point(txid=txid, before_ms=timestamp)
    every = _is_prefix(every, of=replica, name=name, point=point, patterns=include + exclude)
    cache = _replica_cache(cache_dir, replica.url, live=point.is_latest)
    options = MountOptions(
        url=replica.url,
        path=path,
        name="" if every else check_database_name(name if name is not None else replica.name),
        poll_interval_s=poll_interval,
        poll_interval_max_s=poll_interval_max,
        allow_other=allow_other,
        hydrate_rate=hydrate_rate,
        max_staleness_s=max_staleness,
        read_timeout_s=read_timeout - min(QUEUED_READS_S, read_timeout / 2),
        cache_dir=cache,
        log_file=_log_file(log_file, cache, foreground=foreground),
        listen=listening_at(metrics_addr, metrics_token_file),
    )
    _check_staleness(options)
    plan = MountPlan(
        options=options,
        replica=replica,
        selection=Selection(include, exclude, park_after),
        every=every,
        point=point,
        cache=cache,
        cache_size=cache_size,
        wait_s=wait or 0.0,
        hydrate=hydrate,
    )
    _mount(plan, foreground=foreground, as_json=log_format == "json")


def _mount(plan: MountPlan, *, foreground: bool, as_json: bool) -> None:
    """Mount in the background, and say what was mounted; or mount and serve until the mount ends."""
    mountpoints.prepare(plan.options.path)
    log_file = plan.options.log_file
    if log_file is not None and log_file.parent == plan.cache:
        os.close(open_own_directory(plan.cache, owner=os.geteuid()))
    configure_logging(log_file, as_json=as_json)

    def work(ready: Ready) -> None:
        with fast_imports():
            from litereplica.cli.mount_run import serve_mount
        serve_mount(plan, ready, warn=log.warning if foreground else _warn)

    if foreground:
        work(lambda _: None)
        return
    try:
        shown = run_in_background(work)
    except KeyboardInterrupt:
        mountpoints.take_away_dead(plan.options.path)
        raise
    click.echo(shown)


def _is_prefix(
    every: bool | None, *, of: ReplicaOf, name: str | None, point: Point, patterns: tuple[str, ...]
) -> bool | None:
    """Return whether a prefix is mounted, as far as the options say; None if the store tells."""
    for option, given in (
        ("--name", name is not None),
        ("--timestamp and --txid", not point.is_latest),
        ("a database", of.database is not None),
    ):
        if given and (every or patterns):
            raise UsageError(
                f"{option} is for one database, and --all, --include and --exclude for many",
                hint="leave one of them; past states of all are in .at of the mount",
            )
        if given:
            every = False
    if patterns and every is False:
        raise UsageError("--include and --exclude are for many databases", hint="leave out --one")
    return True if patterns else every


def _check_staleness(options: MountOptions) -> None:
    if options.max_staleness_s is not None and options.max_staleness_s <= options.poll_interval_s:
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
