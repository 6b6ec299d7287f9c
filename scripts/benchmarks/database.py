"""The database that is measured: a table of rows to find and to scan, and a small one that a steady load grows."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOOKUP_QUERY = "SELECT name FROM item WHERE id = ?"
SCAN_QUERY = "SELECT sum(length(body)) FROM item WHERE id BETWEEN ? AND ?"
BEAT_QUERY = "SELECT coalesce(max(id), 0) FROM beat"

BODY_SIZE = 220
"""With the name and the record's header some 250 bytes a row: 16 rows a page, 231 MB for 900,000."""
BEAT_SIZE = 200


def make_database(path: Path, rows: int) -> None:
    """`item` with `rows` rows of about 250 bytes, ids from 1, and an empty `beat`; in WAL mode, checkpointed."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, body BLOB)")
    connection.execute("CREATE TABLE beat(id INTEGER PRIMARY KEY, padding TEXT)")
    connection.execute("BEGIN")
    chance = random.Random(1)
    connection.executemany(
        "INSERT INTO item VALUES (?, ?, ?)", ((i, f"item {i}", chance.randbytes(BODY_SIZE)) for i in range(1, rows + 1))
    )
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


class Primary:
    """The application's connection, which commits beats."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self.beats = 0

    def commit(self) -> float:
        """Commit the next beat; the moment (`time.perf_counter`) at which COMMIT had returned."""
        self.beats += 1
        self._connection.execute("INSERT INTO beat VALUES (?, ?)", (self.beats, "x" * BEAT_SIZE))
        return time.perf_counter()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def steady_commits(path: Path, *, per_second: float) -> Iterator[Primary]:
    """Commit beats at a steady rate, from a thread, while the block runs."""
    primary, ended = Primary(path), threading.Event()

    def work() -> None:
        due = time.perf_counter()
        while not ended.wait(max(0.0, due - time.perf_counter())):
            primary.commit()
            due += 1 / per_second

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield primary
    finally:
        ended.set()
        thread.join()
        primary.close()
