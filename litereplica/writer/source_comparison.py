"""Compares a database with the newest state of its replica, page by page, while both are in use.

`Source` holds a read transaction: everything that is committed then stays in the database file and in the WAL. The
newest file of the replica says how many frames of the WAL it contains. Once it contains all that were committed when
the transaction began, both sides have one state in common: the database file with these frames. Its pages are
compared, by their checksums, with those of the replica at that TXID. The transaction ends before the replica is read.

If the replica does not get that far in `CATCH_UP_S`, because no writer runs, the database is compared as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import NoReplica, ReplicaError
from litereplica.format.sqlite import lock_pgno, page_offset
from litereplica.ltxstore.progress import Progress
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.restore import page_checksums
from litereplica.types import TXID, Pgno
from litereplica.writer.database.connections import BUSY_TIMEOUT_MS, explained, read_schema, read_wal_state
from litereplica.writer.database.open_files import close_file, open_file
from litereplica.writer.database.wal_follower import FROM_DATABASE, WalChange, WalFollower
from litereplica.writer.publish.page_checksums import page_checksum
from litereplica.writer.publish.wal_match import frames_covered
from litereplica.writer.resume.resume_point import Remote, read_remote

CATCH_UP_S = 10.0
"""A writer publishes within its sync interval, mostly a second."""
LOOK_INTERVAL_S = 0.25
ATTEMPTS = 5
"""The WAL may be restarted once while it is compared, and retention may delete the state that was chosen."""


class _Moved(Exception):
    """The WAL was restarted, or the replica's state has gone: compare again."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result: sizes in pages, and the numbers of the pages that differ, ascending, also those that one side lacks.

    `is_behind`: the replica lacks transactions that were committed when the comparison began.
    """

    txid: TXID
    page_size: int
    pages: int
    replica_pages: int
    differing: tuple[Pgno, ...]
    is_behind: bool


async def compare(store: LTXStore, database: Path, *, progress: Progress | None = None) -> Comparison:
    """Compare `database` with the newest state of the replica.

    Raises `UsageError`, `EnvironmentProblem` or `DamagedFile` if the database cannot be read, `NoReplica`, and the
    errors of `restore`.
    """
    for attempt in range(ATTEMPTS):
        try:
            return await _compare_once(store, database, progress)
        except (_Moved, ReplicaError) as exc:
            if isinstance(exc, NoReplica) or attempt == ATTEMPTS - 1:
                raise
        await trio.sleep(LOOK_INTERVAL_S)
    raise AssertionError("the last attempt returns or raises")


async def _compare_once(store: LTXStore, database: Path, progress: Progress | None) -> Comparison:
    limiter = trio.CapacityLimiter(1)
    held = Source.open(await trio.to_thread.run_sync(database.resolve))
    source = await trio.to_thread.run_sync(held.__enter__, limiter=limiter)
    try:
        remote, is_behind = await _until_published(store, source)
        sums = await trio.to_thread.run_sync(source.checksums, limiter=limiter)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: held.__exit__(None, None, None), limiter=limiter)
    replica = await page_checksums(store, page_checksum, target=remote.txid, progress=progress)
    pages, replica_pages = len(sums) - 1, replica.commit
    if replica.page_size != source.page_size:
        differing = np.arange(1, max(pages, replica_pages) + 1)
    else:
        both = np.zeros((2, max(pages, replica_pages) + 1), np.uint64)
        both[0, : len(sums)] = sums
        both[1, : len(replica.sums)] = replica.sums
        differing = np.flatnonzero(both[0] != both[1])
    is_behind = is_behind and len(differing) > 0
    return Comparison(remote.txid, source.page_size, pages, replica_pages, tuple(differing.tolist()), is_behind)


async def _until_published(store: LTXStore, source: Source) -> tuple[Remote, bool]:
    """Wait until the replica has what was committed when `source` was opened, and choose the state to compare.

    Returns the replica's newest state, and True if it did not get there.
    """
    deadline_s = trio.current_time() + CATCH_UP_S
    while True:
        remote = await read_remote(store)
        if remote.txid == 0:
            raise NoReplica(f"there is no replica at {store.url}", hint="check the URL")
        source.look()
        frames = await frames_covered(store, remote.file, source.wal) if remote.file is not None else None
        if source.waiting == 0 or (frames is not None and frames >= source.waiting):
            source.choose(frames or 0)
            return remote, False
        if trio.current_time() > deadline_s:
            source.choose(source.waiting)
            return remote, True
        await trio.sleep(LOOK_INTERVAL_S)


class Source:
    """A database under a read transaction. Blocks, except for `look` and `choose`.

    `waiting` is the number of frames that were committed when it was opened.
    """

    def __init__(self, fd: int, wal: WalFollower, *, has_wal: bool, page_size: int, page_count: int) -> None:
        self.wal = wal
        self.page_size = page_size
        self.waiting = wal.committed
        self._fd = fd
        self._page_count = page_count
        self._has_wal = has_wal

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Source]:
        """Open a database without changing it, and hold a read transaction during the block."""
        with ExitStack() as stack:
            fd, claimed = open_file(path)
            stack.callback(close_file, fd, claimed)
            wal = WalFollower(path.with_name(path.name + "-wal"))
            with explained(path):
                reader, counter = (_connect(path, stack) for _ in range(2))
                reader.execute("BEGIN")
                read_schema(reader)
                backfilled = _backfilled(counter)
                page_size, page_count = (int(reader.pragma(name)) for name in ("page_size", "page_count"))
            if has_wal := wal.path.exists():
                wal.reopen()
                stack.callback(wal.close)
                wal.attach()
                wal.note_backfilled(backfilled)
            yield cls(fd, wal, has_wal=has_wal, page_size=page_size, page_count=page_count)

    def look(self) -> None:
        """Read the frames that were committed meanwhile."""
        if self.wal.header is not None and self.wal.look() is WalChange.FRAMES:
            self.wal.scan()

    def choose(self, frames: int) -> None:
        """Compare the state after so many frames."""
        self.wal.advance(frames)

    def checksums(self) -> NDArray[np.uint64]:
        """Return the checksums of the pages of the chosen state, by page number; 0 for the lock page."""
        batch = self.wal.published(page_size=self.page_size, commit=self._page_count)
        sums = np.zeros(batch.commit + 1, np.uint64)
        for row, (pgno, frame) in enumerate(zip(batch.pgno.tolist(), batch.frame.tolist(), strict=True)):
            if row % 1000 == 0:
                trio.from_thread.check_cancelled()
            sums[pgno] = page_checksum(self._read_page(pgno) if frame == FROM_DATABASE else self.wal.read_page(frame))
        if not self._is_unmoved():
            raise _Moved
        sums[lock_pgno(self.page_size) :][:1] = 0
        return sums

    def _is_unmoved(self) -> bool:
        """True if the WAL was not restarted since it was opened, so that the replica has nothing that it had not."""
        if self._has_wal:
            return self.wal.is_intact()
        return not self.wal.path.exists() or self.wal.path.stat().st_size == 0

    def _read_page(self, pgno: Pgno) -> bytes:
        return os.pread(self._fd, self.page_size, page_offset(pgno, self.page_size)).ljust(self.page_size, b"\0")


def _connect(path: Path, stack: ExitStack) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    stack.callback(connection.close)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    return connection


def _backfilled(connection: apsw.Connection) -> int:
    """The number of frames in the database file, by SQLite's count."""
    read_schema(connection)
    return read_wal_state(connection).backfilled if connection.pragma("journal_mode") == "wal" else 0
