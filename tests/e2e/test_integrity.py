"""A flipped bit in a large file is never served by a real mount: its clients get what is right, or an I/O error.

The replica is published by the real commands, with the sums that they put beside their files; the real Litestream
works on top of it and knows nothing of them.
"""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from litereplica.errors import ExitCode
from litereplica.format.decoder import decode_file
from litereplica.format.names import Layout, file_key
from litereplica.ltxstore.frame_checksums import frame_checksums_key
from litereplica.ltxstore.store import WHOLE_FILE_LIMIT
from litereplica.testing.litestream import NEVER, LitestreamProcess, litestream_ltx, litestream_restore
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from litereplica.types import FileInfo
from tests.conftest import S3Bucket

ROWS = 2000
COMMAND_DEADLINE_S = 60.0
EIO = ("disk I/O error", "database disk image is malformed")
"""What SQLite makes of a read that fails with EIO."""

DAMAGE = ["is not as the sums beside the file say", "read: 0", "read: ltx/", "page locations"]

COMPACTING: dict[str, Any] = {
    "levels": [{"interval": "200ms"}],
    "snapshot": {"interval": "300ms", "retention": "1s"},
    "l0-retention": "300ms",
    "l0-retention-check-interval": "200ms",
}


def litereplica(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [litereplica_binary(), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, check=False)


def publish(directory: Path, url: str) -> dict[int, bytes]:
    """A database whose first file is large; returns its rows."""
    db = directory / "primary.db"
    with closing(sqlite3.connect(db, isolation_level=None)) as primary:
        primary.execute("PRAGMA journal_mode=wal")
        primary.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)")
        primary.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " INSERT INTO t SELECT i, randomblob(900) FROM n",
            (ROWS,),
        )
        rows = dict(primary.execute("SELECT id, body FROM t").fetchall())
    done = litereplica("replicate", db, url, "--once")
    assert done.returncode == 0, done.stderr
    return rows


def flip(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    path.write_bytes(data)


def read_all(mount: MountedReplica, rows: dict[int, bytes]) -> int:
    """Look up every row; what is answered is right. Returns how many were not answered."""
    failed = 0
    with closing(sqlite3.connect(mount.path, isolation_level=None)) as reader:
        for key, body in rows.items():
            try:
                found = reader.execute("SELECT body FROM t WHERE id = ?", (key,)).fetchone()
            except sqlite3.DatabaseError as exc:
                if str(exc) not in EIO:
                    raise
                failed += 1
                continue
            assert found == (body,)
    return failed


@pytest.mark.slow
def test_clients_get_an_error_where_pages_are_damaged_and_the_right_rows_everywhere_else(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/replica"
    rows = publish(tmp_path, url)
    path = tmp_path / "replica" / file_key(Layout.FILE, 0, 1, 1)
    assert path.stat().st_size > WHOLE_FILE_LIMIT
    index = decode_file(path.read_bytes()).index
    damaged = [len(index) // 3, len(index) // 2, len(index) - 1]  # of which the rows are leaves
    for row, part in zip(damaged, (3, 9, int(index.size[-1]) // 2), strict=True):  # pgno, size, body
        flip(path, int(index.offset[row]) + part)
    with MountedReplica(
        url, tmp_path / "mount", options=["--no-hydrate"], expected_problems=[*DAMAGE, "frame of page"]
    ) as mount:
        assert len(damaged) <= read_all(mount, rows) <= 6 * len(damaged)
        assert mount.log.count(f"{file_key(Layout.FILE, 0, 1, 1)}: page") >= 1


@pytest.mark.slow
def test_clients_notice_nothing_while_another_file_has_the_page(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/replica"
    rows = publish(tmp_path, url)
    done = litereplica("snapshot", url)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "replica" / file_key(Layout.FILE, 9, 1, 1)
    index = decode_file(path.read_bytes()).index
    flip(path, *(int(index.offset[row]) + 1000 for row in range(5, len(index), 50)))
    with MountedReplica(url, tmp_path / "mount", options=["--no-hydrate"], expected_problems=DAMAGE) as mount:
        assert read_all(mount, rows) == 0
        assert "is not as the sums beside the file say" in mount.log


@pytest.mark.slow
def test_a_damaged_page_index_is_not_mounted(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/replica"
    publish(tmp_path, url)
    path = tmp_path / "replica" / file_key(Layout.FILE, 0, 1, 1)
    flip(path, 39)  # the time in its header: nothing else would tell
    (tmp_path / "mnt").mkdir()
    done = litereplica("mount", url, tmp_path / "mnt", "--cache-dir", tmp_path / "cache")
    assert done.returncode == ExitCode.DAMAGED
    assert "0000000000000001-0000000000000001.ltx" in done.stderr


def litestream_on_top(directory: Path, url: str) -> None:
    """The real Litestream lists, restores, replicates, compacts and deletes beside the sums as if they were not."""
    publish(directory, url)
    done = litereplica("snapshot", url)
    assert done.returncode == 0, done.stderr
    assert {(each["level"], each["max_txid"]) for each in litestream_ltx(url)} == {
        (0, "0000000000000001"),
        (9, "0000000000000001"),
    }
    litestream_restore(url, directory / "theirs.db")
    db = directory / "theirs.db"
    with closing(sqlite3.connect(db, isolation_level=None)) as primary:
        primary.execute("PRAGMA journal_mode=wal")
        with LitestreamProcess(db, url, sync_interval=NEVER, settings=COMPACTING) as litestream:
            for n in range(30):
                primary.execute("UPDATE t SET body = randomblob(900) WHERE id = ?", (n + 1,))
                litestream.sync()
            assert "level=ERROR" not in litestream.log
        rows = dict(primary.execute("SELECT id, body FROM t").fetchall())
    litestream_restore(url, directory / "again.db")
    with closing(sqlite3.connect(directory / "again.db")) as again:
        assert dict(again.execute("SELECT id, body FROM t").fetchall()) == rows
    with MountedReplica(url, directory / "mount", options=["--no-hydrate"]) as mount:
        assert read_all(mount, rows) == 0


@pytest.mark.slow
def test_litestream_works_on_top_of_a_directory_with_sums(tmp_path: Path) -> None:
    litestream_on_top(tmp_path, f"file://{tmp_path}/replica")
    assert (tmp_path / "replica" / frame_checksums_key(FileInfo(9, 1, 1, 0))).exists()


@pytest.mark.slow
def test_litestream_works_on_top_of_an_s3_store_with_sums(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    litestream_on_top(tmp_path, s3_bucket.url)
