"""Settings of a writer: which databases are replicated where, and how.

The configuration file and the command line make these records; `fleet/` acts on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from litereplica.compaction.levels import Levels
from litereplica.compaction.retention import RetentionPolicy
from litereplica.file_access import AS_USUAL, WantedAccess
from litereplica.storage.credentials import Credentials
from litereplica.writer.publish.lease_keeper import LeaseMode

SYNC_INTERVAL_S = 1.0
"""Litestream's default: at most 86,400 files a day."""
STOP_LIMIT_S = 5.0
"""Time limit for publishing the remaining transactions on a stop: service managers wait for 10 s or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSettings:
    """How databases are replicated. If `levels` is None, nothing is compacted and only the first snapshot is made.

    `take_over`: publish a database even if it does not continue what another writer has published. `verify_source`:
    compare every database with its replica at the start, page by page. `force_snapshot`: when everything is published
    once, publish a snapshot that is made from the database. `enforce_retention`: then delete what `retention` does not
    need. `access` is that of new files of a replica in a directory.
    """

    sync_interval_s: float = SYNC_INTERVAL_S
    stop_limit_s: float = STOP_LIMIT_S
    lease: LeaseMode = LeaseMode.HOLD
    take_over: bool = False
    verify_source: bool = False
    force_snapshot: bool = False
    enforce_retention: bool = False
    levels: Levels | None = field(default_factory=Levels)
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    access: WantedAccess = AS_USUAL

    @property
    def opens_all(self) -> bool:
        """True if databases that have not changed since the last run are opened, too."""
        return self.verify_source or self.force_snapshot or self.enforce_retention


@dataclass(frozen=True, slots=True)
class DatabaseTarget:
    """One database and the root of its replica, which `open_ltx_store(url, credentials=credentials)` opens."""

    path: Path
    url: str
    settings: WriterSettings
    credentials: Credentials | None = None


@dataclass(frozen=True, slots=True)
class DirectoryTarget:
    """The databases of a directory; each has the prefix of its relative path below `url`.

    `pattern` is a shell pattern for their file names; `recursive` includes those of subdirectories; `watch` follows
    those that appear and vanish.
    """

    path: Path
    url: str
    settings: WriterSettings
    pattern: str = "*"
    recursive: bool = False
    watch: bool = True
    credentials: Credentials | None = None


Target: TypeAlias = DatabaseTarget | DirectoryTarget
