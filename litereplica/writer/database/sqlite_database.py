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

A read of kind 1 slows commits down: a connection that checkpoints automatically, as SQLite does from 1,000 frames on,
sorts the whole WAL with each commit, only to find that it may not copy anything. So when the WAL has been restarted,
the read is replaced by one of kind 2 (`renew_read`); at each moment at least one read is held.

POSIX locks belong to the process, and closing *any* descriptor of a file drops its locks. Therefore the database is
read through one descriptor that is opened before the connections and closed after them, and no other code of this
process may open the file meanwhile, not even briefly: `looks_like_database`, which tests whether a file is a database,
does not open those that are open. The `-wal` file carries no locks.

Nothing here writes to the database, except for the switch to WAL mode and the checkpoints that are asked for. All
methods block; `run` calls them in a thread, one at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import apsw
import trio

from litereplica.errors import DamagedFile, EnvironmentProblem, UsageError
from litereplica.format.sqlite import page_offset
from litereplica.types import Pgno
from litereplica.writer.database.file_watch import Doubt, FileStatus, FileWatch
from litereplica.writer.database.open_files import close_file, open_file
from litereplica.writer.database.state_directory import FileIdentity

T = TypeVar("T")

log = logging.getLogger(__name__)

MIN_SQLITE = 3_051_003
"""3.51.3 is the first release without the WAL-reset bug, which an outside checkpointer would trigger."""

BUSY_TIMEOUT_MS = 1000
"""Litestream's value: other programs may open, switch or recover the database meanwhile."""
BARRIER_ATTEMPTS = 200
BARRIER_PAUSE_S = 0.0005
"""Attempts to take the write lock, for about 0.1 s. SQLite's own busy handler sleeps too long to find a gap."""

LARGE_WAL_BYTES = 64 << 20
"""Sixteen times the size at which SQLite checkpoints. SQLite keeps the file at its largest size."""

PROGRESS_STEPS = 10_000
"""Of SQLite's virtual machine between two questions whether to go on: some milliseconds."""
DAMAGE_PREFIX = "*** in database main ***"

STATE_ATTEMPTS = 100
"""Attempts, `BARRIER_PAUSE_S` apart, to read the state of the WAL: a commit changes the WAL index for microseconds, and
longer only if its process is suspended meanwhile."""


@dataclass(frozen=True, slots=True)
class WalState:
    """The state of the WAL by SQLite's count, in frames; `log` is 0 if the next writer will restart it."""

    log: int
    backfilled: int

    @property
    def sealed(self) -> bool:
        """True if all frames are in the database file."""
        return self.log == self.backfilled


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
        self._held_log = 0  # frames of the WAL when the read was taken, or more; 0 for a read of kind 1
        self._fd = -1
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
            self.switched = self._switch_to_wal()
            self.page_size = int(self._reader.pragma("page_size"))
            self._read_schema(self._checkpointer)  # a connection opens the WAL with its first read

    def close(self) -> None:
        """Close the connections and the file. The WAL is not changed."""
        self._connections.close()
        if self._fd >= 0:
            close_file(self._fd, self._claimed)
            self._fd = -1

    def take_read(self) -> WalState:
        """Begin the held read of what is committed now, under the barrier. Returns the state of the WAL."""
        self._reader.execute("BEGIN")
        self._read_schema(self._reader)
        state = self._judge()
        self.may_restart = state.sealed
        self._held_log = 0 if state.sealed else state.log
        return state

    def renew_read(self) -> bool:
        """Replace the held read by one of kind 2, without the barrier. False if nothing was committed since.

        Another connection holds a read meanwhile. It is of kind 2 as well, since the held read has kept some frames
        from being copied.
        """
        if self.wal_state().log <= self._held_log:
            return False
        self._checkpointer.execute("BEGIN")
        try:
            self._read_schema(self._checkpointer)
            self.release_read()
            self._reader.execute("BEGIN")
            self._read_schema(self._reader)
        finally:
            self._checkpointer.execute("ROLLBACK")
        self.may_restart = False
        self._held_log = self.wal_state().log
        return True

    def release_read(self) -> None:
        """End the held read, if there is one."""
        if self._reader.in_transaction:
            self._reader.execute("ROLLBACK")

    def leave_to_sqlite(self) -> None:
        """Let SQLite delete the WAL if ours are the last connections to close; truncate it now if it is large.

        Everything committed must be published and in the database file, and the held read released.
        """
        for connection in (self._reader, self._barrier, self._checkpointer):
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        if self.wal_path.stat().st_size > LARGE_WAL_BYTES:
            self._checkpointer.set_busy_timeout(0)
            with contextlib.suppress(apsw.BusyError):
                self._checkpointer.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_TRUNCATE)

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

    def distrust(self) -> None:
        """Record that something else than SQLite has written to the file: connections must not go on from caches."""
        self.is_distrusted = True

    def certain_identity(self) -> FileIdentity | None:
        """The identity of the file if nothing is in doubt and every later write will change it."""
        status = os.fstat(self._fd)
        return FileIdentity.of(status) if self._watch.is_certain(FileStatus.of(self._fd)) else None

    def wal_state(self) -> WalState:
        """The state of the WAL; exact under the barrier with the read held. Not within a checkpointer transaction.

        While a commit changes the WAL index, SQLite answers BUSY, and this tries again.
        """
        for _ in range(STATE_ATTEMPTS):
            self._read_schema(self._checkpointer)
            with contextlib.suppress(apsw.BusyError):
                return WalState(*self._checkpointer.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_NOOP))
            time.sleep(BARRIER_PAUSE_S)
        return WalState(*self._checkpointer.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_NOOP))

    def page_count(self) -> int:
        """Size of the database in pages, as the held read sees it."""
        return int(self._reader.pragma("page_count"))

    def structure_problem(self, give_up: Callable[[], bool]) -> str | None:
        """What SQLite finds wrong with the structure of the database, as the held read sees it; None if nothing.

        `give_up` is called now and then, and ends the check if it returns True.
        """
        self._reader.set_progress_handler(give_up, PROGRESS_STEPS)
        try:
            found = str(self._reader.execute("PRAGMA quick_check(1)").fetchone()[0])  # type: ignore[index]
        except (apsw.CorruptError, apsw.NotADBError) as exc:
            return str(exc)
        except apsw.Error:  # it was ended, or needs a function or a collation of the application
            return None
        finally:
            self._reader.set_progress_handler(None)
        # constraints that the content violates are no damage
        return found.removeprefix(DAMAGE_PREFIX).strip() if found.startswith(DAMAGE_PREFIX) else None

    def read_page(self, pgno: Pgno) -> bytes:
        """A page of the database file, padded with zeros beyond its end."""
        return os.pread(self._fd, self.page_size, page_offset(pgno, self.page_size)).ljust(self.page_size, b"\0")

    def identity(self) -> FileIdentity:
        """Identity of the database file."""
        return FileIdentity.of(os.fstat(self._fd))

    def mode(self) -> int:
        """Permission bits of the database file."""
        return stat.S_IMODE(os.fstat(self._fd).st_mode)

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

    def _judge(self) -> WalState:
        state = self.wal_state()  # first: a checkpoint that ends between the two has changed the file before that
        self._watch.judge(FileStatus.of(self._fd), backfilled=state.backfilled)
        return state

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._connections.callback(connection.close)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.pragma("wal_autocheckpoint", 0)
        return connection

    def _switch_to_wal(self) -> bool:
        mode = self._reader.pragma("journal_mode")
        if mode == "wal":
            return False
        switched = self._reader.pragma("journal_mode", "wal")
        if switched != "wal":
            raise UsageError(f"{self.path} cannot leave journal mode {switched}", hint="replicate a WAL database")
        log.info("switched %s from journal mode %s to WAL, which replication needs", self.path, mode)
        return True

    @staticmethod
    def _read_schema(connection: apsw.Connection) -> None:
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()


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


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Translate SQLite's errors while opening into ours."""
    try:
        yield
    except apsw.NotADBError as exc:
        raise UsageError(f"{path} is not a SQLite database", hint="name a SQLite database") from exc
    except apsw.BusyError as exc:
        raise EnvironmentProblem(
            f"{path} is locked by another program", hint="try again when its transaction has ended"
        ) from exc
    except apsw.CorruptError as exc:
        raise DamagedFile(str(path), str(exc), hint="run 'PRAGMA integrity_check' on it") from exc
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.IOError, apsw.FullError) as exc:
        raise EnvironmentProblem(
            f"SQLite cannot open {path}: {exc}", hint="check space and permissions of the file and of its directory"
        ) from exc
