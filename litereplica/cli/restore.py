"""`litereplica restore`: write the latest or a past state of a replica to a database file.

_restore_one   one database
_show_plan     `--dry-run`: which files would be read; `restored.py` formats it, and the results
_restore_all   `--all`: every database below a prefix, each by `_restore`
_follow        `-f`: restores, then applies new files until interrupted
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from litereplica.cli import output
from litereplica.cli.access_options import access_options
from litereplica.cli.hangup import read_anew_on_hangup
from litereplica.cli.on_store import run_on_store
from litereplica.cli.params import DURATION, log_level_option
from litereplica.cli.point import TIMESTAMP, TXID, Point
from litereplica.cli.replica_of import ReplicaOf, replica_argument
from litereplica.cli.restore_all import PARALLELISM_EACH, Restored, SomeFailed, restore_all
from litereplica.cli.restored import Result, restored_line, show_plan, summary
from litereplica.control import service_manager
from litereplica.errors import LiteReplicaError, NoReplica, UsageError
from litereplica.file_access import FileAccess, WantedAccess
from litereplica.format.names import format_txid
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.any_format import chosen_backup, restore_any
from litereplica.restore.follow import POLL_INTERVAL_S, Applied, Follower, position_of, prepare
from litereplica.restore.generations import BackupFile
from litereplica.restore.integrity_check import IntegrityCheck
from litereplica.restore.plan_reader import PARALLELISM
from litereplica.restore.restore import RestorePreview, preview, require_database, restore
from litereplica.storage.url import redacted

MAX_PARALLELISM = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arguments:
    replica: ReplicaOf
    path: Path
    point: Point
    force: bool
    check: IntegrityCheck
    as_json: bool
    if_replica_exists: bool
    parallelism: int | None
    follow_interval_s: float | None
    access: FileAccess | None


@click.command()
@replica_argument
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(path_type=Path),
    help="The database file to write; with --all, the directory.  [default: DB]",
)
@click.option(
    "--timestamp", "before_ms", type=TIMESTAMP, help="The newest state before a time, such as '5 minutes ago'."
)
@click.option("--txid", type=TXID, help="The state at a TXID, as 'litereplica history' lists them.")
@click.option("--if-db-not-exists", is_flag=True, help="Do nothing and succeed if the database file exists.")
@click.option("--if-replica-exists", is_flag=True, help="Do nothing and succeed if the replica is empty.")
@click.option("--force", is_flag=True, help="Replace an existing database and its -wal, -shm and -journal files.")
@click.option("--dry-run", is_flag=True, help="Show what would be read; write nothing.")
@click.option(
    "--integrity-check",
    type=click.Choice([check.value for check in IntegrityCheck]),
    default=IntegrityCheck.NONE.value,
    show_default=True,
    help="Let SQLite check the database before it is renamed to its final name.",
)
@access_options("the restored file", "0600, or those of the file that is replaced")
@click.option(
    "--all", "every", is_flag=True, help="Restore every database below REPLICA_URL to its own file in a directory."
)
@click.option("-f", "--follow", is_flag=True, help="Keep applying new transactions until interrupted.")
@click.option(
    "--follow-interval",
    type=DURATION,
    default=f"{POLL_INTERVAL_S:g}s",
    show_default=True,
    help="How often to check for new transactions.",
)
@click.option(
    "--parallelism",
    type=click.IntRange(1, MAX_PARALLELISM),
    help=f"Number of concurrent requests.  [default: {PARALLELISM}; with --all {PARALLELISM_EACH} for each database]",
)
@log_level_option
@output.json_option
def command(
    replica: ReplicaOf,
    path: Path | None,
    before_ms: int | None,
    txid: int | None,
    if_db_not_exists: bool,
    if_replica_exists: bool,
    force: bool,
    dry_run: bool,
    integrity_check: str,
    mode: int | None,
    group: str | None,
    every: bool,
    follow: bool,
    follow_interval: float,
    parallelism: int | None,
    as_json: bool,
) -> None:
    """Write the latest or a past state of a replica to a database file.

    All data that is read is checked; a damaged file is avoided if other files hold the same transactions. The database
    is renamed to its final name when it is complete. If DB is given, its replica is looked up in the configuration file
    or in the database's state directory.

    A time means the newest state before it; a time in the future means the latest state. A time without an offset is
    local time. A backup by Litestream 0.3 (generations/) is restored too, by --timestamp or its newest state.

    With -f the file follows the replica's newest state: programs may read it at any time, and must not write to it. It
    is in rollback journal mode, whatever the mode of the original. Run again, the command continues with the existing
    file.

    With --json, a summary is printed: db_path, replica, txid, page_size, pages, bytes, files, bytes_read,
    integrity_check, duration_ms; with --all, a list of them, with error for those that failed; with --dry-run, the
    plan; with -f, at the end, db_path, replica, txid, integrity_check, duration_ms.

    \b
    Example:
      litereplica restore file:///srv/replica -o app.db
      litereplica restore app.db --timestamp '5 minutes ago' -o before.db
      litereplica restore 's3://bucket/app.db?region=eu-west-1' -o app.db --force --integrity-check full --json
      litereplica restore s3://bucket/all-databases --all -o restored/
      litereplica restore -f s3://bucket/app.db -o replica.db
    """
    place = path or replica.database
    if place is None:
        options = "--all -o DIRECTORY" if every else "-o app.db"
        raise UsageError("-o is missing", hint=f"write litereplica restore {options} {redacted(replica.url)}")
    point = Point(txid, before_ms)
    _require_compatible(point, every=every, follow=follow, dry_run=dry_run)
    if if_db_not_exists and not every and place.exists():
        output.note(f"{place} exists: nothing to do")
        return
    arguments = _Arguments(
        replica=replica,
        path=place,
        point=point,
        force=force,
        check=IntegrityCheck(integrity_check),
        as_json=as_json,
        if_replica_exists=if_replica_exists,
        parallelism=parallelism,
        follow_interval_s=follow_interval if follow else None,
        access=wanted if (wanted := WantedAccess(mode, group).instead_of(FileAccess())).is_wanted else None,
    )
    try:
        if dry_run:
            _show_plan(arguments)
        elif every:
            _restore_all(arguments, if_db_not_exists=if_db_not_exists)
        elif follow:
            _follow(arguments)
        else:
            _restore_one(arguments)
    except* NoReplica:  # raised bare or in a nursery's group
        if not if_replica_exists:
            raise
        output.note(f"{redacted(replica.url)} is empty: nothing to do")


def _require_compatible(point: Point, *, every: bool, follow: bool, dry_run: bool) -> None:
    if follow and (not point.is_latest or every or dry_run):
        raise UsageError("-f cannot be combined with --txid, --timestamp, --all or --dry-run", hint="leave it out")
    if every and (point.txid is not None or dry_run):
        raise UsageError("--all cannot be combined with --txid or --dry-run", hint="restore a single database")


def _restore_one(arguments: _Arguments) -> None:
    started = time.monotonic()
    result = run_on_store(arguments.replica, partial(_restore, arguments, arguments.path))
    seconds = time.monotonic() - started
    if arguments.as_json:
        output.print_json(summary(arguments.replica.url, arguments.path, result, arguments.check, seconds))
    else:
        output.note(restored_line(arguments.path, result, seconds))


async def _restore(
    arguments: _Arguments, path: Path, store: LTXStore, parallelism: int = PARALLELISM, *, bar: bool = True
) -> Result:
    options: dict[str, Any] = {"parallelism": arguments.parallelism or parallelism, "prepare": require_database}
    if bar:
        options["progress"] = partial(output.progress, "Restoring")
    return await restore_any(
        store,
        path,
        target=arguments.point.txid,
        before_ms=arguments.point.before_ms,
        force=arguments.force,
        integrity_check=arguments.check,
        access=arguments.access,
        **options,
    )


# --- --dry-run -------------------------------------------------------------------------------


def _show_plan(arguments: _Arguments) -> None:
    point = arguments.point

    async def look(store: LTXStore) -> RestorePreview | list[BackupFile]:
        backup = await chosen_backup(store, target=point.txid, before_ms=point.before_ms)
        if backup is not None:
            return backup.plan(until_ms=point.before_ms)
        return await preview(store, target=point.txid, before_ms=point.before_ms)

    show_plan(arguments.replica, arguments.path, run_on_store(arguments.replica, look), as_json=arguments.as_json)


# --- --all -----------------------------------------------------------------------------------


def _restore_all(arguments: _Arguments, *, if_db_not_exists: bool) -> None:
    started = time.monotonic()

    def done(each: Restored) -> None:
        if isinstance(each.outcome, LiteReplicaError):
            output.note(f"{each.prefix or redacted(arguments.replica.url)}: {each.outcome}")
        elif not arguments.as_json:
            output.note(restored_line(each.path, each.outcome, time.monotonic() - started))

    async def one(store: LTXStore, path: Path, parallelism: int) -> Result:
        return await _restore(arguments, path, store, parallelism, bar=False)

    async def work(store: LTXStore) -> list[Restored] | None:
        return await restore_all(store, arguments.path, one, leave=if_db_not_exists, done=done, access=arguments.access)

    results = run_on_store(arguments.replica, work)
    if results is None:
        raise NoReplica(f"there is no replica below {redacted(arguments.replica.url)}", hint="check the URL")
    if not results and not arguments.as_json:
        output.note(f"all databases exist in {arguments.path}: nothing to do")
    if arguments.as_json:
        output.print_json([_record_of(arguments, each, time.monotonic() - started) for each in results])
    outcomes = {each.prefix or each.path.name: each.outcome for each in results}
    failed = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, LiteReplicaError)}
    if failed:
        raise SomeFailed(failed, len(results))


def _record_of(arguments: _Arguments, each: Restored, seconds: float) -> dict[str, Any]:
    url = arguments.replica.url if not each.prefix else f"{redacted(arguments.replica.url)}/{each.prefix}"
    if isinstance(each.outcome, LiteReplicaError):
        return {"db_path": str(each.path), "replica": redacted(url), "error": str(each.outcome)}
    return summary(url, each.path, each.outcome, arguments.check, seconds)


# --- -f --------------------------------------------------------------------------------------


def _follow(arguments: _Arguments) -> None:
    from litereplica.cli.logging_setup import configure_logging

    configure_logging()
    interval_s = arguments.follow_interval_s
    assert interval_s is not None
    started, txid = time.monotonic(), 0

    async def note_step(step: Applied) -> None:
        nonlocal txid
        txid = step.after
        with contextlib.suppress(OSError):  # the terminal may be closed
            output.note(f"applied TXID {format_txid(step.before)} to {format_txid(step.after)}")

    def status() -> str:
        return f"following at TXID {format_txid(txid)}"

    async def work(store: LTXStore) -> None:
        nonlocal txid
        txid = await _begin(arguments, store)
        follower = Follower(store, arguments.path, txid)
        await follower.require_history()
        output.note(f"following {redacted(arguments.replica.url)} in {arguments.path} from TXID {format_txid(txid)}")
        async with service_manager.reporting(status):
            service_manager.ready(status)
            await follower.run(interval_s, note_step)

    try:
        run_on_store(arguments.replica, lambda store: read_anew_on_hangup(partial(work, store)))
    except KeyboardInterrupt:
        output.note("stopped")  # an interrupt is the normal end of -f
        if arguments.as_json:
            output.print_json(
                {
                    "db_path": str(arguments.path),
                    "replica": redacted(arguments.replica.url),
                    "txid": format_txid(txid),
                    "integrity_check": arguments.check.value,
                    "duration_ms": round((time.monotonic() - started) * 1000),
                }
            )


async def _begin(arguments: _Arguments, store: LTXStore) -> int:
    """Restore, or continue from the existing file; returns its TXID."""
    if not arguments.force and await trio.to_thread.run_sync(arguments.path.exists):
        return await trio.to_thread.run_sync(position_of, arguments.path)
    result = await restore(
        store,
        arguments.path,
        force=arguments.force,
        integrity_check=arguments.check,
        progress=partial(output.progress, "Restoring"),
        prepare=partial(prepare, arguments.path),
        access=arguments.access,
        parallelism=arguments.parallelism or PARALLELISM,
    )
    return result.txid
