"""One connection, held from the first to the last of a thousand transactions while the database grows and shrinks."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.testing.mounts import MountedReplica
from tests.helpers.publisher import Publisher

TRANSACTIONS = 1000
CATCH_UP_EVERY = 20
CHECK_EVERY = 100

SETUP = """
CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);
CREATE TABLE now(txid INTEGER, rows INTEGER, bytes INTEGER);
INSERT INTO now VALUES (1, 0, 0);
"""
TALLY = "SELECT count(*), coalesce(sum(length(body)), 0) FROM t"


def change(dice: random.Random, rows: int) -> str:
    """Grow, shrink (the file is cut at once: auto_vacuum is full), or rewrite."""
    if rows > 400 or (rows and dice.random() < 0.1):
        return f"DELETE FROM t WHERE id % {dice.choice((2, 3, 10))} <> 0"
    if rows and dice.random() < 0.3:
        return f"UPDATE t SET body = randomblob({dice.randrange(10, 900)}) WHERE id % 7 = {dice.randrange(7)}"
    return (
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {dice.randrange(1, 40)})"
        " INSERT INTO t(body) SELECT randomblob(500) FROM n"
    )


@pytest.mark.slow
def test_a_connection_sees_each_state_right_through_1000_transactions_of_growth_and_shrink(tmp_path: Path) -> None:
    dice = random.Random(5)
    sizes, seen = set(), [0]
    with (
        Publisher(tmp_path, setup=SETUP, page_size=1024, auto_vacuum=1) as publisher,
        MountedReplica(publisher.url, tmp_path / "mount", poll_interval="10ms") as mount,
        closing(sqlite3.connect(mount.path, isolation_level=None, timeout=0)) as reader,
    ):

        def look() -> int:
            reader.execute("BEGIN")
            now = reader.execute("SELECT txid, rows, bytes FROM now").fetchone()
            assert reader.execute(TALLY).fetchone() == now[1:]
            sizes.add(reader.execute("PRAGMA page_count").fetchone()[0])
            reader.execute("COMMIT")
            assert now[0] >= seen[-1]
            seen.append(now[0])
            return int(now[0])

        for number in range(1, TRANSACTIONS + 1):
            rows = publisher.connection.execute(TALLY).fetchone()[0]
            tally = f"(rows, bytes) = ({TALLY})"
            txid = publisher.transaction(change(dice, rows), f"UPDATE now SET txid = {number + 1}, {tally}")
            assert look() <= txid
            if number % CATCH_UP_EVERY == 0:
                mount.wait_for(txid)
                assert look() == txid
            if number % CHECK_EVERY == 0:
                assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert reader.execute("PRAGMA page_count").fetchone()[0] == len(publisher.content) // 1024
    assert len(set(seen)) > TRANSACTIONS // CATCH_UP_EVERY
    assert max(sizes) > 3 * min(sizes)
