"""`litereplica replicate`: publish databases to their replicas."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import trio
from click.core import ParameterSource

from litereplica.cli import output
from litereplica.cli.access_options import access_options
from litereplica.cli.config_file import config_option, default_path, no_expand_env_option, read_config
from litereplica.cli.logging_setup import configure_logging
from litereplica.cli.metrics_options import listening_at, metrics_options
from litereplica.cli.params import DATABASE, DURATION, REPLICA_URL, log_level_option
from litereplica.cli.replication import Replication
from litereplica.config import Config, ConfiguredDatabase
from litereplica.config.config import NO_METRICS, MetricsSettings, split_command
from litereplica.control.address import Address
from litereplica.errors import UsageError
from litereplica.file_access import AS_USUAL, FileAccess, WantedAccess
from litereplica.format.names import format_txid
from litereplica.writer.fleet.statistics import DatabaseStatistics
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.settings import DatabaseTarget, WriterSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Overrides:
    """Settings of the command line, which override those of the configuration file; None or empty if not given."""

    command: tuple[str, ...]
    lease: LeaseMode | None
    sync_interval_s: float | None
    restore_if_missing: bool
    take_over: bool = False
    verify_source: bool = False
    force_snapshot: bool = False
    withhold_credentials: bool = False
    access: WantedAccess = AS_USUAL
    enforce_retention: bool = False
    metrics: MetricsSettings = NO_METRICS

    def apply(self, config: Config) -> Config:
        """Return `config` with these settings applied to every database. Raises `UsageError` for a missing group."""
        return replace(
            config,
            databases=tuple(map(self._apply_to_database, config.databases)),
            command=self.command or config.command,
            withholds_credentials=self.withhold_credentials or config.withholds_credentials,
            metrics=MetricsSettings(
                self.metrics.address or config.metrics.address, self.metrics.token_file or config.metrics.token_file
            ),
        )

    def _apply_to_database(self, database: ConfiguredDatabase) -> ConfiguredDatabase:
        settings = database.target.settings
        if self.lease is not None:
            settings = replace(settings, lease=self.lease)
        access = WantedAccess(self.access.mode or settings.access.mode, self.access.group or settings.access.group)
        access.instead_of(FileAccess())  # checks the group
        settings = replace(settings, access=access)
        if self.take_over:
            settings = replace(settings, take_over=True)
        if self.verify_source:
            settings = replace(settings, verify_source=True)
        if self.force_snapshot:
            settings = replace(settings, force_snapshot=True)
        if self.enforce_retention:
            settings = replace(settings, enforce_retention=True)
        if self.sync_interval_s is not None:
            settings = replace(settings, sync_interval_s=self.sync_interval_s)
        return replace(
            database,
            target=replace(database.target, settings=settings),
            restore_if_missing=database.restore_if_missing or self.restore_if_missing,
        )


@click.command()
@click.argument("database", metavar="[DB", required=False, type=DATABASE)
@click.argument("replica_url", metavar="REPLICA_URL]", required=False, type=REPLICA_URL)
@config_option
@no_expand_env_option
@click.option(
    "--sync-interval",
    type=DURATION,
    default="1s",
    show_default=True,
    help="Publish at most this often. The first change after an idle period is published at once.",
)
@click.option(
    "--no-lease",
    is_flag=True,
    help="Do not acquire the lease that keeps a second writer away; for stores without conditional requests.",
)
@click.option(
    "--wait-lease",
    is_flag=True,
    help="Stand by while another writer holds the lease, and take over when it ends. DB must then contain everything "
    "that the other writer published: --restore-if-db-not-exists restores it at that moment.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Publish DB as the newest state although another writer has published since: what that one wrote stays in the "
    "history only. Without it such a database is refused.",
)
@click.option(
    "--verify-source",
    is_flag=True,
    help="Compare each database with its replica at the start, page by page, and publish what differs. Without it this "
    "is done if its file is not as it was left.",
)
@click.option(
    "--watch",
    is_flag=True,
    help="When the database is moved, deleted or replaced, wait for the one that takes its place and publish that. "
    "Without it replicate ends then, with exit code 9, unless a configuration file names the database.",
)
@click.option(
    "--restore-if-db-not-exists",
    is_flag=True,
    help="Restore a database that does not exist from its replica before anything else.",
)
@click.option(
    "--exec",
    "command_line",
    metavar="COMMAND",
    help="Run this program once the replicas are up to date. Signals are passed on to it, and its exit code becomes "
    "that of replicate.",
)
@click.option(
    "--exec-without-credentials",
    is_flag=True,
    help="Withhold the credentials of the stores from the program of exec: it gets an environment without them, and "
    "cannot read the environment or the memory of replicate. Files that this user can read are not kept from it.",
)
@click.option("--once", is_flag=True, help="Publish all committed transactions, then exit.")
@click.option(
    "--force-snapshot",
    is_flag=True,
    help="With --once: also publish a snapshot that is made from the database itself, not from files of the replica, "
    "so that its newest state depends on no other file.",
)
@click.option(
    "--enforce-retention",
    is_flag=True,
    help="With --once: also delete the files that retention no longer needs.",
)
@metrics_options
@log_level_option
@access_options("new files of a replica in a directory (file://)", "those of the database")
@click.option("--log-file", type=click.Path(path_type=Path, dir_okay=False), help="Log to this file, not to stderr.")
@output.json_option
@click.pass_context
def command(
    ctx: click.Context,
    database: Path | None,
    replica_url: str | None,
    config_path: Path | None,
    no_expand_env: bool,
    sync_interval: float,
    no_lease: bool,
    wait_lease: bool,
    take_over: bool,
    verify_source: bool,
    watch: bool,
    restore_if_db_not_exists: bool,
    command_line: str | None,
    exec_without_credentials: bool,
    once: bool,
    force_snapshot: bool,
    mode: int | None,
    group: str | None,
    enforce_retention: bool,
    metrics_addr: Address | None,
    metrics_token_file: Path | None,
    log_file: Path | None,
    as_json: bool,
) -> None:
    """Publish the transactions of SQLite databases to their replicas as they are committed.

    The databases are DB, or those listed in a configuration file. The file has the format of Litestream's: a
    litestream.yml works unchanged, and keys without effect are reported. SIGHUP makes the process read the file and its
    credentials again.

    Runs until SIGTERM or SIGINT, publishes the remaining transactions and exits. Started again, it continues where it
    stopped. A database in a rollback journal mode is switched to WAL; nothing else in it is changed. Only one writer at
    a time publishes to a replica: it holds a lease, the object lock.json there. If a writer ends without releasing its
    lease, another writer can acquire it after half a minute; the same writer need not wait. With --once --json, a
    summary is printed: db_path, url, txid, published_files, published_pages, published_bytes; with a configuration
    file, a list of them.

    \b
    Example:
      litereplica replicate app.db file:///srv/replica
      litereplica replicate app.db 's3://bucket/app.db?region=eu-west-1' --sync-interval 200ms
      litereplica replicate app.db file:///srv/replica --once
      litereplica replicate app.db file:///srv/replica --restore-if-db-not-exists --exec 'myapp --port 80'
      litereplica replicate --config /etc/litereplica.yml
    """
    if as_json and not once:
        raise UsageError("--json needs --once", hint="add --once, or remove --json")
    if force_snapshot and not once:
        raise UsageError("--force-snapshot needs --once", hint="add --once, or remove --force-snapshot")
    if enforce_retention and not once:
        raise UsageError("--enforce-retention needs --once", hint="add --once, or remove --enforce-retention")
    if sync_interval <= 0:
        raise UsageError("--sync-interval must be greater than zero", hint="write for instance --sync-interval 100ms")
    if no_lease and wait_lease:
        raise UsageError("--no-lease and --wait-lease exclude each other", hint="choose one of them")

    def given(name: str) -> bool:
        return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE

    overrides = Overrides(
        command=_split(command_line),
        lease=LeaseMode.OFF if no_lease else LeaseMode.WAIT if wait_lease else None,
        sync_interval_s=sync_interval if given("sync_interval") else None,
        take_over=take_over,
        verify_source=verify_source,
        force_snapshot=force_snapshot,
        withhold_credentials=exec_without_credentials,
        access=WantedAccess(mode, group),
        enforce_retention=enforce_retention,
        restore_if_missing=restore_if_db_not_exists,
        metrics=MetricsSettings(metrics_addr, metrics_token_file),
    )
    if database is not None:
        if given("config_path"):
            raise UsageError("a database and --config exclude each other", hint="remove one of them")
        if replica_url is None:
            raise UsageError(f"{database} has no replica", hint=f"write replicate {database} REPLICA_URL")
        config = overrides.apply(_configured(database, replica_url))
        file, reread = None, None
    else:
        file = config_path or default_path()
        reread = _reader(file, overrides, expand_env=not no_expand_env)
        config = reread()
    if once and config.command:
        raise UsageError("--once and exec exclude each other", hint="remove one of them")
    configure_logging(log_file, level=config.logging.level, as_json=config.logging.json)
    if file is not None:
        _warn_about_file(config, file)
    listen = None if once else listening_at(config.metrics.address, config.metrics.token_file)
    replication = Replication(config, file=file, reread=reread, follow=watch or reread is not None, listen=listen)
    if not once:
        ctx.exit(trio.run(replication.run))
    done = trio.run(replication.publish_once)
    if done is None:
        raise KeyboardInterrupt
    _print_outcome(done.databases, as_json=as_json, single=database is not None)


def _configured(database: Path, url: str) -> Config:
    target = DatabaseTarget(database, url, WriterSettings())
    return Config(databases=(ConfiguredDatabase(target, restore_if_missing=False, line=0),))


def _reader(path: Path, overrides: Overrides, *, expand_env: bool) -> Callable[[], Config]:
    return lambda: overrides.apply(read_config(path, expand_env=expand_env))


def _split(command_line: str | None) -> tuple[str, ...]:
    if command_line is None:
        return ()
    try:
        return split_command(command_line)
    except UsageError as exc:
        raise UsageError(f"--exec: {exc.message}", hint=exc.hint) from exc


def _warn_about_file(config: Config, file: Path) -> None:
    """Warn of keys of the file without effect, unset variables, and credentials that other users can read."""
    if config.notes:
        log.warning("%s: these keys have no effect: %s", file, "; ".join(config.notes))
    for line in config.former:
        log.warning("%s: %s", file, line)
    if config.unset:
        log.warning("%s: these variables are not set, and count as empty: %s", file, ", ".join(config.unset))
    others = stat.S_IRGRP | stat.S_IROTH
    if any(target.credentials for target in config.targets) and file.stat().st_mode & others:
        log.warning(
            "%s contains credentials and other users can read it: run 'chmod 600 %s', or use environment variables",
            file, file,
        )  # fmt: skip


def _print_outcome(databases: tuple[DatabaseStatistics, ...], *, as_json: bool, single: bool) -> None:
    if as_json:
        records = [_record(each) for each in databases]
        output.print_json(records[0] if single else records)
        return
    for done in databases:
        what = "nothing new" if done.files == 0 else f"{done.pages} pages in {done.files} file(s)"
        click.echo(f"{done.path} is published at TXID {format_txid(done.txid)}: {what}")


def _record(done: DatabaseStatistics) -> dict[str, object]:
    return {
        "db_path": str(done.path),
        "url": done.url,
        "txid": format_txid(done.txid),
        "published_files": done.files,
        "published_pages": done.pages,
        "published_bytes": done.bytes,
    }
