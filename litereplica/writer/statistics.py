"""What has been published since a database was opened, and how far behind the store is."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import trio

from litereplica.ltxstore.lease import Lease
from litereplica.types import TXID
from litereplica.writer.database.checkpoint import LARGE_WAL_FRAMES
from litereplica.writer.publish.publisher import Prepared

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What has been done since the start. `txid` is the newest one published, `wal_frames` those of the WAL that are
    not in the database file, `lease` the lease while it is held.

    `unpublished_bytes` of the WAL are known to be committed and not in the store. `behind_s`: for how long the store
    has lacked something, 0 when it lacks nothing. `waits` for the lease of another; `error` is what is in the way.
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


class Progress:
    """Counts for the database at `path`. `waits` and `error` are as in `Statistics`."""

    def __init__(self, path: Path) -> None:
        self.files = self.pages = self.bytes = self.checkpoints = 0
        self.waits = False
        self.error: str | None = None
        self._path = path
        self._is_current = False
        self._current_s = trio.current_time()  # when the store was known to lack nothing
        self._warned_frames = LARGE_WAL_FRAMES // 2

    @property
    def behind_s(self) -> float:
        """For how long the store has lacked something."""
        return 0.0 if self._is_current else trio.current_time() - self._current_s

    def note_behind(self) -> None:
        """The store lacks something, or may."""
        self._is_current = False

    def note_current(self) -> None:
        """All that was committed is published."""
        self._is_current, self._current_s = True, trio.current_time()

    def count(self, published: Prepared, *, wal_frames: int) -> None:
        """A file is published; the WAL has so many frames that are not in the database."""
        self.files += 1
        self.pages += published.pages
        self.bytes += published.info.size
        log.log(
            logging.INFO if published.whole else logging.DEBUG,
            "published %s of %s: %d pages%s, %d bytes",
            published.info, self._path, published.pages, " (all)" if published.whole else "", published.info.size,
        )  # fmt: skip
        if wal_frames >= 2 * self._warned_frames:
            self._warned_frames = wal_frames
            log.warning("the WAL of %s has grown to %d frames", self._path, wal_frames)

    def count_checkpoint(self) -> None:
        """The WAL is in the database."""
        self.checkpoints += 1
        self._warned_frames = LARGE_WAL_FRAMES // 2
