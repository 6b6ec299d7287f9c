"""The services that the provisioning scripts make: users of their own, units that give up what they do not need, and
identities of the store that can do their work and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import boto3
import pytest
from botocore.exceptions import ClientError

from litereplica.errors import ExitCode
from tests.security.limited import limited, require_orderly

ROOT = Path(__file__).parents[2]
DEADLINE_S = 180.0
SERVICES = ("store", "primary", "replica")
BUCKET = "provisioned-bucket"
NOBODY = "nobody"
KEYS = {"writer": ("writer-key", "writer-secret"), "reader": ("reader-key", "reader-secret")}

LIBRARY = 'set -euo pipefail; . scripts/lib.sh; . scripts/lib-provision.sh; "$@"'


def call(*arguments: str | Path, stdin: str = "") -> str:
    """Call a function of the library of the provisioning scripts."""
    command = ["bash", "-c", LIBRARY, "test", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    return done.stdout


def test_secret_is_readable_for_its_user_only_from_the_first_byte(tmp_path: Path) -> None:
    secret, elsewhere = tmp_path / "secret", tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    secret.symlink_to(elsewhere)
    for _ in range(2):
        call("write_secret", subprocess.check_output(["id", "-un"], text=True).strip(), secret, stdin="s")
        assert (secret.read_text(), stat.S_IMODE(secret.lstat().st_mode)) == ("s", 0o600)
        secret.chmod(0o644)
    assert elsewhere.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("secret.")] == []


def _free_port() -> int:
    """A port that is free with the 13 above it."""
    for port in Random().sample(range(20_000, 32_000, 14), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for each in range(port, port + 14):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", each))
            return port
    raise AssertionError("no ports")


def _environment(name: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "LITESTREAM_"))}
    key, secret = KEYS[name]
    return {**kept, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_EC2_METADATA_DISABLED": "true"}


def provision(name: str, state: Path, *arguments: str | Path, environment: dict[str, str]) -> str:
    command = [str(ROOT / f"scripts/provision-{name}"), "--no-systemd", "--state-dir", str(state), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def state() -> Iterator[Path]:
    """A directory that all users can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="litereplica-provisioned-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        try:
            yield path
        finally:
            limited("umount", "--lazy", path / "mount")
            for service in SERVICES:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    os.kill(int((path / f"{service}.pid").read_text()), signal.SIGKILL)


def _status(state: Path, name: str) -> dict[str, str]:
    pid = (state / f"{name}.pid").read_text().strip()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.split()[0] for key, value in (line.split(":", 1) for line in lines) if value.strip()}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_store_writer_and_mount_work_with_the_least_rights(tmp_path: Path, state: Path) -> None:
    keys = dict(zip(("READER_ACCESS_KEY_ID", "READER_SECRET_ACCESS_KEY"), KEYS["reader"], strict=True))
    writer, reader = _environment("writer"), _environment("reader")
    port = _provisioned_store(state, writer | keys)
    url = f"s3://{BUCKET}/app.db?endpoint=http://127.0.0.1:{port}&region=us-east-1"
    provision("primary", state, "--url", url, "--user", NOBODY, environment=writer)
    assert provision("replica", state, "--url", url, environment=reader).strip() == "1"

    nobody = str(_id_of(NOBODY))
    for name, uid, without in (("store", nobody, "1"), ("primary", nobody, "1"), ("replica", "0", "0")):
        status = _status(state, name)
        assert (status["Uid"], status["NoNewPrivs"]) == (uid, without), name
    identities = state / "store" / "identities.json"
    assert (stat.S_IMODE(identities.stat().st_mode), identities.stat().st_uid) == (0o600, int(nobody))
    assert "Admin" not in identities.read_text()
    readable = [
        path for path in state.iterdir() if path.is_file() and path.suffix != ".pid" and path.stat().st_mode & 0o077
    ]
    assert readable == []

    _require_the_rights_to_suffice(tmp_path, url, writer, reader)
    _require_the_rights_to_be_the_least(port)


def _provisioned_store(state: Path, environment: dict[str, str]) -> int:
    """The port of a store; another process may take one of its ports before it does."""
    for attempt in range(3):
        port = _free_port()
        try:
            arguments = ["--port", str(port), "--bucket", BUCKET, "--user", NOBODY]
            provision("store", state, *arguments, environment=environment)
        except AssertionError:
            if attempt == 2:
                raise
        else:
            break
    return port


def _id_of(user: str) -> int:
    return int(subprocess.check_output(["id", "-u", user], text=True))


def _require_the_rights_to_suffice(directory: Path, url: str, writer: dict[str, str], reader: dict[str, str]) -> None:
    """The writer publishes in parts, merges, deletes and takes the lease; the reader restores and verifies."""
    url = url.replace("app.db", "large.db")
    database = directory / "large.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as client:
        client.execute("PRAGMA journal_mode=wal")
        client.execute("CREATE TABLE t(x)")
        client.executemany("INSERT INTO t VALUES (randomblob(?))", [(100_000,)] * 180)
    for command in (["replicate", database, url, "--once"], ["snapshot", url], ["compact", url, "--level", "1"]):
        require_orderly(limited(*command, environment=writer))
    require_orderly(limited("restore", url, "-o", directory / "restored.db", environment=reader))
    require_orderly(limited("verify", url, environment=reader))
    refused = limited("replicate", database, url, "--once", "--verify-source", environment=reader)
    require_orderly(refused, ExitCode.STORE)


def _require_the_rights_to_be_the_least(port: int) -> None:
    reader, writer = (
        boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
            aws_access_key_id=key, aws_secret_access_key=secret,
        )
        for key, secret in (KEYS["reader"], KEYS["writer"])
    )  # fmt: skip
    other = "another-bucket"
    shell = [str(Path(sys.executable).with_name("weed")), "shell"]
    shell += [f"-master=127.0.0.1:{port + 1}.{port + 11}", f"-filer=127.0.0.1:{port + 3}.{port + 13}"]
    subprocess.run(shell, input=f"s3.bucket.create -name {other}\n", text=True, check=True, capture_output=True)
    acts: dict[str, Callable[[], object]] = {
        "put": lambda: reader.put_object(Bucket=BUCKET, Key="x", Body=b""),
        "delete": lambda: reader.delete_object(Bucket=BUCKET, Key="app.db/lock.json"),
        "create a bucket": lambda: writer.create_bucket(Bucket="a-fourth-one"),
        "let the reader create a bucket": lambda: reader.create_bucket(Bucket="a-third-one"),
        "delete the bucket": lambda: writer.delete_bucket(Bucket=BUCKET),
        "put elsewhere": lambda: writer.put_object(Bucket=other, Key="x", Body=b""),
        "list elsewhere": lambda: writer.list_objects_v2(Bucket=other),
        "get elsewhere": lambda: reader.get_object(Bucket=other, Key="x"),
    }
    allowed = []
    for name, act in acts.items():
        try:
            act()
            allowed.append(name)
        except ClientError as exc:
            if exc.response["Error"]["Code"] != "AccessDenied":
                allowed.append(f"{name}: {exc}")
    assert allowed == []
