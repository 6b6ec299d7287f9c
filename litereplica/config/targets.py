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
from litereplica.config.findings import Findings
from litereplica.config.replica import parse_replica
from litereplica.errors import UsageError
from litereplica.file_access import MODE_HINT, WantedAccess, parse_mode
from litereplica.storage.s3_options import S3Options
from litereplica.storage.url import parse_url, without_sqlite_scheme
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.settings import DatabaseTarget, DirectoryTarget, Target, WriterSettings


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
    text = without_sqlite_scheme(text)
    if (text == "~" or text.startswith("~/")) and home is not None:
        text = str(home) + text[1:]
    return "/" + posixpath.normpath(posixpath.join(str(directory), text)).lstrip("/")


def parse_settings(section: Section, base: WriterSettings, findings: Findings) -> WriterSettings:
    """Parse the settings of replication in `section`; `base` has the defaults."""
    retention = _retention(section, base.retention, findings)
    levels = base.levels or Levels()
    if "levels" in section:
        levels = replace(levels, intervals_ms=_intervals(section, findings))
    snapshot = section.section("snapshot")
    if snapshot is not None:
        keys.check(snapshot, keys.SNAPSHOT, findings)
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
    document: Section, defaults: WriterSettings, *, absolute: Callable[[str], str], findings: Findings
) -> tuple[ConfiguredDatabase, ...]:
    """Parse the databases under `dbs`; errors are left to `findings`, also if two have the same path or replica."""
    found: list[ConfiguredDatabase] = []
    with findings.caught():
        for section in document.sections("dbs"):
            with findings.caught():
                database = _database(section, document, defaults, absolute, findings)
                found += [] if database is None else [database]
    _require_apart(document, found, findings)
    return tuple(found)


def _database(
    section: Section, document: Section, defaults: WriterSettings, absolute: Callable[[str], str], findings: Findings
) -> ConfiguredDatabase | None:
    """The database of a section; None if there are errors, which are left to `findings`, or the first one is raised."""
    before = findings.errors
    keys.check(section, keys.DATABASE, findings)
    with findings.caught():
        _require_one_place(section)
    settings, credentials, url = defaults, None, ""
    with findings.caught():
        settings = parse_settings(section, defaults, findings)
    replica_section = _replica_section(section)
    keys.check(replica_section, keys.REPLICA, findings)
    with findings.caught():
        settings = _of_replica(replica_section, section, document, settings)
    with findings.caught():
        replica = parse_replica(replica_section, document, absolute=absolute)
        url, credentials = replica.url, replica.credentials
    if findings.errors > before:
        return None
    path, directory = section.text("path"), section.text("dir")
    target: Target
    if directory:
        target = DirectoryTarget(
            Path(absolute(directory)),
            url,
            settings,
            pattern=section.text("pattern", "*"),
            recursive=bool(section.flag("recursive")),
            watch=bool(section.flag("watch")),
            credentials=credentials,
        )
    else:
        target = DatabaseTarget(Path(absolute(path)), url, settings, credentials=credentials)
    return ConfiguredDatabase(target, bool(section.flag("restore-if-db-not-exists")), section.line)


def _require_one_place(section: Section) -> None:
    """Raise `UsageError` unless the section names a database or a directory, and what belongs to it."""
    path, directory = section.text("path"), section.text("dir")
    if bool(path) == bool(directory):
        message = f"{section.path} names {'both a path and a dir' if path else 'neither a path nor a dir'}"
        raise section.error(message, hint="name one database as path, or a directory of them as dir")
    if not directory:
        for key in ("pattern", "recursive", "watch"):
            if key in section and not section.entry(key).is_empty:
                raise section.error(f"{section.name(key)} belongs to a dir", key=key, hint="name a dir, or remove it")


def _of_replica(replica: Section, database: Section, document: Section, base: WriterSettings) -> WriterSettings:
    """The settings that stand with the replica: its own, and those of Litestream 0.3, unless today's are given."""
    settings = base
    interval_ms = replica.duration_ms("sync-interval")
    if interval_ms is not None:
        settings = replace(settings, sync_interval_s=interval_ms / 1000)
    snapshots = [each for each in (database.section("snapshot"), document.section("snapshot")) if each is not None]
    every_ms, keep_ms = replica.duration_ms("snapshot-interval"), replica.duration_ms("retention")
    if every_ms is not None and not any("interval" in each for each in snapshots):
        levels = replace(settings.levels or Levels(), snapshot_interval_ms=every_ms)
        settings = replace(settings, levels=levels)
    if keep_ms is not None and not any("retention" in each for each in snapshots):
        with _blamed(replica, "retention"):
            settings = replace(settings, retention=replace(settings.retention, snapshot_ms=keep_ms))
    return settings


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


def _intervals(section: Section, findings: Findings) -> tuple[int, ...]:
    intervals = []
    for level in section.sections("levels"):
        keys.check(level, keys.LEVEL, findings)
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


def _retention(section: Section, base: RetentionPolicy, findings: Findings) -> RetentionPolicy:
    snapshot = section.section("snapshot")
    policy = RetentionPolicy(
        l0_ms=section.period_ms("l0-retention", base.l0_ms, zero_is_endless=True),
        snapshot_ms=base.snapshot_ms if snapshot is None else snapshot.period_ms("retention", base.snapshot_ms),
    )
    retention = section.section("retention")
    if retention is None:
        tiers = base.tiers
    else:
        keys.check(retention, keys.RETENTION, findings)
        if retention.flag("enabled") is False:
            return RetentionPolicy(l0_ms=None, snapshot_ms=None)
        tiers = tuple(_tier(each, findings) for each in retention.sections("tiers"))
    with _blamed(section, "retention"):
        return replace(policy, tiers=tiers)


def _tier(section: Section, findings: Findings) -> Tier:
    keys.check(section, keys.TIER, findings)
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


def _require_apart(document: Section, databases: Sequence[ConfiguredDatabase], findings: Findings) -> None:
    """Note an error for each two entries that have the same database or the same replica."""
    by_path: dict[Path, ConfiguredDatabase] = {}
    by_url: dict[str, ConfiguredDatabase] = {}
    for database in databases:
        path, url = database.target.path, str(replace(parse_url(database.target.url), options=S3Options()))
        with findings.caught():
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
                    with findings.caught():
                        raise _both(document, directory, database, what, "leave one of them, or change the pattern")


def _both(document: Section, first: ConfiguredDatabase, second: ConfiguredDatabase, what: str, hint: str) -> UsageError:
    lines = sorted({first.line, second.line})
    where = f"line{'s' if len(lines) > 1 else ''} {' and '.join(map(str, lines))}"
    return UsageError(f"{document.file}, {where}: {what}", hint=hint)


def _contains(directory: DirectoryTarget, path: Path) -> bool:
    inside = directory.path in path.parents if directory.recursive else directory.path == path.parent
    return inside and fnmatchcase(path.name, directory.pattern)
