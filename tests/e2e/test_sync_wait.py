"""Writing on the primary, then reading on the replica: `sync --wait` there and `wait` here leave no stale read.

`replica/test_poll_schedule.py` counts what a wait asks the store.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from litereplica.control.client import ask
from litereplica.control.sockets import own_directory
from litereplica.errors import ControlError, ExitCode, NotReached
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from tests.cli.program import program
from tests.helpers.json_language import require_answered

pytestmark = pytest.mark.slow

ROUNDS = 200
DEADLINE_S = 30.0


@contextmanager
def writer(database: Path, url: str) -> Iterator[Path]:
    """A writer whose own pace is far too slow to matter; yields its socket."""
    command = [litereplica_binary(), "replicate", str(database), url, "--sync-interval", "1h"]
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stderr=subprocess.DEVNULL)
    try:
        socket = own_directory({}, uid=0) / f"{process.pid}.sock"
        deadline = time.monotonic() + DEADLINE_S
        while not is_active(socket):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield socket
    finally:
        process.terminate()
        process.wait()


def is_active(socket: Path) -> bool:
    status = ask(socket, "GET", "/status")
    return status is not None and all(each["state"] == "active" for each in status["databases"])


def do(socket: Path, target: str, **fields: Any) -> dict[str, Any]:
    answer = ask(socket, "POST", target, fields, limit_s=DEADLINE_S)
    require_answered(target, answer)
    assert answer is not None
    return answer


def mount_state(socket: Path) -> dict[str, Any]:
    answer = ask(socket, "GET", "/status")
    require_answered("/status", answer)
    assert answer is not None
    (record,) = answer["databases"]
    return dict(record)


def test_what_was_written_before_a_sync_is_read_after_a_wait(tmp_path: Path) -> None:
    database, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    with closing(sqlite3.connect(database, isolation_level=None)) as application:
        application.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x); INSERT INTO t VALUES (0);")
        with writer(database, url) as primary, MountedReplica(url, tmp_path / "m", poll_interval="1h") as mount:
            replica = own_directory({}, uid=0) / f"{mount.pid}.sock"
            reader = sqlite3.connect(mount.path, isolation_level=None)
            txid = 0
            for value in range(1, ROUNDS + 1):
                application.execute("UPDATE t SET x = ?", (value,))
                txid = do(primary, "/sync", path=str(database), wait=True)["replicated_txid"]
                reached = do(replica, "/wait", path=str(mount.mountpoint), txid=f"{txid:016x}")
                assert int(reached["txid"], 16) >= txid
                assert reader.execute("SELECT x FROM t").fetchone() == (value,)
            state = mount_state(replica)
            assert (state["lag_ms"], state["txid"]) == (0, f"{txid:016x}")

            application.execute("UPDATE t SET x = -1")
            synced = json.loads(program("sync", database, "--wait", "--json").stdout)
            assert synced["txid"] == txid + 1
            found = program("wait", mount.mountpoint, "--txid", synced["position"])
            assert (found.returncode, found.stdout) == (ExitCode.OK, synced["position"] + "\n"), found
            assert reader.execute("SELECT x FROM t").fetchone() == (-1,)

            application.execute("UPDATE t SET x = -2")
            assert program("wait", database, "--caught-up").stdout == f"{txid + 2:016x}\n"
            reached = json.loads(program("wait", mount.mountpoint, "--caught-up", "--json").stdout)
            assert reached["txid"] == f"{txid + 2:016x}"
            assert reader.execute("SELECT x FROM t").fetchone() == (-2,)
            assert program("wait", mount.mountpoint, "--timestamp", reached["timestamp"]).returncode == ExitCode.OK

            late = program("wait", mount.mountpoint, "--txid", f"{txid + 3:016x}", "--timeout", "100ms")
            assert (late.returncode, late.stdout) == (ExitCode.NOT_REACHED, "")
            assert f"is at TXID {txid + 2:016x} after 0.1 s" in late.stderr
            with pytest.raises(ControlError) as refused:
                do(primary, "/wait", path=str(database), txid=f"{txid + 9:016x}", timeout=0.1)
            assert refused.value.exit_code == NotReached.exit_code
            bare = program("wait", mount.mountpoint)
            assert (bare.returncode, "give one of" in bare.stderr) == (ExitCode.USAGE, True)
            reader.close()
