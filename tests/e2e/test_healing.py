"""What happens in a store while a mount follows it: files are compacted and deleted under it, and no client notices."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from litereplica.format.compactor import compact
from litereplica.format.decoder import decode_file
from litereplica.format.names import Layout, file_key
from litereplica.fuse import mountpoint as mountpoints
from litereplica.testing.ltx_files import compaction_input
from tests.helpers.publisher import Publisher

pytestmark = pytest.mark.slow

DEADLINE_S = 15.0
KNOWN_PROBLEM = "does not exist"
"""The kernel reads ahead, over pages that a newer transaction has replaced and that no file has any more. It asks again
for those that a client needs."""
ROWS = 600

SETUP = f"""
CREATE TABLE t (id INTEGER PRIMARY KEY, value BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
INSERT INTO t SELECT i, randomblob(3000) FROM n;
"""


@dataclass(slots=True)
class Scene:
    """A primary, its store, a mount of it, and a client that has been inside from the beginning."""

    publisher: Publisher
    process: subprocess.Popen[str]
    path: Path
    client: sqlite3.Connection

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """The mount does not see what happens inside until it is over."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def commit(self, count: int) -> None:
        for _ in range(count):
            txid = self.publisher.txid + 1
            self.publisher.transaction(f"UPDATE t SET value = 'at {txid}' WHERE id % 100 = {txid}")

    def compact(self, level: int, first: int, last: int) -> None:
        """Make one file of a range of L0 files, which stay."""
        files = [decode_file(self.file(0, txid).read_bytes()) for txid in range(first, last + 1)]
        inputs = [compaction_input(f.header, zip(f.index.pgno.tolist(), f.pages, strict=True)) for f in files]
        path = self.file(level, first, last)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(b"".join(compact(inputs)))
        temporary.rename(path)

    def delete(self, *txids: int) -> None:
        for txid in txids:
            self.file(0, txid).unlink()

    def file(self, level: int, first: int, last: int | None = None) -> Path:
        return self.publisher.replica / file_key(Layout.FILE, level, first, last or first)

    def position(self) -> int:
        return int(self.path.with_name("app.db-pos").read_text()[:16], 16)

    def wait_for(self, txid: int) -> None:
        wait_until(lambda: self.position() == txid)

    def check(self) -> None:
        """The client that was there all the time, and a new one, see what the primary has."""
        expected = content(self.publisher.connection)
        assert content(self.client) == expected
        with closing(sqlite3.connect(self.path)) as fresh:
            assert content(fresh) == expected
            assert fresh.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def content(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT * FROM t ORDER BY id").fetchall()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.01)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """At TXID 5, with the files of the TXIDs 1 to 5 in level 0; the client has read one row."""
    path = tmp_path / "mnt"
    path.mkdir()
    with Publisher(tmp_path / "primary", setup=SETUP) as publisher, (tmp_path / "log").open("w+") as log:
        for txid in range(2, 6):
            publisher.transaction(f"UPDATE t SET value = 'at {txid}' WHERE id = {txid}")
        command = [sys.executable, "-m", "tests.e2e.healing_mount", publisher.url, str(path)]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            with process.stdout:
                assert process.stdout.readline() == "ready\n"
            with closing(sqlite3.connect(path / "app.db", isolation_level=None)) as client:
                assert client.execute("SELECT value FROM t WHERE id = 5").fetchone() == ("at 5",)
                scene = Scene(publisher, process, path / "app.db", client)
                yield scene
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
            log.seek(0)
            problems = [line for line in log if line.startswith(("WARNING", "ERROR"))]
            assert [line for line in problems if KNOWN_PROBLEM not in line] == []
        finally:
            process.kill()
            process.wait()
            if mountpoints.mount_at(path) is not None:
                mountpoints.unmount(path, lazy=True)


def test_files_vanish_whose_pages_lie_in_a_compacted_one_now(scene: Scene) -> None:
    scene.compact(1, 1, 5)
    scene.delete(1, 2, 3, 4)
    scene.check()
    assert scene.position() == 5


def test_files_vanish_while_transactions_go_on(scene: Scene) -> None:
    scene.commit(5)
    scene.wait_for(10)
    scene.compact(1, 1, 9)
    scene.delete(*range(1, 10))
    scene.check()
    scene.commit(3)
    scene.wait_for(13)
    scene.check()


def test_a_compacted_file_straddles_the_position_and_the_files_after_it_are_gone(scene: Scene) -> None:
    with scene.unseen():
        scene.commit(4)
        scene.compact(1, 4, 8)
        scene.delete(4, 5, 6, 7, 8)
    scene.wait_for(9)
    scene.check()


def test_a_gap_that_only_a_snapshot_bridges(scene: Scene) -> None:
    with scene.unseen():
        scene.commit(4)
        scene.compact(9, 1, 8)
        scene.delete(*range(1, 9))
    scene.wait_for(9)
    scene.check()


def test_a_snapshot_alone_leads_on_after_everything_else_has_gone(scene: Scene) -> None:
    with scene.unseen():
        scene.publisher.connection.execute("DELETE FROM t WHERE id > 50")
        scene.publisher.connection.execute("VACUUM")
        scene.publisher.publish()
        scene.compact(9, 1, 6)
        scene.delete(*range(1, 6))
    scene.wait_for(6)
    scene.check()
    scene.commit(1)
    scene.wait_for(7)
    scene.check()


def test_a_transaction_that_is_open_meanwhile_keeps_its_snapshot(scene: Scene) -> None:
    scene.client.execute("BEGIN")
    before = content(scene.client)
    with scene.unseen():
        scene.commit(4)
        scene.compact(1, 4, 8)
        scene.delete(4, 5, 6, 7, 8)
    scene.wait_for(9)
    assert content(scene.client) == before
    scene.client.execute("COMMIT")
    scene.check()
