"""Compaction, snapshots and retention under way: a live mount on top, and the real Litestream by turns with ours."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.ltxstore.plan import reachable_txids
from litereplica.ltxstore.store import open_ltx_store
from litereplica.restore.restore import restore
from litereplica.testing.litestream import LitestreamProcess, litestream_restore, run_litestream
from litereplica.testing.mounts import MountedReplica
from litereplica.types import FileInfo
from tests.conftest import S3Bucket
from tests.helpers.maintained import maintained

pytestmark = pytest.mark.slow

ACCOUNTS = 400
TOTAL = ACCOUNTS * 100
DEADLINE_S = 180.0
SOME_MERGES = 20
SOME_DELETIONS = 100
PAUSE_S = 0.02
BUSY_TIMEOUT_S = 10.0

SETUP = f"""
PRAGMA journal_mode=wal;
CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, note BLOB);
CREATE TABLE entry (id INTEGER PRIMARY KEY, amount INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
    INSERT INTO account SELECT i, 100, randomblob(300) FROM n;
"""
TRANSFER = f"""
BEGIN IMMEDIATE;
UPDATE account SET balance = balance - 1, note = randomblob(300) WHERE id = 1 + abs(random()) % {ACCOUNTS};
UPDATE account SET balance = balance + 1 WHERE id = 1 + (SELECT count(*) FROM entry) % {ACCOUNTS};
INSERT INTO entry (amount) VALUES (1);
COMMIT;
"""
QUERY = "SELECT (SELECT max(id) FROM entry), (SELECT sum(balance) FROM account)"

COMPACTING: dict[str, Any] = {
    "levels": [{"interval": "500ms"}, {"interval": "1500ms"}],
    "snapshot": {"interval": "3s", "retention": "6s"},
    "l0-retention": "1s",
    "l0-retention-check-interval": "500ms",
}


@contextmanager
def transfers(db: Path) -> Iterator[None]:
    """Money moves until the block is left."""
    stop = threading.Event()

    def run() -> None:
        with closing(sqlite3.connect(db, isolation_level=None, timeout=BUSY_TIMEOUT_S)) as connection:
            while not stop.wait(PAUSE_S):
                connection.executescript(TRANSFER)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def open_primary(db: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(db, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    connection.executescript(SETUP)
    return connection


def files_of(url: str) -> list[FileInfo]:
    async def listed() -> list[FileInfo]:
        store = open_ltx_store(url)
        try:
            return await store.list_levels()
        finally:
            await store.aclose()

    return trio.run(listed)


class Seen:
    """What has become of a replica's files since the object was made; fails after `DEADLINE_S`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._before = set(files_of(url))
        self._new: set[FileInfo] = set()
        self._present = self._before
        self._deadline_s = time.monotonic() + DEADLINE_S

    def look(self) -> None:
        """List the files."""
        assert time.monotonic() < self._deadline_s, f"{self.merges=} {self.snapshots=} {self.deletions=}"
        self._present = set(files_of(self._url))
        self._new |= self._present - self._before

    def wait(self) -> None:
        """List the files again after a while."""
        time.sleep(10 * PAUSE_S)
        self.look()

    @property
    def merges(self) -> int:
        """New files of levels 1 to 8."""
        return sum(info.level in range(1, 9) for info in self._new)

    @property
    def snapshots(self) -> int:
        """New files of level 9."""
        return sum(info.level == 9 for info in self._new)

    @property
    def deletions(self) -> int:
        """Files that were there and are gone."""
        return len((self._before | self._new) - self._present)

    def newest(self, level: int) -> int:
        """The newest TXID of a level, 0 if it is empty."""
        return max((info.max_txid for info in self._present if info.level == level), default=0)

    def is_pruned(self) -> bool:
        """True if there are files of every level, and the oldest `SOME_DELETIONS` of level 0 are gone."""
        oldest = min((info.min_txid for info in self._present if info.level == 0), default=0)
        return oldest > SOME_DELETIONS and {0, 1, 2, 3, 9} <= {info.level for info in self._present}


def assert_all_is_restored_alike(
    url: str, primary: sqlite3.Connection, directory: Path, *, advertised: bool = True
) -> None:
    """Every point by us, the first and some of the others by Litestream as well; the newest is the database.

    `advertised`: every end of a file is such a point. Litestream deletes the oldest first, which leaves others.
    """

    async def check() -> None:
        store = open_ltx_store(url)
        files = await store.list_levels()
        points = reachable_txids(files)
        ends = {info.max_txid for info in files}
        assert points[-1] == max(ends)
        assert set(points) == ends or not advertised
        for txid in points:
            await restore(store, directory / "ours.db", target=txid, force=True)
            with closing(sqlite3.connect(f"file:{directory}/ours.db?immutable=1", uri=True)) as restored:
                assert restored.execute(QUERY).fetchone()[1] == TOTAL, txid
            if txid in points[:: max(1, len(points) // 4)]:
                (directory / "theirs.db").unlink(missing_ok=True)
                done = run_litestream("restore", "-txid", f"{txid:016x}", "-o", directory / "theirs.db", url)
                assert done.code == 0, (txid, done.stderr)
                assert (directory / "ours.db").read_bytes() == (directory / "theirs.db").read_bytes(), txid
        await store.aclose()

    trio.run(check)
    (directory / "theirs.db").unlink(missing_ok=True)
    litestream_restore(url, directory / "theirs.db")
    assert (directory / "ours.db").read_bytes() == (directory / "theirs.db").read_bytes() == primary.serialize()


@pytest.mark.slow
def test_mount_stays_right_through_compaction_and_retention(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    """Until files were merged into every level, superseded ones deleted, and several snapshots made."""
    db, url = tmp_path / "app.db", s3_bucket.url
    with closing(open_primary(db)) as primary:
        reads = 0
        with (
            maintained(db, url) as done,
            MountedReplica(url, tmp_path / "mount", poll_interval="20ms") as mount,
            transfers(db),
            closing(sqlite3.connect(mount.path, isolation_level=None, timeout=0)) as reader,
        ):
            newest, seen = 0, Seen(url)
            while not (reads > 200 and seen.merges >= SOME_MERGES and seen.snapshots >= 2 and seen.is_pruned()):
                row = reader.execute(QUERY).fetchone()
                assert row[1] == TOTAL
                assert (row[0] or 0) >= newest
                newest, reads = row[0] or 0, reads + 1
                if reads % 50 == 0:
                    seen.look()
                    assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                time.sleep(PAUSE_S)
            (last,) = primary.execute("SELECT max(id) FROM entry").fetchone()
            mount.wait_until(lambda: reader.execute(QUERY).fetchone()[0] >= last, what=f"entry {last}")
        assert done["log"] == ""
        assert done["deletions"] >= SOME_DELETIONS
        assert_all_is_restored_alike(url, primary, tmp_path)


@pytest.mark.slow
def test_levels_are_handed_over_both_ways_twice_by_running_writers(tmp_path: Path) -> None:
    """Each publishes, compacts, makes snapshots and deletes on top of the other's files."""
    db, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    with closing(open_primary(db)) as primary:
        for _ in range(2):
            with maintained(db, url) as done, transfers(db):
                seen = Seen(url)
                while seen.merges < 6 or not seen.deletions:
                    seen.wait()
            assert (done["log"], done["error"]) == ("", "")
            assert done["merges"] >= 4
            assert done["deletions"] > 0
            assert_all_is_restored_alike(url, primary, tmp_path)
            ours = files_of(url)
            with LitestreamProcess(db, url, sync_interval="50ms", settings=COMPACTING) as litestream:
                newest = max(info.max_txid for info in ours)
                with transfers(db):
                    seen = Seen(url)
                    while not seen.deletions or seen.newest(2) <= newest:
                        seen.wait()
                litestream.sync()
                log = litestream.log
            assert "level=ERROR" not in log
            assert "compaction failed" not in log
            theirs = files_of(url)
            assert max(info.max_txid for info in theirs if info.level == 2) > max(info.max_txid for info in ours)
            assert {info for info in ours if info.level == 0} - set(theirs)
            assert_all_is_restored_alike(url, primary, tmp_path, advertised=False)
