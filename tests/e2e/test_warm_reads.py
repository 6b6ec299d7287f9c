"""What has been read once is read again without a request, whatever is applied to other pages meanwhile."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.helpers.mounts import MountedReplica
from tests.helpers.publisher import Publisher

ROWS = 20_000
LOOK_UPS = 10_000
TRANSACTIONS = 20

SETUP = f"""
CREATE TABLE still(id INTEGER PRIMARY KEY, text TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
    INSERT INTO still SELECT i, printf('%0100d', i) FROM n;
CREATE TABLE moving(id INTEGER PRIMARY KEY, counter INTEGER, text TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
    INSERT INTO moving SELECT i, 1, printf('%01000d', i) FROM n;
"""
SCAN = "SELECT count(*), sum(length(text)), max(text) FROM still"


def requests(mount: MountedReplica) -> dict[str, int]:
    """READ requests of the kernel so far."""
    return {name: count for name, count in mount.statistics().items() if name.startswith("reads_")}


def test_second_scan_and_look_ups_make_no_request_while_transactions_are_applied(tmp_path: Path) -> None:
    chosen = random.Random(7)  # noqa: S311
    with Publisher(tmp_path, setup=SETUP) as publisher:

        def publish() -> None:
            mount.wait_for(publisher.transaction("UPDATE moving SET counter = counter + 1"))

        with (
            MountedReplica(publisher.url, tmp_path / "mount", poll_interval="10ms") as mount,
            closing(sqlite3.connect(mount.path, isolation_level=None, timeout=0)) as connection,
        ):
            publish()
            scanned = connection.execute(SCAN).fetchall()
            assert scanned == publisher.connection.execute(SCAN).fetchall()
            before = requests(mount)
            assert before["reads_database"] > 0
            for _ in range(TRANSACTIONS):
                publish()
                for _ in range(LOOK_UPS // TRANSACTIONS):
                    number = chosen.randrange(1, ROWS + 1)
                    [(text,)] = connection.execute("SELECT text FROM still WHERE id = ?", (number,))
                    assert int(text) == number
            assert connection.execute(SCAN).fetchall() == scanned
            with closing(sqlite3.connect(mount.path)) as fresh:
                assert fresh.execute(SCAN).fetchall() == scanned
            assert requests(mount) == before
            assert mount.statistics()["advances"] > TRANSACTIONS
            assert mount.statistics()["backfills"] > 0
