"""What a replica tells of itself: one frozen record, which status, metrics and logs read."""

from __future__ import annotations

from dataclasses import dataclass

from litereplica.storage.wrappers import StorageStatistics
from litereplica.types import TXID, Pos


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatistics:
    """A moment of a replica. Times ending in `_at` are those of the replica's clock, in seconds.

    `newest_txid` is the highest TXID that a listing or a file has shown so far. `polls_behind` counts the polls since
    the last progress while newer TXIDs were known, and `reason` says why; 0 and "" when all is well.
    `requests` is None unless the store is metered.
    """

    pos: Pos
    timestamp_ms: int
    page_size: int
    commit: int
    newest_txid: TXID
    polls: int
    heals: int
    last_success_at: float
    last_progress_at: float
    polls_behind: int
    reason: str
    last_error: str
    pages_from_memory: int
    pages_from_disk: int
    pages_from_store: int
    files: int
    requests: StorageStatistics | None
