"""SQLite's own check of a database file that nobody else has open. Blocks."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from urllib.parse import quote

import trio

from litereplica.errors import DamagedFile


class IntegrityCheck(Enum):
    """How much SQLite looks at: nothing; the structure of tables and indexes; also that they agree with each other."""

    NONE = "none"
    QUICK = "quick"
    FULL = "full"


STEPS_BETWEEN_LOOKS = 10_000
"""Steps of SQLite's machine after which a cancellation is noticed: some milliseconds."""

_PRAGMAS = {IntegrityCheck.QUICK: "quick_check(1)", IntegrityCheck.FULL: "integrity_check(1)"}


def require_integrity(path: Path, check: IntegrityCheck, source: str) -> None:
    """Raise `DamagedFile` unless the database passes; `source` says in the message where it came from.

    To be called in a thread of trio. The file is not changed, and no other appears beside it.
    """
    import apsw

    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    try:
        connection = apsw.Connection(f"file:{quote(str(path))}?immutable=1", flags)
        try:
            connection.set_progress_handler(_look, STEPS_BETWEEN_LOOKS)
            answer = next(connection.execute(f"PRAGMA {_PRAGMAS[check]}"))[0]
        finally:
            connection.close()
    except apsw.Error as exc:
        answer = str(exc)
    if answer != "ok":
        raise DamagedFile(source, f"the restored database fails the {check.value} integrity check: {answer}")


def _look() -> bool:
    trio.from_thread.check_cancelled()
    return False
