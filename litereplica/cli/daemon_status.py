"""What running daemons say of their databases: found by subject, shown as a table, and checked.

A record is the JSON object of one database in a daemon's answer to `GET /status`, with `kind`, `pid`, `version` and
`log_file` of the daemon. Another user may have written it, so a record of an unexpected form is an error of one line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from litereplica.cli import output
from litereplica.cli.daemons import MOUNT, WRITER, absolute, running
from litereplica.cli.params import format_size
from litereplica.control.health import NOT_RUNNING, alive, sickness
from litereplica.errors import EnvironmentProblem, NotReached
from litereplica.times import format_duration

if TYPE_CHECKING:
    from litereplica.config import Config
    from litereplica.fuse.mountpoint import Mount

MAX_SHOWN = 20
"""Databases in use that are named for a mount of many."""

_WRITER_COLUMNS = ("database", "state", "txid", "behind", "lease", "note")
_MOUNT_COLUMNS = ("mount", "state", "txid", "behind", "replica", "note")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be shown: the databases at or below `path`, those of `config`, or all.

    With `mount` it is that mount, or a database in it: `path` is the mount point, or that of the file.
    """

    path: Path | None = None
    config: Config | None = None
    mount: Mount | None = None

    @classmethod
    def of(cls, argument: str | None, config: Config | None) -> Subject:
        """What an argument of the command line names: a mount point, a file in a mount, or a database or directory."""
        if argument is None:
            return cls(config=config)
        mounted = cls._in_mount(absolute(argument))
        return mounted or cls(path=Path(os.path.realpath(argument.removeprefix("sqlite://"))), config=config)

    @classmethod
    def _in_mount(cls, path: Path) -> Subject | None:
        """What a path in a mount of litereplica names; None if it is in none. Asks no mount, which may be dead."""
        from litereplica.fuse import mountpoint as mountpoints

        topmost = {mount.path: mount for mount in mountpoints.mounts()}
        for above in reversed((path, *path.parents)):
            place = Path(os.path.realpath(above.parent)) / above.name
            for each in (place, *place.parents):
                mount = topmost.get(str(each))
                if mount is not None and mount.type == mountpoints.FILE_SYSTEM_TYPE:
                    return cls(path=place / path.relative_to(above), mount=mount)
        real = Path(os.path.realpath(path))
        return None if real == place else cls._in_mount(real)


# --- finding ---------------------------------------------------------------------------------------------------------


def find_records(subject: Subject) -> list[Record]:
    """The records of a subject, by path. Raises `EnvironmentProblem` if a named one is not there."""
    if subject.mount is not None:
        return [_mount_record(subject.mount, subject.path or Path(subject.mount.path))]
    target = "/status" if subject.path is None else f"/status?path={quote(str(subject.path))}"
    with _of_the_usual_form():
        records = [record for record in _running(target) if subject.path is None or record["kind"] == WRITER]
        records.sort(key=lambda record: (record["kind"] != WRITER, str(record["db_path"])))
    if subject.config is not None:
        return _configured(records, subject.config, subject.path)
    if subject.path is not None and not records:
        raise EnvironmentProblem(
            f"no writer of this user replicates {subject.path}",
            hint=f"start one: litereplica replicate {subject.path} REPLICA_URL",
        )
    return records


def _running(target: str) -> Iterator[Record]:
    for daemon in running(target=target):
        about = {name: daemon.status.get(name) for name in ("kind", "pid", "version", "log_file")}
        for record in daemon.status.get("databases") or []:
            yield {**about, **record}


def _configured(records: Sequence[Record], config: Config, path: Path | None) -> list[Record]:
    """The records of the databases that a configuration names, whether they are replicated or not."""
    shown: list[Record] = []
    for target in config.targets:
        root = Path(os.path.realpath(target.path))
        if path is not None and not (root.is_relative_to(path) or path.is_relative_to(root)):
            continue
        own = [record for record in records if Path(os.path.realpath(record["db_path"])).is_relative_to(root)]
        shown += own or [{"kind": WRITER, "db_path": str(target.path), "url": target.url, "state": NOT_RUNNING}]
    return shown


def _mount_record(mount: Mount, path: Path) -> Record:
    """The record of a mount, or of the database at `path` in it; of another user's mount, what that shows to all.

    Raises `EnvironmentProblem` if its daemon is dead or silent, or lets no other user in, or if the database is not
    open.
    """
    from litereplica.cli.mount_status import is_yours, read_status, require_alive

    require_alive(mount)
    if not is_yours(mount):
        return {"kind": MOUNT, "mountpoint": mount.path, "db_path": mount.path, **(read_status(mount) or {})}
    with _of_the_usual_form():
        for record in _running(f"/status?path={quote(str(path))}"):
            if record["kind"] == MOUNT and record["mountpoint"] == mount.path:
                return record
    if path != Path(mount.path):
        raise EnvironmentProblem(f"the mount at {mount.path} has no open database {path}", hint="open it first")
    raise EnvironmentProblem(
        f"the daemon of the mount at {mount.path} has no control socket that you may ask", hint="see its log"
    )


@contextmanager
def _of_the_usual_form() -> Iterator[None]:
    """Turn the errors of reading a record of another form, made by another program, into `EnvironmentProblem`."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as exc:
        raise EnvironmentProblem(
            "a daemon's status has an unexpected form", hint="see it as it is with --json"
        ) from exc


# --- showing ---------------------------------------------------------------------------------------------------------


def show_records(records: Sequence[Record], subject: Subject, *, as_json: bool) -> None:
    """Print records as tables, a mount or a database that was named as a list of its facts, or all as JSON."""
    if as_json:
        output.print_json({"databases": list(records)})
        return
    with _of_the_usual_form():
        if subject.mount is not None:
            output.print_table(("what", "value"), mount_facts(records[0]))
            return
        if subject.path is not None and len(records) == 1 and "published_files" in records[0]:
            output.print_table(("what", "value"), writer_facts(records[0]))
            return
        written = [writer_row(record) for record in records if record["kind"] == WRITER]
        mounted = [mount_row(record) for record in records if record["kind"] == MOUNT]
    if written:
        output.print_table(_WRITER_COLUMNS, written, right=("behind",))
    if written and mounted:
        click.echo()
    if mounted:
        output.print_table(_MOUNT_COLUMNS, mounted, right=("behind",))
    if not records:
        output.note("no writer or mount of this user is running")


def writer_row(record: Record) -> list[str]:
    """The cells of a replicated database."""
    return [
        record["db_path"],
        record["state"],
        record.get("txid", ""),
        _behind(record, "unpublished_bytes") if "lag_ms" in record else "",
        _lease(record),
        record.get("error") or "",
    ]


def writer_facts(record: Record) -> list[tuple[str, str]]:
    """What is known of a replicated database, by name; what does not apply is left out."""
    rows = [
        ("database", str(record["db_path"])),
        ("replica", str(record.get("url") or "")),
        ("process", str(record.get("pid") or "")),
        ("state", str(record["state"])),
        ("position", str(record.get("txid") or "")),
        ("last published", str(record.get("published_at") or "")),
        ("behind", _behind(record, "unpublished_bytes")),
        ("WAL", f"{record['wal_frames']} frames" if record.get("wal_frames") else ""),
        ("published files", f"{record['published_files']}, {format_size(record['published_bytes'])}, since the start"),
        ("checkpoints", str(record["checkpoints"])),
        ("lease", _lease(record)),
        ("error", str(record.get("error") or "")),
        ("log file", str(record.get("log_file") or "")),
    ]
    return [(what, value) for what, value in rows if value]


def _lease(record: Record) -> str:
    lease = record.get("lease")
    return "" if lease is None else f"{lease['owner']}, generation {lease['generation']}"


def mount_row(record: Record) -> list[str]:
    """The cells of a mounted database."""
    return [
        record["db_path"],
        record["state"],
        record.get("txid", ""),
        _behind(record, "behind_bytes") if "lag_ms" in record else "",
        record.get("url", ""),
        record.get("error") or "",
    ]


def _behind(record: Record, size_name: str) -> str:
    lag_ms, size = record.get("lag_ms", 0), record.get(size_name) or 0
    return (f"{lag_ms / 1000:.1f} s" + (f", {format_size(size)}" if size else "")) if lag_ms else "0 s"


def mount_facts(record: Record) -> list[tuple[str, str]]:
    """What is known of a mount, by name; what does not apply is left out."""
    requests, hydration = record.get("requests") or [], record.get("hydration") or {}
    readers = record.get("readers") or []
    rows = [
        ("mount point", str(record.get("mountpoint", ""))),
        ("replica", str(record.get("url", ""))),
        ("process", str(record.get("pid", ""))),
        ("state", _state(record)),
        ("position", str(record.get("txid", ""))),
        ("committed", str(record.get("timestamp") or "")),
        ("newest known", str(record.get("newest_txid") or "")),
        ("behind", _behind(record, "behind_bytes") if "lag_ms" in record else ""),
        ("active", f"{record['active']} of at most {record['max_active']} databases" if "active" in record else ""),
        ("opened", f"{record['activations']} times, closed {record['parked']} times" if "parked" in record else ""),
        ("failed", str(record.get("failed") or "")),
        ("in use", _some(record.get("in_use") or [])),
        ("last news", f"{record['news_age_ms'] / 1000:.1f} s ago" if "news_age_ms" in record else ""),
        ("error", str(record.get("error") or "")),
        *(("reader", _reader(reader)) for reader in readers),
        ("without locks", ", ".join(map(str, record.get("clients_without_locks") or []))),
        ("stacked on it", ", ".join(map(str, record.get("stacked_on") or []))),
        ("WAL", f"{record['wal_frames']} frames" if record.get("wal_frames") else ""),
        ("hydration", _hydration(hydration)),
        ("requests", ", ".join(f"{each['purpose']} {each['requests']}" for each in requests)),
        ("received", ", ".join(_received(each) for each in requests if each["received_bytes"])),
        (
            "cost",
            f"{sum(each['usd'] for each in requests):.6f} USD by S3's price list" if record.get("is_priced") else "",
        ),
        ("cache", str(record.get("cache_directory") or "")),
        ("log file", str(record.get("log_file") or "")),
    ]
    return [(what, value) for what, value in rows if value]


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:MAX_SHOWN]) + (f" and {len(paths) - MAX_SHOWN} more" if paths[MAX_SHOWN:] else "")


def _state(record: Record) -> str:
    state, idle_ms = str(record.get("state", "")), record.get("idle_ms", 0)
    idle = state in {"slowed", "paused"}
    return f"{state}: no file has been open for {format_duration(round(idle_ms / 1000))}" if idle else state


def _reader(reader: Record) -> str:
    return f"{reader['command']} (pid {reader['pid']}) reads {reader['txid']} since {reader['since']}"


def _received(request: Record) -> str:
    return f"{request['purpose']} {format_size(request['received_bytes'])}"


def _hydration(hydration: Record) -> str:
    state = str(hydration.get("state", ""))
    pages, missing = hydration.get("pages", 0), hydration.get("missing_pages", 0)
    return f"{state}, {pages - missing} of {pages} pages" if state and pages else state


# --- checking --------------------------------------------------------------------------------------------------------


def require_healthy(records: Sequence[Record], *, max_lag_s: float) -> None:
    """Raise `NotReached`, which names each database that is failed, stopped, not running or too far behind."""
    with _of_the_usual_form():
        present = alive(records)
        sick = [text for record in present if (text := sickness(record, max_lag_s))]
    if not present:
        raise NotReached("no writer or mount of this user is running", hint="start it")
    if sick:
        raise NotReached("; ".join(sick), hint="see 'litereplica status' and the log")
