"""SQLite connections of the writer, each through apsw: opening one, and what SQLite says about its database.

All functions block.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from litereplica.errors import DamagedFile, EnvironmentProblem, UsageError
from litereplica.foreign_database import damage_of_structure

log = logging.getLogger(__name__)

BUSY_TIMEOUT_MS = 1000
"""Litestream's value: other programs may open, switch or recover the database meanwhile."""

PROGRESS_STEPS = 10_000
"""Of SQLite's virtual machine between two questions whether to go on: some milliseconds."""

STATE_ATTEMPTS = 100
STATE_PAUSE_S = 0.0005
"""Attempts, `STATE_PAUSE_S` apart, to read the state of the WAL: a commit changes the WAL index for microseconds, and
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


def open_connection(path: Path) -> apsw.Connection:
    """Open a connection that never checkpoints unasked."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.pragma("wal_autocheckpoint", 0)
    return connection


def switch_to_wal(connection: apsw.Connection, path: Path) -> bool:
    """Switch the database to WAL mode. False if it was in that mode. Raises `UsageError`."""
    mode = connection.pragma("journal_mode")
    if mode == "wal":
        return False
    switched = connection.pragma("journal_mode", "wal")
    if switched != "wal":
        raise UsageError(f"{path} cannot leave journal mode {switched}", hint="replicate a WAL database")
    log.info("switched %s from journal mode %s to WAL, which replication needs", path, mode)
    return True


def read_schema(connection: apsw.Connection) -> None:
    """Read from the database: this begins the read of a transaction."""
    connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()


def read_wal_state(connection: apsw.Connection) -> WalState:
    """The state of the WAL. The connection must not be in a transaction.

    While a commit changes the WAL index, SQLite answers BUSY, and this tries again.
    """
    for _ in range(STATE_ATTEMPTS):
        read_schema(connection)
        with contextlib.suppress(apsw.BusyError):
            return WalState(*connection.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_NOOP))
        time.sleep(STATE_PAUSE_S)
    return WalState(*connection.wal_checkpoint("main", apsw.SQLITE_CHECKPOINT_NOOP))


def structure_problem(connection: apsw.Connection, give_up: Callable[[], bool]) -> str | None:
    """What SQLite finds wrong with the structure of the database, as the connection sees it; None if nothing.

    `give_up` is called now and then, and ends the check if it returns True.
    """
    connection.set_progress_handler(give_up, PROGRESS_STEPS)
    try:
        return damage_of_structure(connection)
    except apsw.Error:  # it was ended, or the file cannot be read now
        return None
    finally:
        connection.set_progress_handler(None)


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
