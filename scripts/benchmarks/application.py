"""An application that does nothing but commit, in a process of its own: what a writer beside it costs it.

    python -m benchmarks.application DATABASE TRANSACTIONS

Creates nothing: the database is `create`'s. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROWS = 10
"""In a transaction."""
ROW_BYTES = 100
BUSY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Committed:
    """How long all transactions took, and the longest of them."""

    seconds: float
    longest_s: float


def create(database: Path) -> None:
    """An empty table of events, in WAL mode."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("CREATE TABLE event (id INTEGER PRIMARY KEY, body BLOB)")
    connection.close()


def run_application(database: Path, transactions: int) -> Committed:
    """Run it to its end."""
    command = [sys.executable, "-m", "benchmarks.application", str(database), str(transactions)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return Committed(**json.loads(done.stdout))


def _commit(database: str, transactions: int) -> Committed:
    connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.execute("PRAGMA synchronous = normal")
    statement = f"INSERT INTO event (body) VALUES {', '.join([f'(randomblob({ROW_BYTES}))'] * ROWS)}"
    longest = 0.0
    start = before = time.perf_counter()
    for _ in range(transactions):
        connection.execute(statement)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    connection.close()
    return Committed(before - start, longest)


if __name__ == "__main__":
    committed = _commit(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"seconds": committed.seconds, "longest_s": committed.longest_s}))
