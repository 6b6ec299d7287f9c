"""Finds the replica for an argument `DB|REPLICA_URL`: the URL itself, or the URL of a local database's replica.

The replica of a database is the one configured for it; if no configuration file names it, the one that `litereplica
replicate DB URL` last published to, which is recorded in the state directory. For a URL, a configuration file that is
named with --config supplies credentials and settings: those of its replica there, else those at its top.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from litereplica.cli.config_file import config_option, default_path, no_expand_env_option, read_config, without_tilde
from litereplica.errors import UsageError
from litereplica.storage.credentials import Credentials

if TYPE_CHECKING:
    from litereplica.config import Config
    from litereplica.storage.url import ReplicaURL

METAVAR = "DB|REPLICA_URL"


@dataclass(frozen=True, slots=True)
class ReplicaOf:
    """The URL of a replica; `database` is set if the user named a database instead of a URL."""

    url: str
    database: Path | None = None
    credentials: Credentials | None = None

    @property
    def name(self) -> str:
        """The name of the database, else the last component of the URL."""
        from litereplica.storage.url import basename

        return self.database.name if self.database is not None else basename(self.url)


def replica_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `DB|REPLICA_URL`, --config and --no-expand-env to a command, which receives `replica`, a `ReplicaOf`."""

    @click.argument("source", metavar=METAVAR)
    @config_option
    @no_expand_env_option
    @wraps(function)
    def command(*, source: str, config_path: Path | None, no_expand_env: bool, **rest: Any) -> Any:
        return function(replica=find_replica(source, config_path, expand_env=not no_expand_env), **rest)

    return command


def find_replica(source: str, config_path: Path | None, *, expand_env: bool) -> ReplicaOf:
    """Return the replica of `source`, a URL or the path of a database.

    Raises:
        UsageError: the URL is invalid, no replica of the database is known, or the configuration file is invalid.
    """
    from litereplica.storage.url import parse_url, without_sqlite_scheme

    source = without_sqlite_scheme(source)
    if "://" in source:
        url = parse_url(source)
        if config_path is None:
            return ReplicaOf(source)
        return _at(url, source, read_config(config_path, expand_env=expand_env))
    database = Path(os.path.abspath(without_tilde(Path(source))))  # noqa: PTH100 - symbolic links are not resolved
    if config_path is not None or default_path().exists():
        found = _configured(database, read_config(config_path, expand_env=expand_env))
        if found is not None:
            return found
        if config_path is not None:
            raise UsageError(f"{config_path} does not name {database}", hint="see 'litereplica databases'")
    known = _published_to(database)
    if known is None:
        hint = "give the replica's URL, or name a configuration file that contains it with --config"
        raise UsageError(f"no replica of {source} is known", hint=hint)
    return ReplicaOf(known, database)


def _at(url: ReplicaURL, source: str, config: Config) -> ReplicaOf:
    """The replica at a URL, with the settings of the configured replica that it is, or is below of."""
    from litereplica.storage.url import parse_url

    best: ReplicaOf | None = None
    longest = -1
    for target in config.targets:
        root = parse_url(target.url)
        if len(root.path) > longest and _is_at(url, root):
            best = ReplicaOf(str(replace(root, path=url.path)), credentials=target.credentials)
            longest = len(root.path)
    if best is not None:
        return best
    found = config.replica_at(source)
    return ReplicaOf(found.url, credentials=found.credentials)


def _is_at(url: ReplicaURL, root: ReplicaURL) -> bool:
    """True if a URL as typed is that of a root, or is below it: what it leaves out may be anything."""
    if (url.scheme, url.bucket) != (root.scheme, root.bucket):
        return False
    if (url.endpoint or root.endpoint, url.region or root.region) != (root.endpoint, root.region):
        return False
    return not root.path or PurePosixPath(url.path).is_relative_to(root.path)


def _configured(database: Path, config: Config) -> ReplicaOf | None:
    from litereplica.writer.fleet.replica_root import join_url
    from litereplica.writer.settings import DatabaseTarget

    for target in config.targets:
        if isinstance(target, DatabaseTarget):
            if target.path == database:
                return ReplicaOf(target.url, database, target.credentials)
        elif database.is_relative_to(target.path) and database != target.path:
            prefix = PurePosixPath(database.relative_to(target.path))
            if target.recursive or len(prefix.parts) == 1:
                return ReplicaOf(join_url(target.url, str(prefix)), database, target.credentials)
    return None


def _published_to(database: Path) -> str | None:
    from litereplica.writer.database.state_directory import StateDirectory

    mark = StateDirectory(database.resolve()).read_mark()
    return mark.url if mark is not None else None
