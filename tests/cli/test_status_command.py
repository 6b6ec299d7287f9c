"""`litereplica status` and `databases` as a user runs them."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.cli.status import _mount_rows, _row
from litereplica.errors import ExitCode
from litereplica.ltxstore.lease_record import Lease
from litereplica.storage.file import FileStorage
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from tests.cli.program import DEADLINE_S, program
from tests.ltxstore.replicas import History

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def history() -> History:
    history = History()
    for pgno in (1, 2, 3):
        history.commit(3, pgno)
    return history


def database(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x); INSERT INTO t VALUES (1);")
    connection.close()
    return path


@contextmanager
def replicating(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    command = ["setpriv", "--pdeathsig", "KILL", litereplica_binary(), "replicate", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == ExitCode.OK
    finally:
        process.kill()
        process.wait()


def asked(*arguments: str | Path) -> dict[str, Any]:
    """What it tells of one database, once it tells it."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        done = program("status", *arguments, "--json")
        if done.returncode == ExitCode.OK:
            (record,) = json.loads(done.stdout)["databases"]
            if record.get("txid", "0" * 16) != "0" * 16:
                return dict(record)
        assert time.monotonic() < deadline, done


def test_running_writer_is_found_by_its_database_its_directory_and_its_file(tmp_path: Path) -> None:
    app = database(tmp_path / "app.db")
    url = f"file://{tmp_path}/replica"
    file = tmp_path / "litereplica.yml"
    file.write_text(f"dbs: [{{path: {app}, replica: {{url: '{url}'}}}}]")
    elsewhere = tmp_path / "elsewhere.yml"
    elsewhere.write_text(f"socket: {{path: {tmp_path}/none}}\n" + file.read_text())
    with replicating("--config", file) as process:
        record = asked(app)
        assert (record["db_path"], record["url"], record["pid"]) == (str(app), url, process.pid)
        assert (record["txid"], record["state"], record["error"]) == ("0000000000000001", "active", None)
        assert record["lease"]["owner"].endswith(f":{process.pid}")
        assert record["lease"]["generation"] == 1
        assert asked(tmp_path)["db_path"] == str(app)
        assert asked("--config", file)["pid"] == process.pid
        assert asked(app, "--config", file)["pid"] == process.pid
        assert program("status", app, "--config", elsewhere).returncode == ExitCode.ENVIRONMENT
        table = program("status", app).stdout.splitlines()
        assert table[0].split() == ["database", "state", "txid", "behind", "lease", "note"]
        assert table[1].split()[:5] == [str(app), "active", "0000000000000001", "0", "s"]
    done = program("status", app)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert done.stderr.startswith(f"litereplica: error: no writer of this user replicates {app}: start one: ")
    (record,) = json.loads(program("status", "--config", file, "--json").stdout)["databases"]
    assert record == {"db_path": str(app), "url": url, "state": "not running"}
    assert "not running" in program("status", "--config", file).stdout


def test_replica_is_asked_in_its_store(tmp_path: Path, history: History, replica: str) -> None:
    lease = Lease(7, int(time.time() * 1000) + 20_000, "host:1", "id")
    trio.run(FileStorage(tmp_path / "replica").put, "lock.json", lease.encode())
    status = json.loads(program("status", replica, "--json").stdout)
    assert status["url"] == replica
    assert int(status["txid"], 16) == history.txid
    (level,) = status["levels"]
    assert (level["level"], level["files"], level["min_txid"]) == (0, history.txid, "0000000000000001")
    assert level["bytes"] == sum(path.stat().st_size for path in (tmp_path / "replica/ltx/0").iterdir())
    assert (status["lease"]["owner"], status["lease"]["generation"]) == ("host:1", 7)
    assert 0 < status["lease"]["left_s"] <= 20
    assert "host:1, generation 7, expires in " in program("status", replica).stdout


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (Lease(2, 1000, "host:1").encode(), "host:1, generation 2, expired at 1970-01-01T00:00:01.000Z"),
        (b"what is this?", "lock.json: it is not JSON"),
        (None, "not held"),
    ],
)
def test_lease_is_told_as_it_is(tmp_path: Path, replica: str, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "replica/lock.json").write_bytes(content)
    done = program("status", replica)
    assert done.returncode == ExitCode.OK
    assert expected in done.stdout


def test_mount_tells_its_position_its_age_and_its_requests(tmp_path: Path) -> None:
    replica = f"file://{tmp_path}/replica"
    assert program("replicate", database(tmp_path / "app.db"), replica, "--once").returncode == ExitCode.OK
    with MountedReplica(replica, tmp_path / "mount") as mount:
        mount.wait_for(1)
        status = json.loads(program("status", mount.mountpoint, "--json").stdout)
        assert status["pid"] == mount.pid
        rows = dict(
            line.strip().split(maxsplit=1) for line in program("status", mount.mountpoint).stdout.splitlines()[1:]
        )
        assert rows["position"] == f"{1:016x}"
        assert rows["replica"] == replica
        lines = program("status", mount.mountpoint).stdout
    assert "open " in lines
    assert "USD by S3's price list" in lines
    assert "staleness" in lines
    assert dict(line.strip().split(maxsplit=1) for line in lines.splitlines())["polling"] == "active"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            ["file:///nowhere/at/all"],
            ExitCode.NOT_FOUND,
            "there is no LTX file in file:///nowhere/at/all: check the URL",
        ),
        (["ftp://x"], ExitCode.USAGE, "the URL scheme 'ftp' is not supported"),
        (["/no/such.db"], ExitCode.ENVIRONMENT, "no writer of this user replicates /no/such.db: start one"),
        (
            ["file:///x", "--config", "y.yml"],
            ExitCode.USAGE,
            "--config cannot be combined with a replica or a mount: remove",
        ),
        (["--config", "/no/such.yml"], ExitCode.USAGE, "there is no configuration file /no/such.yml"),
    ],
)
def test_what_cannot_be_told_is_one_line_and_an_exit_code(arguments: list[str], code: ExitCode, line: str) -> None:
    done = program("status", *arguments)
    assert done.returncode == code
    (error,) = done.stderr.splitlines()
    assert line in error


def test_row_of_a_database_says_how_far_behind_it_is_and_why() -> None:
    lease = {"owner": "host:1", "generation": 3, "expires_at": ""}
    record = {
        "db_path": "/a.db", "state": "failed", "txid": "1", "behind_s": 12.34, "unpublished_bytes": 2048,
        "error": "disk full", "lease": lease,
    }  # fmt: skip
    assert _row(record) == ["/a.db", "failed", "1", "12.3 s, 2KiB", "host:1, generation 3", "disk full"]


def test_status_of_a_mount_of_another_version_is_shown_as_far_as_it_goes() -> None:
    assert _mount_rows({"pid": 3, "replica": {"pos": {"txid": 5}}})[:2] == [
        ("process", "3"),
        ("position", "0000000000000005"),
    ]


def test_a_mount_says_what_it_asked_for_what_that_brought_and_why_it_asks_no_more() -> None:
    ledger = {
        "open": {"by_operation": {"get": {"requests": 2, "bytes_received": 3 << 10}, "list": {"requests": 10}}},
        "past": {"by_operation": {"get": {"requests": 1, "bytes_received": 1 << 20}}, "usd": 0.5},
        "poll": {"by_operation": {}},
    }
    rows = dict(_mount_rows({"replica": {"ledger": ledger}, "polling": {"state": "paused", "idle_s": 660.0}}))
    assert rows["requests"] == "open 12, past 1"
    assert rows["received"] == "open 3KiB, past 1MiB"
    assert rows["cost"].startswith("0.500000 USD")
    assert rows["polling"] == "paused: no file has been open for 11m"


def test_a_mount_of_a_past_state_is_not_called_stale() -> None:
    rows = dict(_mount_rows({"static": {"txid": 5}, "replica": {"pos": {"txid": 5}, "staleness_s": 1e6}}))
    assert rows["position"] == "0000000000000005"
    assert not {"staleness", "newest known", "polling"} & rows.keys()


def test_databases_are_listed_with_their_replicas(tmp_path: Path) -> None:
    file = tmp_path / "litereplica.yml"
    file.write_text(
        f"addr: x\nlease: wait\ndbs:\n- {{path: {tmp_path}/a, replica: {{url: s3://b/a}}}}\n"
        f"- {{dir: {tmp_path}/d, pattern: '*.db', recursive: true, replica: {{path: {tmp_path}/r}}}}\n"
    )
    done = program("databases", "--config", file, "--json")
    first, second = json.loads(done.stdout)
    assert first == {
        "path": f"{tmp_path}/a", "replica": "s3", "url": "s3://b/a", "sync_interval_s": 1.0, "lease": "wait",
        "restore_if_db_not_exists": False,
    }  # fmt: skip
    assert (second["dir"], second["recursive"], second["watch"]) == (f"{tmp_path}/d", True, False)
    assert "addr (line 1)" in done.stderr
    table = program("databases", "--config", file).stdout.splitlines()
    assert table[2].split() == [f"{tmp_path}/d/**/*.db", f"file://{tmp_path}/r", "1s", "wait"]


@pytest.mark.parametrize("name", ["status", "databases"])
def test_help_has_an_example(name: str) -> None:
    assert "Example:" in program(name, "--help").stdout
