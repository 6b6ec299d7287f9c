"""How one database is replicated."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from litereplica.file_access import AS_USUAL, WantedAccess
from litereplica.times import wall_clock_ms
from litereplica.types import FileInfo
from litereplica.writer.backoff import Pace
from litereplica.writer.database.parked import Parked
from litereplica.writer.database.state_directory import Lineage, StateDirectory
from litereplica.writer.publish.lease_keeper import LeaseKeeper, LeaseMode
from litereplica.writer.settings import STOP_LIMIT_S, SYNC_INTERVAL_S
from litereplica.writer.sync_requests import SyncRequests


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicatorOptions:
    """How `open_replicator` replicates a database.

    `take_over`, `verify_source`, `in_doubt` and `lineage`: see `WriterContext`. `lease` is the mode of the replica's
    own lease; `lease_keeper` replaces it by another one. `access` is that of new files of the replica. `within` is the
    directory that links must not lead out of. `parked` is what the last run of this process returned. `on_published`
    is called for every file. `syncs` are requests to publish at once. While `wants_snapshot` is true, snapshots are
    published that are made from the database.
    """

    lease: LeaseMode = LeaseMode.OFF
    take_over: bool = False
    verify_source: bool = False
    in_doubt: bool = False
    lineage: Lineage | None = None
    within: Path | None = None
    lease_keeper: Callable[[StateDirectory], LeaseKeeper] | None = None
    access: WantedAccess = AS_USUAL
    sync_interval_s: float = SYNC_INTERVAL_S
    stop_limit_s: float = STOP_LIMIT_S
    now_ms: Callable[[], int] = wall_clock_ms
    rng: random.Random = field(default_factory=random.Random)
    pace: Pace = field(default_factory=Pace)
    parked: Parked | None = None
    on_published: Callable[[FileInfo], None] = lambda info: None
    syncs: SyncRequests = field(default_factory=SyncRequests)
    wants_snapshot: Callable[[], bool] = lambda: False
