"""The primary's application: mixed transactions at a steady rate, each in the ledger.

    python -m soaking.application DATABASE LEDGER RATE SEED

Prints `ready`, commits until its stdin is closed, then checkpoints nothing and ends. A transaction that finds the
database busy is tried again, and counted; the counts are the last line that it prints, as JSON.
"""

from __future__ import annotations

import json
import random
import select
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

from soaking.state import ITEMS, NOTE_STATE, SETUP, read_state

BUSY_TIMEOUT_S = 5.0
MAX_TABLES = 5


class Application:
    """The application; `step` commits one transaction."""

    def __init__(self, database: Path, ledger: IO[str], seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.longest_s = 0.0
        self._connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        self._connection.execute("PRAGMA synchronous = normal")
        self._random = random.Random(seed)
        self._ledger = ledger
        self._tables: list[str] = []
        self._number = 0
        self._kinds: list[tuple[int, Callable[[], list[str]]]] = [
            (400, self._update),
            (250, self._insert),
            (150, self._delete),
            (6, self._large),
            (20, self._shrink),
            (20, self._table),
            (20, self._column),
            (20, self._index),
        ]
        self._note()

    def step(self) -> None:
        """Commit, and enter the state into the ledger; now and then checkpoint or VACUUM besides."""
        kinds, weights = [kind for _, kind in self._kinds], [weight for weight, _ in self._kinds]
        kind = self._random.choices(kinds, weights)[0]
        begun = time.monotonic()
        self._commit(kind())
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        self.counts[kind.__name__.strip("_")] += 1
        self._note()
        chance = self._random.random()
        if chance < 1 / 6000:
            self._outside("vacuum", "VACUUM")
        elif chance < 1 / 500:
            mode = self._random.choice(("PASSIVE", "FULL", "RESTART", "TRUNCATE"))
            self._outside(f"checkpoint {mode}", f"PRAGMA wal_checkpoint({mode})")

    def _commit(self, sql: list[str]) -> None:
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                for statement in [*sql, NOTE_STATE]:
                    self._connection.execute(statement)
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as exc:
                self.counts[f"tried again: {exc}"] += 1
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            else:
                return

    def _outside(self, name: str, sql: str) -> None:
        try:
            answer = self._connection.execute(sql).fetchall()
            self.counts[f"{name}, busy" if answer and answer[0][0] else name] += 1
        except sqlite3.OperationalError as exc:
            self.counts[f"{name}: {exc}"] += 1

    def _note(self) -> None:
        state = read_state(lambda sql: self._connection.execute(sql).fetchall(), ballast=1)
        print(json.dumps([time.time(), *state]), file=self._ledger, flush=True)

    def _update(self) -> list[str]:
        rest = self._random.randrange(500)
        return [f"UPDATE item SET value = value + 1, body = randomblob(length(body)) WHERE id % 500 = {rest}"]

    def _insert(self) -> list[str]:
        rows = self._random.randrange(1, 30)
        return [
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})"
            f" INSERT INTO item(value, body) SELECT {self._random.randrange(1000)}, randomblob(200) FROM n"
        ]

    def _delete(self) -> list[str]:
        return [
            f"DELETE FROM item WHERE id IN (SELECT id FROM item ORDER BY id LIMIT {self._random.randrange(1, 60)})"
            f" AND (SELECT count(*) FROM item) > {ITEMS // 2}"
        ]

    def _large(self) -> list[str]:
        return [
            f"INSERT INTO item(value, body) VALUES (1, randomblob({self._random.randrange(20_000, 200_000)}))",
            "DELETE FROM item WHERE length(body) > 10000 AND id < (SELECT max(id) - 2000 FROM item)",
        ]

    def _shrink(self) -> list[str]:
        return [
            f"DELETE FROM item WHERE id NOT IN (SELECT id FROM item ORDER BY id DESC LIMIT {ITEMS})",
            f"PRAGMA incremental_vacuum({self._random.randrange(1, 400)})",
        ]

    def _table(self) -> list[str]:
        if len(self._tables) >= MAX_TABLES:
            return [f"DROP TABLE {self._tables.pop(0)}"]
        self._number += 1
        self._tables.append(f"extra_{self._number}")
        return [
            f"CREATE TABLE {self._tables[-1]}(x INTEGER, y TEXT)",
            f"INSERT INTO {self._tables[-1]} SELECT id, hex(body) FROM item WHERE length(body) < 1000 LIMIT 100",
        ]

    def _column(self) -> list[str]:
        self._number += 1
        if not self._tables:
            return []
        return [f"ALTER TABLE {self._tables[-1]} ADD COLUMN z_{self._number} INTEGER DEFAULT {self._number}"]

    def _index(self) -> list[str]:
        return ["DROP INDEX IF EXISTS item_length", "CREATE INDEX item_length ON item(length(body), value)"]


def create(database: Path) -> None:
    """A new database with the soak test's tables, in WAL mode."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.executescript(SETUP)
    connection.close()


def main(database: Path, ledger: Path, rate: float, seed: int) -> None:
    """Commit at `rate` transactions a second, or as fast as it goes, until stdin is closed."""
    with ledger.open("w") as file:
        application = Application(database, file, seed)
        print("ready", flush=True)
        due = time.monotonic()
        while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            due = max(due + 1 / rate, time.monotonic() - 1)
            application.step()
    print(json.dumps({"counts": application.counts, "longest_s": application.longest_s}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
