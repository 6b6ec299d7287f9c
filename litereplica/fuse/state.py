"""What is mounted, and its state at one moment: what the control socket, the extended attributes and status files say.

`MountState.record` is for the mount's user and root, `MountState.public` for everybody who may read the database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from litereplica.fuse.client_locks import Reader
from litereplica.fuse.options import MountOptions
from litereplica.replica.poll_schedule import PollScheduleStatistics, PollState
from litereplica.replica.statistics import ReplicaStatistics
from litereplica.times import format_time
from litereplica.types import TXID

FOLLOWING = "following"
FAILED = "failed"  # the last poll failed, or gets no answer
BEHIND = "behind"  # newer files are known, and cannot be applied
FIXED = "fixed"  # a past state, which does not follow
PREFIX = "prefix"  # the mount of many databases as a whole


@dataclass(frozen=True, slots=True, kw_only=True)
class MountState:
    """The state of a mount. `txid` and `timestamp_ms` are the position that a new transaction sees.

    `current_age_s` is the time since everything known was applied, `polling` is None for a past state, which is
    `fixed`. `wal_frames` are the frames of the virtual WAL. `readers` looks for the read transactions that are open.
    """

    options: MountOptions
    replica: ReplicaStatistics
    txid: TXID
    timestamp_ms: int
    fixed: bool = False
    error: str = ""
    current_age_s: float = 0.0
    news_age_s: float = 0.0
    polling: PollScheduleStatistics | None = None
    wal_frames: int = 0
    readers: Callable[[], Sequence[Reader]] = tuple
    clients_without_locks: Sequence[str] = ()
    stacked_on: Sequence[str] = ()

    @property
    def state(self) -> str:
        """One word: `following`, `slowed`, `paused`, `behind`, `failed` or `fixed`."""
        if self.fixed:
            return FAILED if self.error else FIXED
        if self.error:
            return BEHIND if self.replica.reason and not self.replica.last_error else FAILED
        if self.polling is not None and self.polling.state is not PollState.ACTIVE:
            return self.polling.state.value
        return FOLLOWING

    @property
    def lag_ms(self) -> int:
        """Milliseconds since everything known was applied; 0 if nothing newer is known, and there is no error."""
        is_behind = self.error or self.replica.newest_txid > self.txid
        return round(self.current_age_s * 1000) if is_behind and not self.fixed else 0

    def public(self) -> dict[str, Any]:
        """Return what every user may know."""
        return {
            "name": self.options.name,
            "txid": f"{self.txid:016x}",
            "timestamp": format_time(self.timestamp_ms) if self.timestamp_ms else None,
            "lag_ms": self.lag_ms,
        }

    def extended(self, *, is_insider: bool) -> dict[str, str]:
        """Return the extended attributes of the database file; a user other than the mount's sees no state."""
        shown = {
            "txid": f"{self.txid:016x}",
            "timestamp": format_time(self.timestamp_ms),
            "lag_ms": str(self.lag_ms),
        }
        return {**shown, "behind_bytes": str(self.replica.behind_bytes), "status": self.state} if is_insider else shown

    def record(self) -> dict[str, Any]:
        """Return the JSON object of the mounted database."""
        options, replica = self.options, self.replica
        hydration = replica.hydration
        return {
            **self.public(),
            "db_path": str(options.path / options.name),
            "mountpoint": str(options.path),
            "url": options.url,
            "state": self.state,
            **({} if self.fixed else self._following()),
            "error": self.error or None,
            "page_size_bytes": replica.page_size,
            "size_bytes": replica.page_size * replica.commit,
            "wal_frames": self.wal_frames,
            "readers": [each.record() for each in self.readers()],
            "clients_without_locks": list(self.clients_without_locks),
            "stacked_on": list(self.stacked_on),
            "hydration": {
                "state": hydration.state.value,
                "pages": hydration.pages,
                "missing_pages": hydration.pages_missing,
                "verified_files": hydration.files_verified,
            },
            "cache_directory": None if options.cache_dir is None else str(options.cache_dir),
            "cached_reads": {
                "memory_pages": replica.pages_from_memory,
                "disk_pages": replica.pages_from_disk,
                "store_pages": replica.pages_from_store,
            },
            "ltx_files": replica.files,
            "requests": self.requests(),
            "is_priced": replica.is_priced,
        }

    def _following(self) -> dict[str, Any]:
        polling = self.polling
        return {
            "newest_txid": f"{max(self.replica.newest_txid, self.txid):016x}",
            "behind_bytes": self.replica.behind_bytes,
            "news_age_ms": round(self.news_age_s * 1000),
            "idle_ms": 0 if polling is None else round(polling.idle_s * 1000),
            "polls": self.replica.polls,
        }

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests of each purpose that has any, with their price by S3's list, None for other stores."""
        found = []
        for purpose, costs in self.replica.ledger.items():
            by_operation = costs.by_operation.values()
            if by_operation:
                found.append(
                    {
                        "purpose": purpose.value,
                        "requests": sum(each.requests for each in by_operation),
                        "errors": sum(sum(each.failures.values()) for each in by_operation),
                        "received_bytes": sum(each.bytes_received for each in by_operation),
                        "usd": costs.usd if self.replica.is_priced else None,
                    }
                )
        return found
