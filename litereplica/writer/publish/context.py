"""The objects that all parts of one database's writer work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from litereplica.ltxstore.store import LTXStore
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.database.state_directory import Lineage, StateDirectory
from litereplica.writer.database.wal_follower import WalFollower
from litereplica.writer.publish.lease_keeper import LeaseKeeper
from litereplica.writer.publish.outage_log import OutageLog
from litereplica.writer.publish.page_checksums import PageChecksums


@dataclass(frozen=True, slots=True)
class WriterContext:
    """One database and its replica: what is read from, what is written to, and what is kept beside the database.

    `take_over`: the database is published as the newest state although another writer's is newer. `verify_source`:
    the database is compared with its replica at the start in any case. `in_doubt`: something
    else than SQLite has written to its file. `lineage` is the one with which this process has published the replica,
    maybe from another file.
    """

    database: SQLiteDatabase
    wal: WalFollower
    store: LTXStore
    state: StateDirectory
    checksums: PageChecksums
    lease: LeaseKeeper
    outages: OutageLog
    now_ms: Callable[[], int]
    take_over: bool = False
    verify_source: bool = False
    in_doubt: bool = False
    lineage: Lineage | None = None
