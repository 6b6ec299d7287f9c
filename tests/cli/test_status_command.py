"""`litereplica status` and `databases` as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.cli import main
from litereplica.cli.daemon_status import mount_facts, writer_row
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


def watched(subject: str | Path, *, times: int) -> list[dict[str, Any]]:
    """What `status --watch` prints, until it is interrupted after so many times."""
    command = [litereplica_binary(), "status", str(subject), "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown, text = [], ""
        try:
            for line in process.stdout:
                text += line
                if line == "}\n":
                    shown.append(json.loads(text))
                    text = ""
                if len(shown) == times:
                    break
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_S) == main.INTERRUPTED
        finally:
            process.kill()
    return shown


def asked(*arguments: str | Path) -> dict[str, Any]:
    """What it tells of one database, once it tells it."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        done = program("status", *arguments, "--json")
        if done.returncode == ExitCode.OK:
            (record,) = json.loads(done.stdout)["databases"]
            if record.get("txid", "0" * 16) != "0" * 16 and record["state"] != "starting":
                return dict(record)
        assert time.monotonic() < deadline, done


def test_running_writer_is_found_by_its_database_its_directory_and_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = database(tmp_path / "app.db")
    url = f"file://{tmp_path}/replica"
    file = tmp_path / "litereplica.yml"
    file.write_text(f"dbs: [{{path: {app}, replica: {{url: '{url}'}}}}]")
    with replicating("--config", file) as process:
        record = asked(app)
        assert (record["db_path"], record["url"], record["pid"]) == (str(app), url, process.pid)
        assert (record["txid"], record["state"], record["error"]) == ("0000000000000001", "active", None)
        assert record["lease"]["owner"].endswith(f":{process.pid}")
        assert record["lease"]["generation"] == 1
        assert asked(tmp_path)["db_path"] == str(app)
        assert asked("--config", file)["pid"] == process.pid
        assert program("health", "--config", file).stdout == "1 database is healthy\n"
        assert asked(app, "--config", file)["pid"] == process.pid
        assert (record["kind"], record["lag_ms"], record["lease"]["generation"]) == ("writer", 0, 1)
        facts = dict(line.split("  ", 1) for line in program("status", app).stdout.splitlines()[1:])
        facts = {what: value.strip() for what, value in facts.items()}
        assert (facts["replica"], facts["process"], facts["state"]) == (url, str(process.pid), "active")
        assert facts["position"] == "0000000000000001"
        assert re.fullmatch(r"\d{4}-.*Z", facts["last published"])
        assert facts["published files"].startswith("1, ")
        table = program("status", "--config", file).stdout.splitlines()
        assert table[0].split() == ["database", "state", "txid", "behind", "lease", "note"]
        assert table[1].split()[:5] == [str(app), "active", "0000000000000001", "0", "s"]
    done = program("status", app)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert done.stderr.startswith(f"litereplica: error: no writer of this user replicates {app}: start one: ")
    (record,) = json.loads(program("status", "--config", file, "--json").stdout)["databases"]
    assert record == {"kind": "writer", "db_path": str(app), "url": url, "state": "not running"}
    done = program("status", "--config", file, "--check")
    assert (done.returncode, f"{app} is not running" in done.stderr) == (ExitCode.NOT_REACHED, True)
    assert "not running" in program("status", "--config", file).stdout
    for variable, arguments in (("X", ("--config", file)), ("LITEREPLICA_CONFIG", ()), ("LITESTREAM_CONFIG", ())):
        with monkeypatch.context() as environment:
            environment.setenv(variable, str(file))
            dead = program("health", *arguments)
        assert (dead.returncode, f"{app} is not running" in dead.stderr) == (ExitCode.NOT_REACHED, True), dead


def test_replica_is_asked_in_its_store(tmp_path: Path, history: History, replica: str) -> None:
    lease = Lease(7, int(time.time() * 1000) + 20_000, "host:1", "id")
    trio.run(FileStorage(tmp_path / "replica").put, "lock.json", lease.encode())
    status = json.loads(program("status", replica, "--json").stdout)
    assert status["url"] == replica
    assert int(status["txid"], 16) == history.txid
    (level,) = status["levels"]
    assert (level["level"], level["files"], level["min_txid"]) == (0, history.txid, "0000000000000001")
    assert level["size_bytes"] == sum(path.stat().st_size for path in (tmp_path / "replica/ltx/0").iterdir())
    assert (status["lease"]["owner"], status["lease"]["generation"]) == ("host:1", 7)
    assert 0 < status["lease"]["left_ms"] <= 20_000
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


def test_mount_tells_its_position_its_readers_and_its_requests(tmp_path: Path) -> None:
    replica = f"file://{tmp_path}/replica"
    assert program("replicate", database(tmp_path / "app.db"), replica, "--once").returncode == ExitCode.OK
    mounted = MountedReplica(replica, tmp_path / "mount", expected_problems=("polling fails",))
    with mounted as mount, closing(sqlite3.connect(mount.path)) as reader:
        mount.wait_for(1)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
        (record,) = json.loads(program("status", mount.mountpoint, "--json").stdout)["databases"]
        assert (record["kind"], record["pid"], record["state"]) == ("mount", mount.pid, "following")
        assert (record["db_path"], record["url"]) == (str(mount.path), replica)
        assert (record["txid"], record["newest_txid"], record["lag_ms"]) == (f"{1:016x}", f"{1:016x}", 0)
        (pinned,) = record["readers"]
        assert (pinned["pid"], pinned["txid"]) == (os.getpid(), f"{1:016x}")
        by_path = json.loads(program("status", record["db_path"], "--json").stdout)["databases"]
        assert [each["mountpoint"] for each in by_path] == [str(mount.mountpoint)]
        link = tmp_path / "link.db"
        link.symlink_to(mount.path)
        assert program("wait", link, "--txid", f"{1:016x}").stdout == program("wait", mount.path, "--caught-up").stdout
        assert program("health", mount.path).stdout == "1 database is healthy\n"
        assert "name the database that is its primary" in program("sync", mount.path).stderr
        lines = program("status", mount.mountpoint).stdout
        rows = dict(line.strip().split(maxsplit=1) for line in lines.splitlines()[1:])
        assert (rows["position"], rows["replica"]) == (f"{1:016x}", replica)
        assert (rows["state"], rows["behind"]) == ("following", "0 s")
        assert rows["reader"].endswith(
            f"(pid {os.getpid()}) reads {1:016x} since {pinned['since'][:16]}" + rows["reader"][-8:]
        )
        assert "open " in rows["requests"]
        assert "USD" not in lines, "a directory costs nothing"
        for each in json.loads(program("status", "--all", "--json").stdout)["databases"]:
            if each["pid"] == mount.pid:
                break
        else:
            pytest.fail("the mount is not among all daemons")
        assert program("health", mount.mountpoint).stdout == "1 database is healthy\n"
        shown = watched(mount.mountpoint, times=2)
        assert [each["databases"][0]["txid"] for each in shown] == [f"{1:016x}"] * 2
        away = (tmp_path / "replica").rename(tmp_path / "away")
        mount.wait_until(lambda: "the directory of file://" in program("health", mount.path).stderr, what="failure")
        assert program("health", mount.path).returncode == ExitCode.NOT_REACHED
        away.rename(tmp_path / "replica")
        mount.wait_until(lambda: program("health", mount.path).returncode == ExitCode.OK, what="recovery")
        mount.kill()
        done = program("health", mount.mountpoint)
        assert (done.returncode, "is dead" in done.stderr) == (ExitCode.ENVIRONMENT, True)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            ["file:///nowhere/at/all"],
            ExitCode.NOT_FOUND,
            "there are no LTX files in file:///nowhere/at/all: check the URL",
        ),
        (["ftp://x"], ExitCode.USAGE, "the URL scheme 'ftp' is not supported"),
        (["/no/such.db"], ExitCode.ENVIRONMENT, "no writer of this user replicates /no/such.db: start one"),
        (
            ["file:///x", "--config", "y.yml"],
            ExitCode.USAGE,
            "--config, --all, --watch and --check cannot be combined with a replica URL: remove",
        ),
        (["--watch", "--check"], ExitCode.USAGE, "--watch never ends, so it cannot --check: remove one of them"),
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
        "db_path": "/a.db", "state": "failed", "txid": "1", "lag_ms": 12340, "unpublished_bytes": 2048,
        "error": "disk full", "lease": lease,
    }  # fmt: skip
    assert writer_row(record) == ["/a.db", "failed", "1", "12.3 s, 2KiB", "host:1, generation 3", "disk full"]


def test_facts_of_a_mount_of_another_version_are_shown_as_far_as_they_go() -> None:
    assert mount_facts({"pid": 3, "txid": "5"}) == [("process", "3"), ("position", "5")]


def test_a_mount_says_what_it_asked_for_what_that_brought_and_why_it_asks_no_more() -> None:
    requests = [
        {"purpose": "open", "requests": 12, "received_bytes": 3 << 10, "usd": 0.0},
        {"purpose": "past", "requests": 1, "received_bytes": 0, "usd": 0.5},
    ]
    rows = dict(mount_facts({"requests": requests, "is_priced": True, "state": "paused", "idle_ms": 660_000}))
    assert rows["requests"] == "open 12, past 1"
    assert rows["received"] == "open 3KiB"
    assert rows["cost"].startswith("0.500000 USD")
    assert rows["state"] == "paused: no file has been open for 11m"


def test_databases_are_listed_with_their_replicas(tmp_path: Path) -> None:
    file = tmp_path / "litereplica.yml"
    file.write_text(
        f"validation: x\nlease: wait\ndbs:\n- {{path: {tmp_path}/a, replica: {{url: s3://b/a}}}}\n"
        f"- {{dir: {tmp_path}/d, pattern: '*.db', recursive: true, replica: {{path: {tmp_path}/r}}}}\n"
    )
    done = program("databases", "--config", file, "--json")
    first, second = json.loads(done.stdout)
    assert first == {
        "path": f"{tmp_path}/a", "replica": "s3", "url": "s3://b/a", "sync_interval_ms": 1000, "lease": "wait",
        "restore_if_db_not_exists": False,
    }  # fmt: skip
    assert (second["dir"], second["recursive"], second["watch"]) == (f"{tmp_path}/d", True, False)
    assert "validation (line 1)" in done.stderr
    table = program("databases", "--config", file).stdout.splitlines()
    assert table[2].split() == [f"{tmp_path}/d/**/*.db", f"file://{tmp_path}/r", "1s", "wait"]


@pytest.mark.parametrize("name", ["status", "databases"])
def test_help_has_an_example(name: str) -> None:
    assert "Example:" in program(name, "--help").stdout
