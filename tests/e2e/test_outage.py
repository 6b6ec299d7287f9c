"""The store is away for a while: what is at hand is served, what is not fails in time, and afterwards all is well."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from litereplica.replica.poller import MAX_BACK_OFF_S
from litereplica.storage.wrappers import DEFAULT_POLICY
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from tests.conftest import S3Bucket

ROWS = 4000
TABLE = (
    "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)",
    f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})"
    " INSERT INTO t SELECT i, randomblob(3000) FROM n",
)
POLL_INTERVAL_S = 0.2
READ_TIMEOUT_S = 6.0
SLACK_S = 3.0
"""What a busy machine adds to any of these times."""

RECOVERY_S = DEFAULT_POLICY.delay_limit_s(DEFAULT_POLICY.attempts - 1) + MAX_BACK_OFF_S
"""The longest pause within a poll that fails, and that before the next one."""

COLD_READS = 150

DEADLINE_S = 60.0


def publish(db: Path, url: str, *statements: str) -> None:
    with closing(sqlite3.connect(db, isolation_level=None)) as primary:
        primary.execute("PRAGMA journal_mode=wal")
        for statement in statements:
            primary.execute(statement)
    command = [litereplica_binary(), "replicate", str(db), url, "--once"]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)


@contextmanager
def silent(pid: int) -> Iterator[None]:
    """The store answers nobody."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def mapping_client(path: Path, query: str) -> subprocess.CompletedProcess[bytes]:
    """A client of its own that maps the database file into memory."""
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA mmap_size = 1000000000');"
    program += " c.execute(sys.argv[2]).fetchone()"
    return subprocess.run([sys.executable, "-c", program, path, query], timeout=DEADLINE_S, capture_output=True)


@pytest.mark.slow
def test_an_outage_is_felt_by_uncached_reads_only_and_over_soon_after_the_store_is_back(
    tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    db, url = tmp_path / "primary.db", s3_bucket.url
    publish(db, url, *TABLE)
    near, far = "SELECT body FROM t WHERE id = 5", f"SELECT body FROM t WHERE id = {ROWS // 2}"
    with closing(sqlite3.connect(db)) as primary:
        right = {query: primary.execute(query).fetchone() for query in (near, far)}
    mount = MountedReplica(
        url,
        tmp_path / "mount",
        poll_interval=f"{POLL_INTERVAL_S}s",
        options=["--no-hydrate", "--read-timeout", f"{READ_TIMEOUT_S}s"],
        expected_problems=["polling fails", "read: .*(no answer|did not answer)"],
    )
    with mount, closing(sqlite3.connect(mount.path, isolation_level=None)) as reader:
        assert reader.execute(near).fetchone() == right[near]
        with silent(s3_bucket.server.pid):
            time.sleep(5 * POLL_INTERVAL_S)  # so that polls fail, too
            for _ in range(3):
                assert seconds(reader, near, right[near]) < SLACK_S
            with closing(sqlite3.connect(mount.path)) as late:
                assert seconds(late, near, right[near]) < SLACK_S
            started = time.monotonic()
            with pytest.raises(sqlite3.Error):
                reader.execute(far).fetchone()
            # so short a timeout is halved
            assert READ_TIMEOUT_S / 2 - 1 < time.monotonic() - started < READ_TIMEOUT_S + SLACK_S
            assert seconds(reader, near, right[near]) < SLACK_S
            assert mapping_client(mount.path, near).returncode == 0
            assert mapping_client(mount.path, far).returncode == -signal.SIGBUS
        assert seconds(reader, far, right[far]) < READ_TIMEOUT_S + SLACK_S
        publish(db, url, "INSERT INTO t(body) VALUES ('after the outage')")
        started = time.monotonic()
        while reader.execute("SELECT count(*) FROM t").fetchone() != (ROWS + 1,):
            assert time.monotonic() - started < RECOVERY_S + SLACK_S
            time.sleep(0.05)
        assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.slow
def test_many_cold_reads_of_a_silent_store_fail_within_the_time_of_one(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    """With the kernel's queue of 12 background requests, too, whose rounds would add up."""
    db, url = tmp_path / "primary.db", s3_bucket.url
    publish(db, url, *TABLE)
    mount = MountedReplica(
        url,
        tmp_path / "mount",
        poll_interval=f"{POLL_INTERVAL_S}s",
        options=["--no-hydrate", "--read-timeout", f"{READ_TIMEOUT_S}s"],
        expected_problems=["polling fails", "read: .*(no answer|did not answer)"],
    )
    with mount, mount.path.open("rb") as file:
        connection = Path("/sys/fs/fuse/connections") / str(os.minor(os.fstat(file.fileno()).st_dev))
        with suppress(OSError):  # it is 12 where the daemon could not raise it
            (connection / "max_background").write_text("12")
        size = os.fstat(file.fileno()).st_size
        offsets = range(size // 2, size, size // 2 // COLD_READS)[:COLD_READS]

        def fails(offset: int) -> bool:
            try:
                os.pread(file.fileno(), 4096, offset)
            except OSError:
                return True
            return False

        with silent(s3_bucket.server.pid), ThreadPoolExecutor(COLD_READS) as readers:
            started = time.monotonic()
            assert all(readers.map(fails, offsets))
            assert time.monotonic() - started < READ_TIMEOUT_S + SLACK_S
        deadline = time.monotonic() + RECOVERY_S + SLACK_S
        while any(map(fails, offsets)):
            assert time.monotonic() < deadline


def seconds(reader: sqlite3.Connection, query: str, expected: tuple[bytes]) -> float:
    """Run a query; how long it takes to give what is expected."""
    started = time.monotonic()
    assert reader.execute(query).fetchone() == expected
    return time.monotonic() - started
