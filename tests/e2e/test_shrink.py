"""The database shrinks and grows again: so do the files of the mount, and what every reader sees."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from litereplica.format.sqlite import with_journal_mode
from litereplica.testing.mounts import MountedReplica
from tests.helpers.publisher import Publisher

PAGE_SIZE = 512
ROWS = 2_500

SETUP = "CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT)"
FILL = f"""
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
    INSERT INTO t(text) SELECT printf('%0400d', i) FROM n
"""


def connect(mount: MountedReplica) -> sqlite3.Connection:
    return sqlite3.connect(mount.path, isolation_level=None, timeout=0)


def image(connection: sqlite3.Connection) -> bytes:
    """All pages as a transaction sees them, read anew."""
    connection.execute("PRAGMA shrink_memory")
    return connection.serialize()


def as_mounted(image: bytes) -> bytes:
    """A database image as a live mount serves it."""
    return with_journal_mode(image, wal=True)


def shrink(publisher: Publisher) -> None:
    """Half of the rows go, and the pages that they leave: enough frames for a checkpoint at once."""
    publisher.connection.execute("DELETE FROM t WHERE id % 2 = 0")
    publisher.connection.execute("VACUUM")
    publisher.publish()


def assert_settled(mount: MountedReplica, publisher: Publisher, *connections: sqlite3.Connection) -> None:
    """The base is at the newest position, and it is what everybody sees."""
    mount.wait_until(lambda: mount.statistics()["base"]["txid"] == publisher.txid, what="the backfill")
    size = len(publisher.content)
    mount.wait_until(lambda: mount.path.stat().st_size == size, within_s=2, what=f"a file of {size} bytes")
    with closing(connect(mount)) as fresh:
        for connection in (*connections, fresh):
            assert image(connection) == as_mounted(publisher.content)
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_mount_shrinks_and_grows_with_the_database_under_an_open_connection(tmp_path: Path) -> None:
    with (
        Publisher(tmp_path, setup=SETUP, page_size=PAGE_SIZE) as publisher,
        MountedReplica(publisher.url, tmp_path / "mount", poll_interval="10ms") as mount,
        closing(connect(mount)) as held,
    ):
        for _ in range(2):
            publisher.transaction(FILL)
            assert_settled(mount, publisher, held)
            before = len(publisher.content)
            shrink(publisher)
            assert len(publisher.content) < before * 0.7
            assert_settled(mount, publisher, held)


def test_reader_from_before_a_shrink_keeps_all_its_pages(tmp_path: Path) -> None:
    with (
        Publisher(tmp_path, setup=SETUP, page_size=PAGE_SIZE) as publisher,
        MountedReplica(publisher.url, tmp_path / "mount", poll_interval="10ms") as mount,
        closing(connect(mount)) as pinned,
        closing(connect(mount)) as other,
    ):
        publisher.transaction(FILL)
        assert_settled(mount, publisher)
        publisher.transaction("UPDATE t SET text = 'changed' WHERE id = 1")
        mount.wait_for(publisher.txid)
        full = publisher.content
        pinned.execute("BEGIN")
        assert pinned.execute("SELECT count(*) FROM t").fetchone() == (ROWS,)
        shrink(publisher)
        mount.wait_for(publisher.txid)
        assert image(other) == as_mounted(publisher.content)
        assert image(pinned) == as_mounted(full)
        publisher.transaction(FILL)
        mount.wait_for(publisher.txid)
        assert image(other) == as_mounted(publisher.content)
        assert image(pinned) == as_mounted(full)
        pinned.execute("COMMIT")
        assert_settled(mount, publisher, pinned, other)
