"""Statistics of the databases that a process replicates.

`ManagedDatabase.statistics` makes one `DatabaseStatistics`, `Supervisor.statistics` a `FleetStatistics` of all of them.
The control socket, `litereplica status` and the lag in the log read only these records.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from litereplica.ltxstore.lease_record import Lease
from litereplica.storage.wrappers import StorageStatistics
from litereplica.types import TXID
from litereplica.writer.statistics import Statistics


class State(StrEnum):
    """The state of a database in a fleet."""

    STARTING = "starting"
    ACTIVE = "active"
    DORMANT = "dormant"  # parked: idle, closed, and watched with stat() once a second
    WAITING = "waiting"  # for the lease that another writer holds
    FAILED = "failed"  # tried again with back-off
    STOPPED = "stopped"  # by `litereplica stop`, until `litereplica start`
    GONE = "gone"  # deleted, renamed or no longer configured


@dataclass(frozen=True, slots=True)
class DatabaseStatistics:
    """Statistics of one database. Counts are since the start of the process.

    `txid` is the newest published TXID (0: none, or not read yet). `wal_frames` counts the frames that no checkpoint
    has copied into the database file. `unpublished_bytes` is the size of the committed part of the WAL that is not
    published, and `behind_s` the time in seconds since everything was published, 0 if everything is. `published_ms` is
    the time of the last file that this process published (0: none). The counts of rounds are as in `Statistics`.
    """

    path: Path
    url: str
    state: State
    txid: TXID = 0
    files: int = 0
    pages: int = 0
    bytes: int = 0
    checkpoints: int = 0
    wal_frames: int = 0
    unpublished_bytes: int = 0
    behind_s: float = 0.0
    error: str | None = None
    lease: Lease | None = None
    published_ms: int = 0
    syncs: int = 0
    sync_errors: int = 0
    sync_s: float = 0.0

    def ended(self, state: State) -> DatabaseStatistics:
        """The record of a database that is no longer replicated: without a lease and without lag."""
        return replace(self, state=state, lease=None, behind_s=0.0, unpublished_bytes=0)


@dataclass(frozen=True, slots=True)
class FleetStatistics:
    """Statistics of all databases by path, followed by the last ones that are gone.

    `leases` maps the URL of each replica root to the lease that is held there, `requests` to the requests made there.
    """

    databases: tuple[DatabaseStatistics, ...]
    leases: dict[str, Lease]
    requests: dict[str, StorageStatistics] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line: how many databases are in which state, by how much the last one is behind, and the first error."""
        here = [each for each in self.databases if each.state is not State.GONE]
        counts = Counter(each.state.value for each in here)
        text = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no database"
        behind_s = max((each.behind_s for each in here), default=0.0)
        error = next((f"; {each.path}: {each.error}" for each in here if each.error), "")
        return text + (f", at most {behind_s:.0f} s behind" if behind_s >= 1 else "") + error


NOTHING_DONE = Statistics(0, 0, 0, 0, 0, 0)


def accumulated(before: Statistics, now: Statistics) -> Statistics:
    """The sums of the counts of two successive replicators of one database, with the newest TXID and no WAL frames."""
    return Statistics(
        now.txid or before.txid,
        before.files + now.files,
        before.pages + now.pages,
        before.bytes + now.bytes,
        before.checkpoints + now.checkpoints,
        0,
        published_ms=now.published_ms or before.published_ms,
        syncs=before.syncs + now.syncs,
        sync_errors=before.sync_errors + now.sync_errors,
        sync_s=before.sync_s + now.sync_s,
    )
