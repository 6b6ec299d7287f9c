"""SQLite's own check of a database file that nobody else has open. Blocks."""

from __future__ import annotations

from contextlib import closing
from enum import Enum
from pathlib import Path

import trio

from litereplica.errors import DamagedFile
from litereplica.foreign_database import open_untrusted


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

    try:
        with closing(open_untrusted(path, trio.from_thread.check_cancelled, steps=STEPS_BETWEEN_LOOKS)) as connection:
            answer = next(connection.execute(f"PRAGMA {_PRAGMAS[check]}"))[0]
    except apsw.Error as exc:
        answer = str(exc)
    if answer != "ok":
        raise DamagedFile(source, f"the restored database fails the {check.value} integrity check: {answer}")
