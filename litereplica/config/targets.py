"""Parses the databases of a configuration, each with its replica and its settings."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from litereplica.compaction.levels import Levels
from litereplica.compaction.retention import RetentionPolicy, Tier
from litereplica.config import keys
from litereplica.config.document import Section
from litereplica.config.replica import parse_replica
from litereplica.errors import UsageError
from litereplica.file_access import MODE_HINT, WantedAccess, parse_mode
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.settings import DatabaseTarget, DirectoryTarget, Target, WriterSettings

_SCHEMES = ("sqlite3://", "sqlite://")
"""Prefixes that Litestream removes from a path."""


@dataclass(frozen=True, slots=True)
class ConfiguredDatabase:
    """A configured database, or a directory of databases. `line` is its line in the file.

    `restore_if_missing`: databases that do not exist are restored before they are replicated.
    """

    target: Target
    restore_if_missing: bool
    line: int


def absolute_path(text: str, *, directory: Path, home: Path | None) -> str:
    """Return an absolute path without `..`; `~` is replaced by `home`."""
    for scheme in _SCHEMES:
        text = text.removeprefix(scheme)
    if (text == "~" or text.startswith("~/")) and home is not None:
        text = str(home) + text[1:]
    return "/" + posixpath.normpath(posixpath.join(str(directory), text)).lstrip("/")


def parse_settings(section: Section, base: WriterSettings, notes: list[str]) -> WriterSettings:
    """Parse the settings of replication in `section`; `base` has the defaults."""
    retention = _retention(section, base.retention, notes)
    levels = base.levels or Levels()
    if "levels" in section:
        levels = replace(levels, intervals_ms=_intervals(section, notes))
    snapshot = section.section("snapshot")
    if snapshot is not None:
        notes += keys.check(snapshot, keys.SNAPSHOT)
        levels = replace(levels, snapshot_interval_ms=snapshot.period_ms("interval", levels.snapshot_interval_ms))
    sync_interval_ms = section.duration_ms("sync-interval")
    # in Litestream 0 means a single attempt; here there is always only one
    stop_limit_ms = section.period_ms("shutdown-sync-timeout", None, zero_is_endless=True)
    return WriterSettings(
        sync_interval_s=base.sync_interval_s if sync_interval_ms is None else sync_interval_ms / 1000,
        stop_limit_s=base.stop_limit_s if stop_limit_ms is None else stop_limit_ms / 1000,
        lease=_lease(section, base.lease),
        levels=levels,
        retention=retention,
        access=_access(section, base.access),
    )


def parse_databases(
    document: Section, defaults: WriterSettings, *, absolute: Callable[[str], str], notes: list[str]
) -> tuple[ConfiguredDatabase, ...]:
    """Parse the databases under `dbs`. Raises `UsageError`, also if two have the same path or the same replica."""
    found = [_database(section, document, defaults, absolute, notes) for section in document.sections("dbs")]
    _require_apart(document, found)
    return tuple(found)


def _database(
    section: Section, document: Section, defaults: WriterSettings, absolute: Callable[[str], str], notes: list[str]
) -> ConfiguredDatabase:
    notes += keys.check(section, keys.DATABASE)
    path, directory = section.text("path"), section.text("dir")
    if bool(path) == bool(directory):
        message = f"{section.path} names {'both a path and a dir' if path else 'neither a path nor a dir'}"
        raise section.error(message, hint="name one database as path, or a directory of them as dir")
    replica_section = _replica_section(section)
    notes += keys.check(replica_section, keys.REPLICA)
    settings = parse_settings(section, defaults, notes)
    interval_ms = replica_section.duration_ms("sync-interval")
    if interval_ms is not None:
        settings = replace(settings, sync_interval_s=interval_ms / 1000)
    replica = parse_replica(replica_section, document, absolute=absolute)
    notes += replica.notes
    target: Target
    if directory:
        target = DirectoryTarget(
            Path(absolute(directory)),
            replica.url,
            settings,
            pattern=section.text("pattern", "*"),
            recursive=bool(section.flag("recursive")),
            watch=bool(section.flag("watch")),
            credentials=replica.credentials,
        )
    else:
        for key in ("pattern", "recursive", "watch"):
            if key in section and not section.entry(key).is_empty:
                raise section.error(f"{section.name(key)} belongs to a dir", key=key, hint="name a dir, or remove it")
        target = DatabaseTarget(Path(absolute(path)), replica.url, settings, credentials=replica.credentials)
    return ConfiguredDatabase(target, bool(section.flag("restore-if-db-not-exists")), section.line)


def _replica_section(section: Section) -> Section:
    replica, replicas = section.section("replica"), section.sections("replicas")
    if replica is not None and replicas:
        raise section.error(f"{section.path} has both replica and replicas", key="replicas", hint="leave one of them")
    if len(replicas) > 1:
        hint = "publish to one, and copy from there"
        raise section.error(f"{section.name('replicas')}: a database has one replica", key="replicas", hint=hint)
    found = replica or next(iter(replicas), None)
    if found is None:
        raise section.error(f"{section.path} has no replica", hint="add replica: and below it url: s3://bucket/path")
    return found


def _intervals(section: Section, notes: list[str]) -> tuple[int, ...]:
    intervals = []
    for level in section.sections("levels"):
        notes += keys.check(level, keys.LEVEL)
        interval_ms = level.duration_ms("interval")
        if interval_ms is None:
            raise level.error(f"{level.path} has no interval", hint="write interval: 5m")
        intervals.append(interval_ms)
    with _blamed(section, "levels"):
        Levels(tuple(intervals))
    return tuple(intervals)


def _access(section: Section, base: WantedAccess) -> WantedAccess:
    text = section.text("mode")
    mode = parse_mode(text) if text else base.mode
    if text and mode is None:
        raise section.error(f"{section.name('mode')} is not a mode of files", key="mode", hint=MODE_HINT)
    return WantedAccess(mode, section.text("group") or base.group)


def _retention(section: Section, base: RetentionPolicy, notes: list[str]) -> RetentionPolicy:
    snapshot = section.section("snapshot")
    policy = RetentionPolicy(
        l0_ms=section.period_ms("l0-retention", base.l0_ms, zero_is_endless=True),
        snapshot_ms=base.snapshot_ms if snapshot is None else snapshot.period_ms("retention", base.snapshot_ms),
    )
    retention = section.section("retention")
    if retention is None:
        tiers = base.tiers
    else:
        notes += keys.check(retention, keys.RETENTION)
        if retention.flag("enabled") is False:
            return RetentionPolicy(l0_ms=None, snapshot_ms=None)
        tiers = tuple(_tier(each, notes) for each in retention.sections("tiers"))
    with _blamed(section, "retention"):
        return replace(policy, tiers=tiers)


def _tier(section: Section, notes: list[str]) -> Tier:
    notes += keys.check(section, keys.TIER)
    every_ms, keep_ms = section.duration_ms("every"), section.duration_ms("keep")
    if every_ms is None or keep_ms is None:
        raise section.error(f"{section.path} needs every and keep", hint="write {every: 1h, keep: 7d}")
    return Tier(every_ms, keep_ms)


def _lease(section: Section, default: LeaseMode) -> LeaseMode:
    text = section.text("lease").lower()
    if "lease" not in section:
        return default
    if section.entry("lease").is_empty:  # YAML reads a bare `off` as false
        return LeaseMode.OFF if text else default
    try:
        return LeaseMode(text)
    except ValueError:
        hint = f"write {', '.join(mode.value for mode in LeaseMode)}"
        raise section.error(f"{section.name('lease')} is not a lease mode", key="lease", hint=hint) from None


@contextmanager
def _blamed(section: Section, key: str) -> Iterator[None]:
    """Add the line of the key to errors of the block."""
    try:
        yield
    except UsageError as exc:
        raise section.error(exc.message, key=key, hint=exc.hint) from exc


def _require_apart(document: Section, databases: Sequence[ConfiguredDatabase]) -> None:
    """Raise `UsageError` if two entries have the same database or the same replica."""
    by_path: dict[Path, ConfiguredDatabase] = {}
    by_url: dict[str, ConfiguredDatabase] = {}
    for database in databases:
        path, url = database.target.path, database.target.url
        if path in by_path:
            raise _both(document, by_path[path], database, f"{path} is named twice", "leave one of them")
        if url in by_url:
            what = f"{by_url[url].target.path} and {path} have the same replica"
            raise _both(document, by_url[url], database, what, "give each its own replica path")
        by_path[path] = by_url[url] = database
    for directory in databases:
        if isinstance(directory.target, DirectoryTarget):
            for database in databases:
                path = database.target.path
                if isinstance(database.target, DatabaseTarget) and _contains(directory.target, path):
                    what = f"{path} is one of the databases of {directory.target.path}"
                    raise _both(document, directory, database, what, "leave one of them, or change the pattern")


def _both(document: Section, first: ConfiguredDatabase, second: ConfiguredDatabase, what: str, hint: str) -> UsageError:
    lines = sorted({first.line, second.line})
    where = f"line{'s' if len(lines) > 1 else ''} {' and '.join(map(str, lines))}"
    return UsageError(f"{document.file}, {where}: {what}", hint=hint)


def _contains(directory: DirectoryTarget, path: Path) -> bool:
    inside = directory.path in path.parents if directory.recursive else directory.path == path.parent
    return inside and fnmatchcase(path.name, directory.pattern)
