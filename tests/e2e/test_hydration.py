"""A mount that warms itself, and one that tells rather than serve what is too old."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.format.names import Layout, file_key
from litereplica.testing.mounts import MountedReplica
from tests.helpers.publisher import Publisher

SETUP = """
CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000)
    INSERT INTO t SELECT i, randomblob(900) FROM n;
"""
SCAN = "SELECT sum(length(body)), max(body) FROM t"


def until_hydrated(mount: MountedReplica) -> None:
    mount.wait_until(
        lambda: mount.status()["replica"]["hydration"]["state"] == "complete", what="hydration of the database"
    )


def gets(mount: MountedReplica, *purposes: str) -> int:
    ledger = mount.status()["replica"]["ledger"]
    return sum(each["requests"] for purpose in purposes for each in ledger[purpose]["by_operation"].values())


def test_a_hydrated_database_is_read_without_a_request_of_any_kind(tmp_path: Path) -> None:
    with Publisher(tmp_path, setup=SETUP) as publisher, MountedReplica(publisher.url, tmp_path / "mount") as mount:
        until_hydrated(mount)
        before = mount.statistics()["reads_database"]
        with closing(sqlite3.connect(mount.path)) as reader:
            assert reader.execute(SCAN).fetchone() == publisher.connection.execute(SCAN).fetchone()
            assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert mount.statistics()["reads_database"] - before <= 2  # the kernel's own first page may come by a READ
        assert_read_at_once(mount, publisher)
        assert gets(mount, "page", "ahead") == 0
        assert mount.status()["replica"]["hydration"]["files_verified"] == 1


def assert_read_at_once(mount: MountedReplica, publisher: Publisher) -> None:
    """READs of what the kernel has forgotten are answered without waiting, and right, in any size and at any offset."""
    expected = publisher.path.read_bytes()
    fd = os.open(mount.path, os.O_RDONLY)
    try:
        before = mount.statistics()
        for offset, size in [(0, len(expected)), *((1 << 12 << i % 11, 700 * i + 1) for i in range(60))]:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            got = os.pread(fd, size, offset)
            skipped = 0 if offset else 100  # the header says that the mount is in WAL mode
            assert got[skipped:] == expected[offset : offset + size][skipped:]
        after = mount.statistics()
    finally:
        os.close(fd)
    reads = {name: after[name] - before[name] for name in ("reads_database", "reads_at_once")}
    assert reads["reads_database"] == reads["reads_at_once"] > 60


def test_a_restarted_mount_needs_nothing_that_it_had(tmp_path: Path) -> None:
    with Publisher(tmp_path, setup=SETUP) as publisher:
        mount = MountedReplica(publisher.url, tmp_path / "mount")
        with mount:
            until_hydrated(mount)
        with mount:
            until_hydrated(mount)
            with closing(sqlite3.connect(mount.path)) as reader:
                assert reader.execute(SCAN).fetchone() == publisher.connection.execute(SCAN).fetchone()
            assert gets(mount, "page", "ahead", "hydrate") == 0


def test_without_hydration_only_what_is_asked_for_is_fetched(tmp_path: Path) -> None:
    with (
        Publisher(tmp_path, setup=SETUP) as publisher,
        MountedReplica(publisher.url, tmp_path / "mount", options=["--no-hydrate"]) as mount,
    ):
        with closing(sqlite3.connect(mount.path)) as reader:
            assert reader.execute("SELECT length(body) FROM t WHERE id = 4000").fetchone() == (900,)
        assert gets(mount, "page") >= 1
        assert gets(mount, "hydrate") == 0
        assert mount.status()["replica"]["pages_from_store"] < 1000


def test_reads_fail_while_the_replica_is_older_than_allowed_and_work_again_afterwards(tmp_path: Path) -> None:
    with (
        Publisher(tmp_path, setup=SETUP) as publisher,
        MountedReplica(
            publisher.url,
            tmp_path / "mount",
            options=["--max-staleness", "500ms"],
            expected_problems=["polling fails", "reads fail: no news", "read: no news", "open: no news", "stalled"],
        ) as mount,
        closing(sqlite3.connect(mount.path, isolation_level=None)) as reader,
    ):
        until_hydrated(mount)
        count = reader.execute("SELECT count(*) FROM t").fetchone()
        obstacle = publisher.replica / file_key(Layout.FILE, 0, 2, 2)
        obstacle.write_bytes(b"garbage")  # in the place of the next file: every poll fails
        mount.wait_until(lambda: "reads fail" in mount.log, what="the limit")
        with pytest.raises(sqlite3.Error, match="disk I/O error"):
            reader.execute("SELECT count(*) FROM t").fetchone()
        with pytest.raises(sqlite3.Error), closing(sqlite3.connect(mount.path)) as late:
            late.execute("SELECT count(*) FROM t").fetchone()
        obstacle.unlink()
        mount.wait_until(lambda: "reads work again" in mount.log, what="the next successful poll")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == count
        publisher.transaction("DELETE FROM t WHERE id > 10")
        mount.wait_for(2)
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (10,)
