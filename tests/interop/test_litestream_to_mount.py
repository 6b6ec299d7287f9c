"""What the real Litestream publishes, mounted live: after each sync the mount equals the primary.

That holds for a connection that was there all the time and for a fresh one; a reader that stays in a transaction sees
what it saw at its beginning. Litestream checkpoints every few hundred pages.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.testing.litestream import LitestreamProcess
from litereplica.testing.mounts import MountedReplica
from tests.conftest import S3Bucket
from tests.helpers.workload import Workload, content, open_primary

pytestmark = pytest.mark.slow

TRANSACTIONS = 84
"""Of each of six histories: 504 in all."""
MAX_BATCH = 6
REPIN_EVERY = 4
CHECKPOINTING = {"min-checkpoint-page-count": 200}
"""Litestream's own checkpoints, after each of which the WAL begins anew."""


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=0)


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
    with closing(open_primary(db, page_size=page_size, auto_vacuum=auto_vacuum)) as primary:
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
