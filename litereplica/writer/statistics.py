"""Counts of what has been published since a database was opened, and the lag of the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from litereplica.ltxstore.lease_record import Lease
from litereplica.times import wall_clock_ms
from litereplica.types import TXID
from litereplica.writer.database.checkpoint import LARGE_WAL_FRAMES
from litereplica.writer.publish.publisher import Prepared

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of one open database, since it was opened.

    `txid` is the newest published TXID, `wal_frames` the number of WAL frames that are not in the database file,
    `lease` the lease while it is held. `unpublished_bytes` is the size of the committed part of the WAL that is not
    published, `behind_s` the time in seconds since everything was published. `waits` is True while another writer holds
    the lease. `error` is that of the last attempt to publish, `published_ms` the time of the last file (0: none yet).
    `syncs` counts the rounds of publishing, `sync_errors` those that failed, and `sync_s` is the time in seconds that
    those took which had something to publish.
    """

    txid: TXID
    files: int
    pages: int
    bytes: int
    checkpoints: int
    wal_frames: int
    lease: Lease | None = None
    unpublished_bytes: int = 0
    behind_s: float = 0.0
    waits: bool = False
    error: str | None = None
    published_ms: int = 0
    syncs: int = 0
    sync_errors: int = 0
    sync_s: float = 0.0


class ReplicationCounters:
    """Counts for the database at `path`. `is_waiting`, `error` and the `sync` counts are as in `Statistics`."""

    def __init__(self, path: Path) -> None:
        self.files = self.pages = self.bytes = self.checkpoints = self.syncs = self.sync_errors = 0
        self.sync_s = 0.0
        self.is_waiting = False
        self.error: str | None = None
        self.published_ms = 0
        self._path = path
        self._is_current = False
        self._current_s = trio.current_time()  # when everything was last known to be published
        self._began_s: float | None = None  # when the round began that has something to publish
        self._warned_frames = LARGE_WAL_FRAMES // 2

    @property
    def behind_s(self) -> float:
        """Seconds since everything was published; 0 if everything is."""
        return 0.0 if self._is_current else trio.current_time() - self._current_s

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark the database as waiting for the lease of another writer during the block."""
        self.is_waiting = True
        yield
        self.is_waiting = False

    def note_error(self, error: str) -> bool:
        """Record a failure to publish. Returns False if the previous attempt failed with the same error."""
        self._end_sync()
        self.sync_errors += 1
        previous, self.error = self.error, error
        return error != previous

    def note_success(self) -> None:
        """Record that publishing succeeded."""
        self.error = None

    def note_behind(self) -> None:
        """Record that something may be unpublished."""
        self._is_current = False
        if self._began_s is None:
            self._began_s = trio.current_time()

    def note_current(self) -> None:
        """Record that a round has published everything that was committed."""
        self._is_current, self._current_s = True, trio.current_time()
        self._end_sync()

    def _end_sync(self) -> None:
        self.syncs += 1
        if self._began_s is not None:
            self.sync_s += trio.current_time() - self._began_s
            self._began_s = None

    def count(self, published: Prepared, *, wal_frames: int) -> None:
        """Count a published file. `wal_frames` is the number of WAL frames that are not in the database file."""
        self.files += 1
        self.published_ms = wall_clock_ms()
        self.pages += published.pages
        self.bytes += published.info.size
        log.log(
            logging.INFO if published.whole else logging.DEBUG,
            "published %s of %s: %d pages%s, %d bytes",
            published.info, self._path, published.pages, " (all)" if published.whole else "", published.info.size,
            extra={
                "db": str(self._path), "txid": f"{published.info.max_txid:016x}", "size_bytes": published.info.size,
            },
        )  # fmt: skip
        if wal_frames >= 2 * self._warned_frames:
            self._warned_frames = wal_frames
            log.warning("the WAL of %s has grown to %d frames", self._path, wal_frames)

    def count_checkpoint(self) -> None:
        """Count a checkpoint that copied the whole WAL into the database file."""
        self.checkpoints += 1
        self._warned_frames = LARGE_WAL_FRAMES // 2
