"""Finds the replica for an argument `DB|REPLICA_URL`: the URL itself, or the URL of a local database's replica.

The replica of a database is the one configured for it; if no configuration file names it, the one that `litereplica
replicate DB URL` last published to, which is recorded in the state directory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from litereplica.cli.config_file import DEFAULT_PATH, read_config
from litereplica.errors import UsageError
from litereplica.storage.credentials import Credentials

if TYPE_CHECKING:
    from litereplica.config import Config


@dataclass(frozen=True, slots=True)
class ReplicaOf:
    """The URL of a replica; `database` is set if the user named a database instead of a URL."""

    url: str
    database: Path | None = None
    credentials: Credentials | None = None


def find_replica(source: str, config_path: Path | None, *, expand_env: bool) -> ReplicaOf:
    """Return the replica of `source`, a URL or the path of a database.

    `config_path` and `expand_env` are used for a database only.

    Raises:
        UsageError: the URL is invalid, or no replica of the database is known.
    """
    if "://" in source:
        from litereplica.storage.url import parse_url

        parse_url(source)
        return ReplicaOf(source)
    database = Path(os.path.abspath(source))  # noqa: PTH100 - symbolic links are not resolved
    if config_path is not None or DEFAULT_PATH.exists():
        found = _configured(database, read_config(config_path, expand_env=expand_env))
        if found is not None:
            return found
        if config_path is not None:
            raise UsageError(f"{config_path} does not name {database}", hint="see 'litereplica databases'")
    url = _published_to(database)
    if url is None:
        hint = "give the replica's URL, or name a configuration file that contains it with --config"
        raise UsageError(f"no replica of {source} is known", hint=hint)
    return ReplicaOf(url, database)


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
