"""SIGHUP: daemons read their credentials and their log file anew, and go on."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from tests.conftest import S3Bucket
from tests.helpers.publisher import Publisher

pytestmark = pytest.mark.slow

DEADLINE_S = 30.0
HEARD = "received SIGHUP: looking up the credentials again"
REFUSED = r"credentials|AccessDenied|SignatureDoesNotMatch|access|403|does not answer|cannot "
"""What is logged while the store refuses."""


class Keys:
    """A shared credentials file, and the environment of processes that find their credentials in it alone."""

    def __init__(self, bucket: S3Bucket, directory: Path) -> None:
        self._server = bucket.server
        self._file = directory / "credentials"
        self.environment = {
            name: value for name, value in bucket.server.environment().items() if not name.startswith("AWS_")
        } | {
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": str(self._file),
            "AWS_CONFIG_FILE": str(directory / "none"),
        }
        self.write(right=True)

    def write(self, *, right: bool) -> None:
        secret = self._server.secret_key if right else "no-longer-right"
        key_id = self._server.access_key
        self._file.write_text(f"[default]\naws_access_key_id = {key_id}\naws_secret_access_key = {secret}\n")


@pytest.fixture
def keys(s3_bucket: S3Bucket, tmp_path: Path) -> Keys:
    return Keys(s3_bucket, tmp_path)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def make(path: Path) -> Path:
    insert(path, "PRAGMA journal_mode = wal", "CREATE TABLE t (x)")
    return path


def insert(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements or ("INSERT INTO t VALUES (1)",):
        connection.execute(statement).fetchall()
    connection.close()


def count(path: Path) -> int:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    ((found,),) = connection.execute("SELECT count(*) FROM t")
    connection.close()
    return int(found)


@contextmanager
def running(log: Path, keys: Keys | None, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the foreground that logs to its stderr, which goes to `log`."""
    environment = None if keys is None else keys.environment
    command = ["setpriv", "--pdeathsig", "KILL", litereplica_binary(), *map(str, arguments)]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stderr=output, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def files(bucket: S3Bucket) -> int:
    """The number of LTX files in it."""
    with bucket.server.client() as client:
        found = client.list_objects_v2(Bucket=bucket.name).get("Contents", [])
    return sum(each["Key"].endswith(".ltx") for each in found)


def publish(app: Path, bucket: S3Bucket, keys: Keys) -> None:
    command: list[str | Path] = [litereplica_binary(), "replicate", app, bucket.url, "--once"]
    subprocess.run(command, check=True, capture_output=True, env=keys.environment)


def test_writer_without_a_configuration_file_reads_its_credentials_anew_and_goes_on(
    s3_bucket: S3Bucket, keys: Keys, tmp_path: Path
) -> None:
    app, log = make(tmp_path / "app.db"), tmp_path / "log"
    arguments = ("replicate", app, s3_bucket.url, "--sync-interval", "50ms", "--log-file", log)
    with running(tmp_path / "err", keys, *arguments) as process:
        wait_for(lambda: files(s3_bucket) == 1)
        keys.write(right=False)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: text_of(log).count(HEARD) == 1)
        insert(app)
        wait_for(lambda: "the store refused the credentials" in text_of(log))
        keys.write(right=True)
        log.rename(tmp_path / "log.1")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: HEARD in text_of(log))  # in the new file, before anything else happens
        wait_for(lambda: files(s3_bucket) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == ExitCode.OK


def test_mount_reads_its_credentials_and_its_log_file_anew_and_goes_on(
    s3_bucket: S3Bucket, keys: Keys, tmp_path: Path
) -> None:
    app = make(tmp_path / "app.db")
    publish(app, s3_bucket, keys)
    mounted = MountedReplica(s3_bucket.url, tmp_path, environment=keys.environment, expected_problems=[REFUSED])
    with mounted as mount:
        keys.write(right=False)
        os.kill(mount.pid, signal.SIGHUP)
        wait_for(lambda: "the store refused the credentials" in mount.log)
        keys.write(right=True)
        mount.log_file.rename(tmp_path / "mount.log.1")
        os.kill(mount.pid, signal.SIGHUP)
        wait_for(lambda: HEARD in text_of(mount.log_file))
        insert(app)
        publish(app, s3_bucket, keys)
        wait_for(lambda: count(mount.path) == 1)


def test_mount_in_the_foreground_goes_on_even_while_it_waits_for_a_replica(tmp_path: Path) -> None:
    point, log = tmp_path / "mnt", tmp_path / "log"
    point.mkdir()
    url = f"file://{tmp_path}/primary/replica"
    options = ("--cache-dir", tmp_path / "cache", "--name", "app.db", "--wait", "60s", "--poll-interval", "50ms")
    with running(log, None, "mount", "-f", url, point, *options) as process:
        try:
            wait_for(lambda: "retrying" in text_of(log))
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: text_of(log).count(HEARD) == 1)
            with Publisher(tmp_path / "primary", setup="CREATE TABLE t (x)") as publisher:
                wait_for((point / "app.db").exists)
                process.send_signal(signal.SIGHUP)
                wait_for(lambda: text_of(log).count(HEARD) == 2)
                publisher.transaction("INSERT INTO t VALUES (1)")
                wait_for(lambda: count(point / "app.db") == 1)
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == ExitCode.OK


def test_restore_that_follows_goes_on_when_its_terminal_has_closed(tmp_path: Path) -> None:
    output = tmp_path / "out.db"
    leader, follower = (os.fdopen(fd, "rb", 0) for fd in os.openpty())
    with Publisher(tmp_path / "primary", setup="CREATE TABLE t (x)") as publisher:
        options = ("--follow-interval", "50ms")
        command: list[str | Path] = [litereplica_binary(), "restore", "-f", publisher.url, "-o", output, *options]
        process = subprocess.Popen(command, stderr=follower)
        try:
            follower.close()
            wait_for(output.exists)
            wait_for(lambda: b"following" in leader.read(4096))
            leader.close()
            process.send_signal(signal.SIGHUP)
            for _ in range(2):
                publisher.transaction("INSERT INTO t VALUES (1)")
                wait_for(lambda: count(output) == publisher.txid - 1)
            process.terminate()
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            process.wait()
