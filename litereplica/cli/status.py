"""`litereplica status`: show the state of writers, of a mount or of a replica.

The state of a writer comes from its control socket, that of a mount from the hidden status file in it, and that of a
replica from the files in its store.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from litereplica.cli import output
from litereplica.cli.config_file import config_option, no_expand_env_option, read_config
from litereplica.cli.params import format_size
from litereplica.errors import DamagedFile, EnvironmentProblem, NoReplica, NotFound, UsageError
from litereplica.times import format_duration

if TYPE_CHECKING:
    from litereplica.config import Config
    from litereplica.fuse.mountpoint import Mount
    from litereplica.ltxstore.store import LTXStore

GONE = "gone"
"""The state of a database that was removed from its directory."""

NOT_RUNNING = "not running"
"""The state of a configured database that no writer replicates."""

MAX_SHOWN = 20
"""Databases in use that the status of a mount of many names."""

_WRITER_COLUMNS = ("database", "state", "txid", "behind", "lease", "note")


@click.command()
@click.argument("subject", metavar="[DB|DIR|MOUNTPOINT|REPLICA_URL]", required=False)
@config_option
@no_expand_env_option
@output.json_option
@click.pass_context
def command(
    ctx: click.Context, subject: str | None, config_path: Path | None, no_expand_env: bool, as_json: bool
) -> None:
    """Show the state of the writers of this machine, of a mount or of a replica.

    Without an argument, or for a database or a directory: the databases that writers of this user replicate, the lag of
    each replica, the last error, and the holder of the lease. With --config: the databases listed in the file, whether
    they are replicated now or not; the control socket of the file is used. For a mount point: its position, the age of
    that position, and its requests to the store. For a replica URL: its newest TXID, its lease and its files. This
    costs one listing of each level and one small read.

    \b
    Example:
      litereplica status
      litereplica status /srv/app.db --json
      litereplica status --config /etc/litereplica.yml
      litereplica status /mnt/live
      litereplica status 's3://bucket/app.db?region=eu-west-1'
    """
    given = ctx.get_parameter_source("config_path") is ParameterSource.COMMANDLINE
    is_url = subject is not None and "://" in subject
    mount = None if subject is None or is_url else _mount_of(Path(subject))
    if given and (is_url or mount is not None):
        raise UsageError("--config cannot be combined with a replica or a mount", hint="remove --config")
    if subject is not None and is_url:
        _show_replica(subject, as_json=as_json)
    elif mount is not None:
        _show_mount(mount, as_json=as_json)
    elif config_path is not None and (given or subject is None):
        config = read_config(config_path, expand_env=not no_expand_env)
        if subject is None:
            _show_config(config, as_json=as_json)
        else:
            _show_writers(Path(subject), socket=config.socket.path, as_json=as_json)
    else:
        _show_writers(None if subject is None else Path(subject), as_json=as_json)


# --- writers


def _show_writers(path: Path | None, *, socket: Path | None = None, as_json: bool) -> None:
    with _of_the_usual_form("a writer"):
        records = _databases(_running(socket))
    if path is not None:
        wanted = Path(os.path.realpath(path))
        records = [each for each in records if wanted in (own := _real(each), *own.parents)]
        if not records:
            raise EnvironmentProblem(
                f"no writer of this user replicates {path}", hint=f"start one: litereplica replicate {path} REPLICA_URL"
            )
    _print_databases(records, as_json=as_json, nothing="no writer of this user is running")


def _show_config(config: Config, *, as_json: bool) -> None:
    with _of_the_usual_form("a writer"):
        records = _databases(_running(config.socket.path))
    shown: list[dict[str, Any]] = []
    for target in config.targets:
        root = Path(os.path.realpath(target.path))
        own = [each for each in records if root in (real := _real(each), *real.parents)]
        shown += own or [{"db_path": str(target.path), "url": target.url, "state": NOT_RUNNING}]
    _print_databases(shown, as_json=as_json, nothing="")


def _running(path: Path | None) -> list[dict[str, Any]]:
    """The status of the writer whose socket is `path`; without one, of all writers of this user."""
    from litereplica.writer.fleet.control_socket import SUFFIX, ask, require_private, socket_directory

    if path is not None:
        sockets = [path]
    else:
        directory = socket_directory(os.environ, uid=os.geteuid())
        require_private(directory)
        sockets = sorted(directory.glob(f"*{SUFFIX}"))
    return [answer for each in sockets if (answer := ask(each)) is not None]


def _databases(writers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The databases of the writers, each with its process and its lease, which may be that of a root above it."""
    found = []
    for writer in writers:
        leases = writer.get("leases") or {}
        for each in writer.get("databases") or []:
            root = max((url for url in leases if _is_below(each["url"], url)), key=len, default=None)
            lease = each.get("lease") or (leases[root] if root is not None and each.get("state") != GONE else None)
            found.append({**each, "lease": lease, "pid": writer.get("pid")})
    return sorted(found, key=lambda each: str(each["db_path"]))


def _is_below(url: str, root: str) -> bool:
    return url == root or url.partition("?")[0].startswith(root.partition("?")[0].rstrip("/") + "/")


def _real(record: dict[str, Any]) -> Path:
    return Path(os.path.realpath(record["db_path"]))


def _print_databases(records: Sequence[dict[str, Any]], *, as_json: bool, nothing: str) -> None:
    if as_json:
        output.print_json({"databases": records})
    elif records:
        with _of_the_usual_form("a writer"):
            rows = [_row(each) for each in records]
        output.print_table(_WRITER_COLUMNS, rows, right=("behind",))
    else:
        output.note(nothing)


def _row(record: dict[str, Any]) -> list[str]:
    lease = record.get("lease")
    behind_s, size = record.get("behind_s", 0.0), record.get("unpublished_bytes", 0)
    behind = "" if "behind_s" not in record else f"{behind_s:.1f} s, {format_size(size)}" if behind_s else "0 s"
    return [
        record["db_path"],
        record["state"],
        record.get("txid", ""),
        behind,
        "" if lease is None else f"{lease['owner']}, generation {lease['generation']}",
        record.get("error") or "",
    ]


# --- a mount


def _mount_of(path: Path) -> Mount | None:
    from litereplica.fuse import mountpoint as mountpoints

    mount = mountpoints.mount_at(mountpoints.absolute(path))
    return mount if mount is not None and mount.type == mountpoints.FILE_SYSTEM_TYPE else None


def _show_mount(mount: Mount, *, as_json: bool) -> None:
    from litereplica.cli.mount_status import read_status

    status = read_status(mount)
    if status is None:
        raise EnvironmentProblem(f"the daemon of the mount at {mount.path} is dead", hint="mount it again")
    if as_json:
        output.print_json(status)
        return
    with _of_the_usual_form(f"the mount at {mount.path}"):
        rows = _mount_rows(status)
    output.print_table(("what", "value"), rows)


@contextmanager
def _of_the_usual_form(what: str) -> Iterator[None]:
    """Turn the errors of reading a status of another form, made by another program, into `EnvironmentProblem`."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as exc:
        raise EnvironmentProblem(
            f"the status of {what} has an unexpected form", hint="see it as it is with --json"
        ) from exc


def _prefix_rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of a mount of many databases."""
    databases, names = status["databases"], status["names"]
    used = [each["path"] for each in status["active"] if each["handles"]]
    return [
        ("mount point", str(status["mountpoint"])),
        ("prefix", str(status["url"])),
        ("process", str(status["pid"])),
        ("active", f"{databases['active']} databases, at most {databases['max_active']}"),
        ("in use", ", ".join(used[:MAX_SHOWN]) + (f" and {len(used) - MAX_SHOWN} more" if used[MAX_SHOWN:] else "")),
        ("opened", f"{databases['activations']} times, closed {databases['parked']} times"),
        ("failed", str(databases["failed"])),
        ("names", f"{names['known']} known, {names['requests']} requests"),
    ]


def _mount_rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    if "databases" in status:
        return [(what, value) for what, value in _prefix_rows(status) if value]
    replica = status.get("replica") or {}
    hydration = replica.get("hydration") or {}
    ledger = replica.get("ledger") or {}
    position = replica.get("pos") or {}
    follows = "static" not in status  # a mount of a past state does not follow
    requests = {name: _total(each, "requests") for name, each in ledger.items()}
    received = {name: _total(each, "bytes_received") for name, each in ledger.items()}
    rows = [
        ("mount point", str(status.get("mountpoint", ""))),
        ("replica", str(status.get("url", ""))),
        ("process", str(status.get("pid", ""))),
        ("position", f"{position.get('txid', 0):016x}"),
        ("committed", _time(replica.get("timestamp_ms", 0))),
        ("newest known", f"{replica.get('newest_txid', 0):016x}" if follows else ""),
        ("staleness", f"at most {replica.get('staleness_s', 0.0):.1f} s" if follows else ""),
        ("polling", _polling(status.get("polling") or {})),
        ("without locks", ", ".join(map(str, status.get("clients_without_locks") or []))),
        ("stacked on it", ", ".join(map(str, status.get("stacked_on") or []))),
        ("error", str(replica.get("reason") or replica.get("last_error") or "")),
        ("hydration", _hydration(hydration)),
        ("requests", ", ".join(f"{name} {count}" for name, count in requests.items() if count)),
        ("received", ", ".join(f"{name} {format_size(size)}" for name, size in received.items() if size)),
        ("cost", f"{sum(each.get('usd', 0.0) for each in ledger.values()):.6f} USD by S3's price list"),
    ]
    return [(what, value) for what, value in rows if value]


def _total(entry: dict[str, Any], what: str) -> int:
    return sum(each.get(what, 0) for each in (entry.get("by_operation") or {}).values())


def _polling(polling: dict[str, Any]) -> str:
    state = str(polling.get("state", ""))
    if state in {"", "active"}:
        return state
    return f"{state}: no file has been open for {format_duration(round(polling.get('idle_s', 0.0)))}"


def _hydration(hydration: dict[str, Any]) -> str:
    state = str(hydration.get("state", ""))
    pages, missing = hydration.get("pages", 0), hydration.get("pages_missing", 0)
    return f"{state}, {pages - missing} of {pages} pages" if state and pages else state


# --- a replica


def _show_replica(url: str, *, as_json: bool) -> None:
    from litereplica.cli.on_store import run_on_store
    from litereplica.storage.url import parse_url, redacted

    parse_url(url)
    status = run_on_store(url, _replica_status)
    if not status["levels"] and status["lease"] is None:
        raise NoReplica(f"there is no LTX file in {redacted(url)}", hint="check the URL; it names one database")
    if as_json:
        output.print_json(status)
        return
    lease = status["lease"]
    output.print_table(
        ("what", "value"),
        [
            ("replica", status["url"]),
            ("newest TXID", status["txid"] or ""),
            ("published", status["time"] or ""),
            ("lease", "not held" if lease is None else lease.get("damaged") or _lease_text(lease)),
        ],
    )
    click.echo()
    output.print_table(
        ("level", "files", "bytes", "min_txid", "max_txid"),
        [tuple(level.values()) for level in status["levels"]],
        right=("level", "files", "bytes"),
    )


def _lease_text(lease: dict[str, Any]) -> str:
    left_s = lease["left_s"]
    when = f"expires in {format_duration(round(left_s))}" if left_s > 0 else f"expired at {lease['expires_at']}"
    return f"{lease['owner'] or 'another program'}, generation {lease['generation']}, {when}"


async def _replica_status(store: LTXStore) -> dict[str, Any]:
    files = await store.list_levels()
    newest = max(files, key=lambda info: (info.max_txid, -info.level), default=None)
    levels = []
    for level in sorted({info.level for info in files}):
        own = [info for info in files if info.level == level]
        levels.append(
            {
                "level": level,
                "files": len(own),
                "bytes": sum(info.size for info in own),
                "min_txid": f"{min(info.min_txid for info in own):016x}",
                "max_txid": f"{max(info.max_txid for info in own):016x}",
            }
        )
    return {
        "url": store.url,
        "txid": None if newest is None else f"{newest.max_txid:016x}",
        "time": None if newest is None else _time(newest.modified_ms),
        "lease": await _lease(store),
        "levels": levels,
    }


async def _lease(store: LTXStore) -> dict[str, Any] | None:
    from litereplica.ltxstore.lease_record import LOCK_KEY, MAX_LEASE_BYTES, Lease
    from litereplica.storage.base import ByteRange
    from litereplica.times import format_time

    try:
        blob = await store.storage.get(LOCK_KEY, ByteRange(0, MAX_LEASE_BYTES + 1))
        lease = Lease.decode(blob.data)
    except NotFound:
        return None
    except DamagedFile as exc:
        return {"damaged": str(exc)}
    return {
        "owner": lease.owner,
        "generation": lease.generation,
        "expires_at": format_time(lease.expires_ms),
        "left_s": round(lease.expires_ms / 1000 - time.time(), 3),
    }


def _time(milliseconds: int) -> str:
    from litereplica.times import format_time

    return format_time(milliseconds) if milliseconds else ""
