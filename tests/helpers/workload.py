"""A primary on which everything happens that changes a database: rows, indexes, tables, full text, VACUUM.

Owns no process. Its connection is the interpreter's sqlite3, so another library must not open the file in the same
process.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

SETUP = """
CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, body BLOB);
CREATE TABLE pair(a TEXT, b INTEGER, note TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5(title, text);
"""


class Workload:
    """Transactions of every kind in turn, their sizes in pages; the same for the same seed.

    `checkpoints`: now and then the application checkpoints, too. Litestream loses transactions when it does.
    """

    def __init__(self, primary: sqlite3.Connection, *, page_size: int, seed: int, checkpoints: bool = False) -> None:
        self._primary = primary
        self._page_size = page_size
        self._random = random.Random(seed)
        self._number = 0
        self._kinds: list[Callable[[], Iterator[str]]] = [
            self._insert,
            self._create_index,
            self._index_words,
            self._update,
            self._upsert_pairs,
            self._delete,
            self._incremental_vacuum,
            self._alter,
            self._insert_large,
            self._forget_words,
            self._create_table,
            self._vacuum,
            self._drop,
        ]
        if checkpoints:
            self._kinds.append(self._checkpoint)
        else:
            primary.execute("PRAGMA wal_autocheckpoint=0")

    def step(self) -> None:
        """Commit the next transaction."""
        kind = self._kinds[self._number % len(self._kinds)]
        self._number += 1
        for statement in kind():
            self._primary.execute(statement).fetchall()

    def _transaction(self, *statements: str) -> Iterator[str]:
        yield "BEGIN IMMEDIATE"
        yield from statements
        yield "COMMIT"

    def _rows(self, count: int) -> str:
        return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"

    def _insert(self) -> Iterator[str]:
        size = self._page_size // self._random.choice((3, 9, 20))
        return self._transaction(
            f"{self._rows(40)} INSERT INTO item(name, body) SELECT 'item ' || i, randomblob({size}) FROM n",
            "INSERT INTO item(name) VALUES ('alone')",
        )

    def _insert_large(self) -> Iterator[str]:
        return self._transaction(f"INSERT INTO item(name, body) VALUES ('large', randomblob({9 * self._page_size}))")

    def _update(self) -> Iterator[str]:
        rest = self._random.randrange(5)
        return self._transaction(
            f"UPDATE item SET body = randomblob({self._page_size // 7}), name = name || '+' WHERE id % 5 = {rest}"
        )

    def _delete(self) -> Iterator[str]:
        return self._transaction(f"DELETE FROM item WHERE id % 3 = {self._random.randrange(3)}")

    def _create_index(self) -> Iterator[str]:
        return self._transaction(f"CREATE INDEX item_name_{self._number} ON item(name, id)")

    def _index_words(self) -> Iterator[str]:
        return self._transaction(
            f"{self._rows(20)} INSERT INTO words SELECT 'title ' || i, 'some words of number ' || {self._number} FROM n"
        )

    def _forget_words(self) -> Iterator[str]:
        return self._transaction(
            "DELETE FROM words WHERE rowid % 3 = 0", "INSERT INTO words(words) VALUES ('optimize')"
        )

    def _upsert_pairs(self) -> Iterator[str]:
        return self._transaction(
            f"{self._rows(50)} INSERT INTO pair SELECT 'key ' || (i % 7), i, 'first' FROM n WHERE true"
            f" ON CONFLICT DO UPDATE SET note = note || {self._number}",
            "DELETE FROM pair WHERE b % 11 = 0",
        )

    def _alter(self) -> Iterator[str]:
        return self._transaction(
            f"ALTER TABLE item ADD COLUMN extra_{self._number} TEXT DEFAULT 'none'",
            f"UPDATE item SET extra_{self._number} = 'some' WHERE id % 2",
        )

    def _create_table(self) -> Iterator[str]:
        return self._transaction(
            "CREATE TABLE other(x)",
            f"{self._rows(30)} INSERT INTO other SELECT randomblob({self._page_size // 2}) FROM n",
        )

    def _drop(self) -> Iterator[str]:
        indexes = self._primary.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'item_name_%'").fetchall()
        return self._transaction("DROP TABLE other", *(f"DROP INDEX {name}" for (name,) in indexes))

    def _vacuum(self) -> Iterator[str]:
        yield "VACUUM"

    def _incremental_vacuum(self) -> Iterator[str]:
        yield "PRAGMA incremental_vacuum(20)"

    def _checkpoint(self) -> Iterator[str]:
        yield "PRAGMA wal_checkpoint(PASSIVE)"


def content(connection: sqlite3.Connection) -> str:
    """A digest of a dump of every table, shadow tables included; pages are read anew, not from the client's cache."""
    connection.execute("PRAGMA shrink_memory")
    digest = hashlib.sha256()
    for line in connection.iterdump():
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def open_primary(path: Path, *, page_size: int, auto_vacuum: int) -> sqlite3.Connection:
    """A new database in WAL mode, with the tables of `Workload`."""
    primary = sqlite3.connect(path, isolation_level=None)
    primary.execute(f"PRAGMA page_size={page_size}")
    primary.execute(f"PRAGMA auto_vacuum={auto_vacuum}")
    primary.execute("PRAGMA journal_mode=wal")
    primary.executescript(SETUP)
    return primary
