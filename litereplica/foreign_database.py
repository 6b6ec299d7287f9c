"""Opens SQLite databases whose content somebody else chose: what a restore made, and what `diff` compares.

A file may claim values of gigabytes, send SQLite around in circles, and run SQL of its schema when it is read. So the
schema is not trusted, a value cannot be larger than the file that it is in, and a progress handler can stop everything.
Source: https://www.sqlite.org/security.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    import apsw

LEAST_LENGTH = 1 << 20
"""Length that a value and a statement may have in any case: our own statements are not in the file."""
MOST_LENGTH = 1_000_000_000
"""SQLite's default."""

_DAMAGED_STRUCTURE = re.compile(r"\*\*\* in database [^*]* \*\*\*\s*")
"""How quick_check begins what it says of pages; of content that violates a constraint it says other things."""


def uri(path: Path) -> str:
    """Return the name under which SQLite opens a file that does not change, without locks and without other files."""
    return f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"


def open_untrusted(path: Path, look: Callable[[], object], *, steps: int, size: int = 0) -> apsw.Connection:
    """Return a read-only connection to a database file; `look` is called every `steps` instructions and may raise.

    `size` is that of the largest file that will be attached. Raises `apsw.Error`.
    """
    import apsw

    def go_on() -> bool:
        look()
        return False

    connection = apsw.Connection(uri(path), flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0)
    largest = max(path.stat().st_size, size, LEAST_LENGTH)
    connection.limit(apsw.SQLITE_LIMIT_LENGTH, min(largest, MOST_LENGTH))
    connection.set_progress_handler(go_on, steps)
    return connection


def damage_of_structure(connection: apsw.Connection) -> str | None:
    """Return what SQLite finds wrong with the pages of a database, in time linear to its size; None if nothing.

    A b-tree may lead to one page on many ways, so that reading its rows would never end. Content that violates a
    constraint is no damage; a schema that needs a function or a collation of the application cannot be checked.

    Raises `apsw.Error` if the check did not come to an end, and what the progress handler raises.
    """
    import apsw

    try:
        ((answer,),) = list(connection.execute("PRAGMA quick_check(1)"))
    except apsw.SQLError:
        return None
    except (apsw.CorruptError, apsw.NotADBError, apsw.TooBigError) as exc:
        return str(exc)
    found = str(answer).lstrip()
    start = _DAMAGED_STRUCTURE.match(found)
    return None if start is None else found[start.end() :].strip()
