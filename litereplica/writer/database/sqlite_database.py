"""One SQLite database that another program writes: opens it, keeps its WAL, and checkpoints it.

There are three connections, all through apsw, whose SQLite is at least 3.51.3 (older ones can corrupt a WAL that two
programs checkpoint). The *reader* holds a read transaction, which keeps the WAL from being restarted. The *barrier*
holds the write lock for a moment, so that no other connection commits. The *checkpointer* copies the WAL into the
database file. There are two kinds of held read:

    1  on a WAL that is all in the database file    the next writer may restart the WAL, once; no checkpoint copies
                                                    anything (READ(0) is held)
    2  on any other WAL                             it is not restarted; checkpoints copy at most what was committed
                                                    when the read was taken

So everything committed while the read is held stays in the WAL until it is released, and the database file receives
only frames from before. Pages read from the file, overlaid with the frames of the WAL, are consistent.

One kind is replaced by the other (`renew_read`, `allow_restart`) by another connection, which begins its read before
the held one ends: at each moment at least one is held.

A read of kind 1 slows commits down: a connection that checkpoints automatically, as SQLite does from 1,000 frames on,
sorts the whole WAL with each commit, only to find that it may not copy anything. So when the WAL has been restarted,
the read is replaced by one of kind 2.

A read of kind 2 makes a checkpoint of the application that wants to restart the WAL (FULL, RESTART, TRUNCATE) wait, and
with it all commits, because such a checkpoint holds the write lock. It shows by its locks on the `-shm`
(`awaits_readers`); once everything is published, `allow_restart` replaces the read by one of kind 1. A checkpoint waits
for the lock of a read mark even if the mark has been raised meanwhile. Then a *guard* takes the read's place: a lock of
a read mark that is not in use (`WalGuard`), with which everything may be copied, and the WAL still not be restarted.

The database and the `-shm` are each opened once, and closed after the connections: closing *any* descriptor of a file
drops the process's locks on it (`open_files.py`). The `-wal` file carries no locks.

Nothing here writes to the database, except for the switch to WAL mode and the checkpoints that are asked for. All
methods block; `run` calls them in a thread, one at a time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import apsw
import trio

from litereplica.errors import EnvironmentProblem, UsageError
from litereplica.file_access import FileAccess
from litereplica.file_locks import lock_holder
from litereplica.format.sqlite import page_offset
from litereplica.format.walindex import LOCK_CHECKPOINT, LOCK_WRITE
from litereplica.types import Pgno
from litereplica.writer.database.connections import (
    BUSY_TIMEOUT_MS,
    WalState,
    explained,
    open_connection,
    read_schema,
    read_wal_state,
    structure_problem,
    switch_to_wal,
)
from litereplica.writer.database.file_watch import Doubt, FileStatus, FileWatch
from litereplica.writer.database.open_files import close_file, open_file
from litereplica.writer.database.state_directory import FileIdentity
from litereplica.writer.database.wal_guard import WalGuard

T = TypeVar("T")

MIN_SQLITE = 3_051_003
"""3.51.3 is the first release without the WAL-reset bug, which an outside checkpointer would trigger."""

BARRIER_ATTEMPTS = 200
BARRIER_PAUSE_S = 0.0005
"""Attempts to take the write lock, for about 0.1 s. SQLite's own busy handler sleeps too long to find a gap."""

LARGE_WAL_BYTES = 64 << 20
"""Sixteen times the size at which SQLite checkpoints. SQLite keeps the file at its largest size."""


class SQLiteDatabase:
    """An open database. Obtain one from `open_database`.

    `path` is absolute and without links, as SQLite derives the WAL's name from it; `given` led to it. `switched` is
    True if the database was in a rollback journal mode before, `may_restart` if the held read is of kind 1,
    `is_distrusted` if the file is known to have been written to by something else than SQLite.
    """

    def __init__(self, path: Path, given: Path) -> None:
        self.path = path
        self.given = given
        self.wal_path = path.with_name(path.name + "-wal")
        self.page_size = 0
        self.switched = False
        self.may_restart = False
        self._fd = -1
        self._shm_fd = -1
        self._guard = WalGuard()
        self._claimed = (0, 0)
        self.is_distrusted = False
        self._watch = FileWatch()
        self._limiter = trio.CapacityLimiter(1)
        self._connections = contextlib.ExitStack()
        self._reader: apsw.Connection
        self._barrier: apsw.Connection
        self._checkpointer: apsw.Connection

    async def run(self, action: Callable[[], T]) -> T:
        """Call a blocking `action` on this database in a thread, one at a time."""
        return await trio.to_thread.run_sync(action, limiter=self._limiter)

    def open_file(self) -> None:
        """Open the file. Raises `UsageError`, `EnvironmentProblem`, or `AlreadyReplicated` if it is open already."""
        self._fd, self._claimed = open_file(self.path)

    def connect(self) -> None:
        """Open the connections. Raises `UsageError`, `EnvironmentProblem` or `DamagedFile` if SQLite cannot open it."""
        with explained(self.path):
            self._reader, self._barrier, self._checkpointer = (self._connect() for _ in range(3))
            self._barrier.set_busy_handler(_wait_for_write_lock)
            self.switched = switch_to_wal(self._reader, self.path)
            self.page_size = int(self._reader.pragma("page_size"))
            read_schema(self._checkpointer)  # a connection opens the WAL with its first read
        with contextlib.suppress(OSError):
            self._shm_fd = os.open(self.path.with_name(self.path.name + "-shm"), os.O_RDONLY | os.O_CLOEXEC)
            self._guard.open(self._shm_fd)

    def close(self) -> None:
        """Close the connections and the files. The WAL is not changed."""
        self._connections.close()
        if self._shm_fd >= 0:
            os.close(self._shm_fd)
            self._shm_fd = -1
        if self._fd >= 0:
            close_file(self._fd, self._claimed)
            self._fd = -1

    def take_read(self) -> WalState:
        """Begin the held read of what is committed now, under the barrier. Returns the state of the WAL."""
        self._reader.execute("BEGIN")
        read_schema(self._reader)
        state = self._judge(was_held=False)
        self.may_restart = state.sealed
        return state

    def renew_read(self) -> bool:
        """Replace the held read by one of kind 2 of what is committed now, without the barrier.

        False if all frames are in the database file: a read that begins now would not keep the WAL. They are counted
        while both reads are held. If some are left, either the new read has a read mark, or, as READ(0), it keeps these
        from being copied, so that the WAL is not restarted either.
        """
        with self._second_read():
            if read_wal_state(self._barrier).sealed:
                return False
            self._exchange()
        self._guard.release()
        self.may_restart = False
        return True

    def allow_restart(self, frames: int) -> bool:
        """Replace the held read by one of kind 1, without the barrier.

        Done only if the WAL has exactly these `frames`, which must be published, and all are in the database file; else
        returns False. They are counted while the other connection holds its read: that keeps any later frame in the
        WAL, and this count shows that no earlier one is missing.
        """
        with self._second_read():
            if read_wal_state(self._barrier) != WalState(frames, frames):
                return False
            self._watch.judge(FileStatus.of(self._fd), backfilled=frames)
            self._exchange()
        self._guard.release()
        self.may_restart = True
        return True

    @property
    def is_guarded(self) -> bool:
        """True if a guard has taken the held read's place."""
        return self._guard.is_held

    def guard(self) -> bool:
        """Let a guard take the held read's place. False if it cannot, or has done so before."""
        if self._guard.is_held or not self._guard.take():
            return False
        self._end_read(self._reader)
        self.may_restart = False
        return True

    def awaits_readers(self) -> bool:
        """True if another process has a checkpoint under way that holds the write lock: FULL, RESTART or TRUNCATE.

        Such a checkpoint waits for readers for as long as its busy timeout. Two system calls; does not block.
        """
        if self._shm_fd < 0:
            return False
        process = lock_holder(self._shm_fd, LOCK_CHECKPOINT)
        return process is not None and process == lock_holder(self._shm_fd, LOCK_WRITE)

    def release_read(self) -> None:
        """End the held read, if there is one, or what has taken its place."""
        self._end_read(self._reader)
        self._guard.release()

    def leave_to_sqlite(self) -> None:
        """Let SQLite delete the WAL if ours are the last connections to close; truncate it now if it is large.

        Everything committed must be published and in the database file, and the held read released.
        """
        for connection in (self._reader, self._barrier, self._checkpointer):
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        if self.wal_path.stat().st_size > LARGE_WAL_BYTES:
            self.truncate_wal()

    def truncate_wal(self) -> bool:
        """Empty the WAL file, of which everything must be published. False if another connection uses the WAL.

        While a read of kind 1 is held, nothing that was committed since then can be lost: SQLite empties a WAL only
        once all of it is in the database file, and that read keeps later frames out of it.
        """
        self._checkpointer.set_busy_timeout(0)
        try:
            self._checkpointer.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return False
        finally:
            self._checkpointer.set_busy_timeout(BUSY_TIMEOUT_MS)
        return True

    def begin_barrier(self) -> bool:
        """Take the write lock, so that no other connection commits. False if another connection keeps holding it."""
        try:
            self._barrier.execute("BEGIN IMMEDIATE")
        except apsw.BusyError:
            return False
        return True

    def end_barrier(self) -> None:
        """Release the write lock."""
        if self._barrier.in_transaction:
            self._barrier.execute("ROLLBACK")

    def checkpoint(self) -> bool:
        """Copy frames of the WAL into the database file, as far as readers, including ours, allow.

        False if another connection is checkpointing, or may be: a change of the file is not explained yet.
        """
        self._judge()
        if self._watch.is_unexplained:
            return False
        try:
            _, backfilled = self._checkpointer.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.BusyError:
            return False
        self._watch.note(FileStatus.of(self._fd), backfilled=backfilled)
        return True

    @property
    def is_in_doubt(self) -> bool:
        """True if something else than a checkpoint may have written to the file. Does not block."""
        return self._watch.is_due(FileStatus.of(self._fd))

    def take_doubt(self) -> Doubt:
        """What of the file has to be compared, because something else than a checkpoint may have written to it."""
        if self._watch.is_certain(FileStatus.of(self._fd)):
            return Doubt.NONE
        self._judge()
        return self._watch.take_doubt()

    def give_back(self, doubt: Doubt) -> None:
        """Record that what `take_doubt` returned could not be compared."""
        self._watch.give_back(doubt)

    def distrust(self) -> None:
        """Record that something else than SQLite has written to the file: connections must not go on from caches."""
        self.is_distrusted = True

    def certain_identity(self) -> FileIdentity | None:
        """The identity of the file if nothing is in doubt and every later write will change it."""
        if self.is_distrusted:
            return None
        status = os.fstat(self._fd)
        return FileIdentity.of(status) if self._watch.is_certain(FileStatus.of(self._fd)) else None

    def wal_state(self) -> WalState:
        """The state of the WAL; exact under the barrier with the read held."""
        return read_wal_state(self._checkpointer)

    def page_count(self) -> int:
        """Size of the database in pages, as the held read sees it."""
        return int(self._reader.pragma("page_count"))

    def structure_problem(self, give_up: Callable[[], bool]) -> str | None:
        """What SQLite finds wrong with the database, as the held read sees it; as `connections.structure_problem`."""
        return structure_problem(self._reader, give_up)

    def read_page(self, pgno: Pgno) -> bytes:
        """A page of the database file, padded with zeros beyond its end."""
        return os.pread(self._fd, self.page_size, page_offset(pgno, self.page_size)).ljust(self.page_size, b"\0")

    def identity(self) -> FileIdentity:
        """Identity of the database file."""
        return FileIdentity.of(os.fstat(self._fd))

    def access(self) -> FileAccess:
        """Who may access the database file."""
        return FileAccess.of(os.fstat(self._fd))

    def is_in_place(self) -> bool:
        """True if the open file is still the one under its name."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except OSError:
            return False

    def real_path(self) -> Path | None:
        """Where the path by which the user named the database leads now, through all its links; None: to no file."""
        try:
            return self.given.resolve(strict=True)
        except (OSError, RuntimeError):
            return None

    def _judge(self, *, was_held: bool = True) -> WalState:
        state = self.wal_state()  # first: a checkpoint that ends between the two has changed the file before that
        self._watch.judge(FileStatus.of(self._fd), backfilled=state.backfilled, was_held=was_held)
        return state

    @contextmanager
    def _second_read(self) -> Iterator[None]:
        """Hold a read on the checkpointer during the block; if the block exchanges the two, the old read ends."""
        self._checkpointer.execute("BEGIN")
        try:
            read_schema(self._checkpointer)
            yield
        finally:
            self._end_read(self._checkpointer)

    @staticmethod
    def _end_read(connection: apsw.Connection) -> None:
        if connection.in_transaction:
            connection.execute("ROLLBACK")

    def _exchange(self) -> None:
        self._reader, self._checkpointer = self._checkpointer, self._reader

    def _connect(self) -> apsw.Connection:
        connection = open_connection(self.path)
        self._connections.callback(connection.close)
        return connection


@asynccontextmanager
async def open_database(path: Path, *, within: Path | None = None) -> AsyncIterator[SQLiteDatabase]:
    """Open the file at `path`, without connecting. Raises as `SQLiteDatabase.open_file`.

    Raises `UsageError` also if links lead out of the directory `within`.
    """
    if apsw.SQLITE_VERSION_NUMBER < MIN_SQLITE:
        raise EnvironmentProblem(
            f"apsw has SQLite {apsw.sqlite_lib_version()}, expected 3.51.3 or later", hint="upgrade apsw"
        )
    real, root = await trio.to_thread.run_sync(
        lambda: (path.resolve(), within.resolve() if within is not None else None), limiter=trio.CapacityLimiter(1)
    )
    if root is not None and not real.is_relative_to(root):
        raise UsageError(f"{path} leads to {real}, out of {within}", hint="replicate it as a database of its own")
    source = SQLiteDatabase(real, Path.cwd() / path)
    try:
        await source.run(source.open_file)
        yield source
    finally:
        with trio.CancelScope(shield=True):
            await source.run(source.close)


def _wait_for_write_lock(attempts: int) -> bool:
    time.sleep(BARRIER_PAUSE_S)
    return attempts < BARRIER_ATTEMPTS
