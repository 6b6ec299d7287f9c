"""The statistics of a replica: one frozen record, which status, metrics and logs read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from litereplica.replica.request_costs import Purpose, PurposeCosts
from litereplica.storage.wrappers import StorageStatistics
from litereplica.types import TXID, Pos


class HydrationState(StrEnum):
    """How far hydration is."""

    OFF = "off"  # not wanted, or not begun
    TOO_LARGE = "too large"  # the page store cannot hold the database
    RUNNING = "running"
    WAITING = "waiting"  # after a failure
    COMPLETE = "complete"  # every page was at hand


@dataclass(frozen=True, slots=True, kw_only=True)
class HydrationStatistics:
    """`files_verified` have been read whole by hydration, and had the right CRC."""

    state: HydrationState
    pages: int
    pages_missing: int
    pages_fetched: int
    files_verified: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatistics:
    """A moment of a replica. Times ending in `_at` are those of the replica's clock, in seconds.

    `newest_txid` is the highest TXID that a listing or a file has shown so far, and `behind_bytes` the size of the L0
    files beyond `pos` that the last listing has shown. `polls_behind` counts the polls since
    the last progress while newer TXIDs were known, and `reason` says why; 0 and "" when all is well. `staleness_s` is
    how long ago nothing newer than `pos` was known. `requests` is None unless the store is metered; the `ledger` has
    them by purpose, and `is_priced` is False if they cost nothing.
    """

    pos: Pos
    timestamp_ms: int
    page_size: int
    commit: int
    newest_txid: TXID
    behind_bytes: int
    polls: int
    heals: int
    last_success_at: float
    last_progress_at: float
    staleness_s: float
    polls_behind: int
    reason: str
    last_error: str
    pages_from_memory: int
    pages_from_disk: int
    pages_from_store: int
    files: int
    requests: StorageStatistics | None
    ledger: Mapping[Purpose, PurposeCosts]
    is_priced: bool
    hydration: HydrationStatistics
