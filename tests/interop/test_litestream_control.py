"""The control socket: Litestream's own client against our writer, and ours against Litestream."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.cli.daemons import WRITER
from litereplica.control.client import ask
from litereplica.errors import EnvironmentProblem, ExitCode
from litereplica.testing.litestream import LitestreamProcess, litestream_ltx, run_litestream
from litereplica.testing.mounts import litereplica_binary
from tests.cli.program import DEADLINE_S, program
from tests.helpers.json_language import require_answered
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow


def commit(database: Path, value: int) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO t VALUES (?)", (value,))


def create(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x);")
    return path


@contextmanager
def writer(*databases: Path, socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A writer with a socket at a path of its own, for a process with no other choice."""
    file = socket.with_suffix(".yml")
    entries = [{"path": str(each), "replica": {"url": f"file://{each}-replica"}} for each in databases]
    document = {"socket": {"path": str(socket), "permissions": "0600"}, "dbs": entries}
    file.write_text(json.dumps(document))
    command = ["setpriv", "--pdeathsig", "KILL", litereplica_binary(), "replicate", "--config", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        trio.run(partial(wait_until, lambda: is_replicating(socket, len(databases)), within_s=DEADLINE_S))
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == ExitCode.OK
    finally:
        process.kill()
        process.wait()


def is_replicating(socket: Path, count: int) -> bool:
    try:
        status = ask(socket, "GET", "/status")
    except EnvironmentProblem:
        return False
    states = [each["state"] for each in (status or {}).get("databases", [])]
    return len([state for state in states if state in ("active", "dormant")]) == count


@pytest.fixture
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A path that is short enough for a socket."""
    directory = Path(f"/tmp/lr-{os.getpid()}-{time.monotonic_ns()}")  # noqa: S108 - made here, private
    directory.mkdir(mode=0o700)
    yield directory / "s"
    for each in directory.iterdir():
        each.unlink()
    directory.rmdir()


def litestream(*arguments: str | Path) -> str:
    done = run_litestream(*arguments)
    assert done.code == 0, done
    return done.stdout


def test_litestreams_client_drives_our_writer(tmp_path: Path, socket: Path) -> None:
    app, other = create(tmp_path / "app.db"), create(tmp_path / "other.db")
    url = f"file://{app}-replica"
    with writer(app, socket=socket) as process:
        at = ("-socket", socket)
        info = json.loads(litestream("info", *at, "-json"))
        assert (info["pid"], info["database_count"]) == (process.pid, 1)
        assert f"PID:        {process.pid}" in litestream("info", *at)
        (listed,) = json.loads(litestream("list", *at, "-json"))["databases"]
        assert (listed["path"], listed["status"]) == (str(app), "replicating")
        assert f"{app} [replicating] (last sync: {listed['last_sync_at'][:17]}" in litestream("list", *at)

        commit(app, 1)
        synced = json.loads(litestream("sync", *at, "-wait", "-json", app))
        assert (
            synced["txid"] == synced["replica_txid"] == max(int(each["max_txid"], 16) for each in litestream_ltx(url))
        )
        assert "replica_txid: " in litestream("sync", *at, "-wait", app)
        litestream("sync", *at, app)

        assert "status: stopped" in litestream("stop", *at, app)
        assert "status: already_stopped" in litestream("stop", *at, app)
        assert f"{app} [stopped]" in litestream("list", *at)
        refused = run_litestream("sync", *at, "-wait", app)
        assert (refused.code, "database not open" in refused.stderr) == (1, True), refused
        commit(app, 2)  # nobody publishes it now
        started = json.loads(litestream("start", *at, "-json", app))
        assert (started["status"], started["txid"]) == ("started", synced["txid"])
        assert "already_running" in litestream("start", *at, app)
        assert json.loads(litestream("sync", *at, "-wait", "-json", app))["txid"] > synced["txid"]

        replica = f"file://{other}-replica"
        assert "status: registered" in litestream("register", *at, "-replica", replica, other)
        assert "already registered" in litestream("register", *at, "-replica", replica, other)
        assert json.loads(litestream("sync", *at, "-wait", "-json", other))["txid"] == 1
        process.send_signal(signal.SIGHUP)  # a new reading of the file does not forget what was registered
        assert len(json.loads(litestream("list", *at, "-json"))["databases"]) == 2
        assert "final_txid: 1" in litestream("unregister", *at, other)
        assert "already_unregistered" in litestream("unregister", *at, other)
        wrong = run_litestream("register", *at, "-replica", "nosuch://x", other)
        assert (wrong.code, "invalid replica url" in wrong.stderr) == (1, True), wrong
        missing = run_litestream("sync", *at, "/no/such.db")
        assert (missing.code, "database not found: /no/such.db" in missing.stderr) == (1, True), missing


def ours(*arguments: str | Path) -> dict[str, Any]:
    done = program(*map(str, arguments), "--json")
    assert done.returncode == 0, done
    return dict(json.loads(done.stdout))


def test_our_client_drives_litestream_and_our_writer_alike(tmp_path: Path, socket: Path) -> None:
    app = create(tmp_path / "app.db")
    with writer(app, socket=socket):
        found = ours("sync", app, "-wait")  # one dash, and no socket: it is in the registry
        assert found["position"] == f"{found['txid']:016x}"
        commit(app, 1)
        assert ours("sync", app, "--wait", "--timeout", "10")["txid"] == found["txid"] + 1
        assert ours("stop", app)["state"] == "stopped"
        (record,) = ours("status", app)["databases"]
        document = ask(socket, "GET", "/status") or {}
        require_answered("/status", document)
        (place,) = document["replicas"]
        assert (place["url"], place["is_priced"], place["usd"]) == (f"file://{app}-replica", False, None)
        assert {each["usd"] for each in place["requests"]} == {None}
        puts = {each["operation"]: each["requests"] for each in place["requests"]}["put_if_absent"]
        assert puts >= record["published_files"] > 0
        assert (record["kind"], record["state"]) == (WRITER, "stopped")
        sick = program("health", str(app))
        assert (sick.returncode, "is stopped" in sick.stderr) == (ExitCode.NOT_REACHED, True), sick
        assert ours("start", app, "--socket", socket)["status"] == "started"
        assert ours("sync", app, "--wait")["txid"] == found["txid"] + 1
        assert program("health", str(app)).returncode == ExitCode.OK
        table = program("list", "--socket", str(socket)).stdout
        assert table.startswith(f"{app} [replicating] (last sync: 20")
        assert str(socket) in program("unregister", str(app), "--dry-run", "--socket", str(socket)).stdout
        done = program("sync", "/no/such.db", "--socket", str(socket))
        assert (done.returncode, done.stderr) == (
            ExitCode.NOT_FOUND,
            "litereplica: error: database not found: /no/such.db\n",
        )
    with LitestreamProcess(app, f"file://{tmp_path}/theirs") as theirs:
        at = ("--socket", theirs.socket)
        assert ours("info", *at)["version"] == "0.5.17"
        assert [each["path"] for each in ours("list", *at)["databases"]] == [str(app)]
        commit(app, 2)
        synced = ours("sync", app, "--wait", *at)
        assert synced["txid"] == synced["replica_txid"]
        assert ours("stop", app, *at)["status"] == "stopped"
        assert ours("start", app, *at)["status"] == "started"
        refused = program("status", str(app))
        assert refused.returncode == ExitCode.ENVIRONMENT
