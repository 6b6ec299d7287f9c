"""What the real Litestream publishes, mounted live: after each sync the mount equals the primary.

That holds for a connection that was there all the time and for a fresh one; a reader that stays in a transaction sees
what it saw at its beginning. Litestream checkpoints every few hundred pages.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import S3Bucket
from tests.helpers.litestream import LitestreamProcess
from tests.helpers.mounts import MountedReplica

TRANSACTIONS = 84
"""Of each of six histories: 504 in all."""
MAX_BATCH = 6
REPIN_EVERY = 4
CHECKPOINTING = {"min-checkpoint-page-count": 200}
"""Litestream's own checkpoints, after each of which the WAL begins anew."""

SETUP = """
CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, body BLOB);
CREATE TABLE pair(a TEXT, b INTEGER, note TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5(title, text);
"""


class Workload:
    """Transactions of every kind in turn, their sizes in pages; the same for the same seed."""

    def __init__(self, primary: sqlite3.Connection, *, page_size: int, seed: int) -> None:
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


def content(connection: sqlite3.Connection) -> str:
    """A digest of a dump of every table, shadow tables included."""
    digest = hashlib.sha256()
    for line in connection.iterdump():
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=0)


def make_primary(path: Path, *, page_size: int, auto_vacuum: int) -> sqlite3.Connection:
    primary = sqlite3.connect(path, isolation_level=None)
    primary.execute(f"PRAGMA page_size={page_size}")
    primary.execute(f"PRAGMA auto_vacuum={auto_vacuum}")
    primary.execute("PRAGMA journal_mode=wal")
    # Litestream loses transactions when an application checkpoints between two syncs; its manual says not to
    primary.execute("PRAGMA wal_autocheckpoint=0")
    primary.executescript(SETUP)
    return primary


class Pin:
    """A reader that stays in one transaction, and what it saw at its beginning."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self._begin()

    def assert_kept(self) -> None:
        assert content(self._connection) == self._seen

    def renew(self) -> None:
        self._connection.execute("COMMIT")
        self._begin()

    def close(self) -> None:
        self._connection.close()

    def _begin(self) -> None:
        self._connection.execute("BEGIN")
        self._seen = content(self._connection)


def follow(
    primary: sqlite3.Connection, litestream: LitestreamProcess, mount: MountedReplica, workload: Workload
) -> int:
    """Commit in batches and compare after each; returns the number of batches."""
    sizes = random.Random(1)
    done = batches = 0
    with closing(connect(mount.path)) as held, closing(Pin(mount.path)) as pin:
        while done < TRANSACTIONS:
            batch = min(sizes.randrange(1, MAX_BATCH + 1), TRANSACTIONS - done)
            for _ in range(batch):
                workload.step()
            done += batch
            batches += 1
            mount.wait_for(litestream.sync())
            now = content(primary)
            assert content(held) == now, f"the held connection, after {done} transactions"
            assert held.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            with closing(connect(mount.path)) as fresh:
                assert content(fresh) == now, f"a fresh connection, after {done} transactions"
                assert fresh.execute("SELECT count(*) FROM words WHERE words MATCH 'number'").fetchone() == (
                    primary.execute("SELECT count(*) FROM words WHERE words MATCH 'number'").fetchone()
                )
            pin.assert_kept()
            if batches % REPIN_EVERY == 0:
                pin.renew()
    return batches


def run(directory: Path, url: str, *, page_size: int, auto_vacuum: int) -> None:
    db = directory / "primary.db"
    with closing(make_primary(db, page_size=page_size, auto_vacuum=auto_vacuum)) as primary:
        workload = Workload(primary, page_size=page_size, seed=page_size)
        with (
            LitestreamProcess(db, url, sync_interval="100ms", db_settings=CHECKPOINTING) as litestream,
            MountedReplica(url, directory / "mount", poll_interval="20ms") as mount,
        ):
            batches = follow(primary, litestream, mount, workload)
            statistics = mount.statistics()
            assert statistics["advances"] >= batches
            assert mount.status()["replica"]["page_size"] == page_size


@pytest.mark.slow
@pytest.mark.parametrize(("page_size", "auto_vacuum"), [(512, 2), (4096, 2), (65536, 2)])
def test_mount_equals_the_primary_after_each_sync_to_a_directory(
    tmp_path: Path, page_size: int, auto_vacuum: int
) -> None:
    run(tmp_path, f"file://{tmp_path}/replica", page_size=page_size, auto_vacuum=auto_vacuum)


@pytest.mark.slow
@pytest.mark.parametrize(("page_size", "auto_vacuum"), [(512, 0), (4096, 1), (65536, 2)])
def test_mount_equals_the_primary_after_each_sync_to_an_s3_store(
    tmp_path: Path, s3_bucket: S3Bucket, page_size: int, auto_vacuum: int
) -> None:
    run(tmp_path, s3_bucket.url, page_size=page_size, auto_vacuum=auto_vacuum)
