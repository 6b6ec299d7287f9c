"""What `litereplica replicate` publishes, read by the real Litestream: its restore and its VFS, and by a mount."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import litestream_vfs  # type: ignore[import-untyped]  # it has no annotations
import pytest

from litereplica.testing.litestream import child_environment, litestream_restore
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from tests.conftest import S3Bucket
from tests.helpers.workload import Workload, content, open_primary

pytestmark = pytest.mark.slow

TRANSACTIONS = 56
BATCH = 7
END_DEADLINE_S = 30.0
COMMAND_DEADLINE_S = 60.0


@contextmanager
def replicating(db: Path, url: str, log: Path) -> Iterator[None]:
    """`litereplica replicate` until the block is left; then it publishes what is left, and must end well."""
    command = [litereplica_binary(), "replicate", str(db), url, "--sync-interval", "100ms", "--log-file", str(log)]
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL) as process:
        try:
            yield
        except BaseException as exc:
            process.kill()
            exc.add_note(log.read_text() if log.exists() else "no log")
            raise
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert code == 0, log.read_text()


def cli(database: str | Path, *commands: str, environment: dict[str, str] | None = None) -> str:
    """What the `sqlite3` program prints."""
    done = subprocess.run(
        ["sqlite3", "-init", os.devnull, "-batch", "-bail", str(database), *commands],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def through_litestream_vfs(url: str, *commands: str) -> str:
    """The same, reading the replica through Litestream's VFS."""
    environment = child_environment() | {"LITESTREAM_REPLICA_URL": url}
    opening = (f".load {litestream_vfs.loadable_path()}", ".open file:any.db?vfs=litestream")
    return cli(":memory:", *opening, *commands, environment=environment)


def restored(url: str, path: Path) -> bytes:
    """Our own restore."""
    command = [litereplica_binary(), "restore", url, "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=COMMAND_DEADLINE_S)
    return path.read_bytes()


def with_marker(primary: sqlite3.Connection, mount: MountedReplica, number: int) -> None:
    """Commit a marker, and wait until the mount shows it: all that was committed before is there as well."""
    primary.execute("INSERT INTO pair VALUES ('marker', ?, '')", (number,))
    with closing(sqlite3.connect(mount.path, isolation_level=None, timeout=0)) as reader:
        query = "SELECT 1 FROM pair WHERE a = 'marker' AND b = ?"
        mount.wait_until(lambda: reader.execute(query, (number,)).fetchone(), what=f"marker {number}")
        assert content(reader) == content(primary)
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def run(directory: Path, url: str, *, page_size: int, auto_vacuum: int) -> None:
    db = directory / "primary.db"
    with closing(open_primary(db, page_size=page_size, auto_vacuum=auto_vacuum)) as primary:
        workload = Workload(primary, page_size=page_size, seed=page_size, checkpoints=True)
        first = subprocess.run(
            [litereplica_binary(), "replicate", str(db), url, "--once"], capture_output=True, check=True
        )
        assert b"TXID 0000000000000001" in first.stdout
        with (
            replicating(db, url, directory / "replicate.log"),
            MountedReplica(url, directory / "mount", poll_interval="20ms") as mount,
        ):
            for number in range(TRANSACTIONS // BATCH):
                for _ in range(BATCH):
                    workload.step()
                with_marker(primary, mount, number)
            assert through_litestream_vfs(url, ".dump") == cli(db, ".dump")
            primary.execute("INSERT INTO item(name) VALUES ('the last')")
        litestream_restore(url, directory / "theirs.db")
        theirs = (directory / "theirs.db").read_bytes()
        assert restored(url, directory / "ours.db") == theirs
        assert theirs == primary.serialize()
        assert cli(directory / "theirs.db", "PRAGMA integrity_check", ".dump") == cli(
            db, "PRAGMA integrity_check", ".dump"
        )
        assert through_litestream_vfs(url, "PRAGMA integrity_check", ".dump") == cli(
            db, "PRAGMA integrity_check", ".dump"
        )


@pytest.mark.slow
@pytest.mark.parametrize(("page_size", "auto_vacuum"), [(512, 2), (4096, 0), (65536, 1)])
def test_litestream_restores_and_reads_what_replicate_published_to_a_directory(
    tmp_path: Path, page_size: int, auto_vacuum: int
) -> None:
    run(tmp_path, f"file://{tmp_path}/replica", page_size=page_size, auto_vacuum=auto_vacuum)


@pytest.mark.slow
def test_litestream_restores_and_reads_what_replicate_published_to_an_s3_store(
    tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    run(tmp_path, s3_bucket.url, page_size=4096, auto_vacuum=2)
