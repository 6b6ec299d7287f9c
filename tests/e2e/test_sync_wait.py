"""Writing on the primary, then reading on the replica: `sync --wait` there and `wait` here leave no stale read.

`replica/test_poll_schedule.py` counts what a wait asks the store.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.control.client import ask
from litereplica.control.sockets import own_directory
from litereplica.errors import ControlError, ExitCode, NotReached
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from tests.cli.program import program
from tests.conftest import S3Bucket
from tests.e2e.test_outage import publish
from tests.helpers.json_language import require_answered
from tests.helpers.publisher import Publisher
from tests.helpers.waiting import wait_until

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
            assert program("wait", mount.path, "--timestamp", reached["timestamp"]).returncode == ExitCode.OK
            past = program("wait", mount.mountpoint / ".at/txid-0000000000000001/app.db", "--caught-up")
            assert (past.returncode, "is not the live database" in past.stderr) == (ExitCode.NOT_FOUND, True), past

            late = program("wait", mount.mountpoint, "--txid", f"{txid + 3:016x}", "--timeout", "100ms")
            assert (late.returncode, late.stdout) == (ExitCode.NOT_REACHED, "")
            assert f"is at TXID {txid + 2:016x} after 0.1 s" in late.stderr
            with pytest.raises(ControlError) as refused:
                do(primary, "/wait", path=str(database), txid=f"{txid + 9:016x}", timeout=0.1)
            assert refused.value.exit_code == NotReached.exit_code
            bare = program("wait", mount.mountpoint)
            assert (bare.returncode, "give one of" in bare.stderr) == (ExitCode.USAGE, True)
            reader.close()


def test_a_database_of_a_prefix_is_opened_and_waited_for(tmp_path: Path) -> None:
    store, setup = tmp_path / "store", "CREATE TABLE t (x); INSERT INTO t VALUES (0);"
    with ExitStack() as stack:

        def published(name: str) -> Publisher:
            primary = tmp_path / "primaries" / name
            return stack.enter_context(Publisher(primary, setup=setup, replica=store / name))

        published("a.db")
        tenant = published("eu/b.db")
        options = ["--park-after", "300ms"]
        mount = stack.enter_context(
            MountedReplica(
                f"file://{store}", tmp_path / "m", name="", poll_interval="1h", options=options,
            )
        )  # fmt: skip
        replica = own_directory({}, uid=0) / f"{mount.pid}.sock"
        path = mount.mountpoint / "eu/b.db"

        def records() -> dict[str, dict[str, Any]]:
            answer = ask(replica, "GET", "/status")
            require_answered("/status", answer)
            return {each["db_path"]: each for each in (answer or {})["databases"]}

        reached = json.loads(program("wait", path, "--caught-up", "--json").stdout)
        assert (reached["path"], reached["name"], reached["txid"]) == (str(path), "eu/b.db", f"{1:016x}")
        whole = records()[str(mount.mountpoint)]
        assert whole["activations"] == 1, "the others stay as they are"
        trio.run(partial(wait_until, lambda: records()[str(mount.mountpoint)]["active"] == 0, within_s=DEADLINE_S))
        txid = tenant.transaction("UPDATE t SET x = -1")
        (tmp_path / "link.db").symlink_to(path)
        assert program("wait", tmp_path / "link.db", "--txid", f"{txid:016x}").stdout == f"{txid:016x}\n"

        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            assert reader.execute("SELECT x FROM t").fetchone() == (-1,)
            for value in range(1, 21):
                txid = tenant.transaction(f"UPDATE t SET x = {value}")
                assert do(replica, "/wait", path=str(path), txid=f"{txid:016x}")["txid"] == f"{txid:016x}"
                assert reader.execute("SELECT x FROM t").fetchone() == (value,)

            (record,) = json.loads(program("status", path, "--json").stdout)["databases"]
            assert (record["db_path"], record["txid"]) == (str(path), f"{txid:016x}")
            assert program("health", path).returncode == ExitCode.OK
            closed = program("health", mount.mountpoint / "a.db")
            assert (closed.returncode, "has no open database" in closed.stderr) == (ExitCode.ENVIRONMENT, True), closed

        late = program("wait", path, "--txid", f"{txid + 1:016x}", "--timeout", "100ms")
        assert (late.returncode, f"{path} is at TXID {txid:016x} after 0.1 s" in late.stderr) == (
            ExitCode.NOT_REACHED,
            True,
        ), late

        assert not (mount.mountpoint / "new/c.db").exists()
        published("new/c.db")  # what the kernel was told a moment ago does not matter
        assert do(replica, "/wait", path=str(mount.mountpoint / "new/c.db"), txid=f"{1:016x}")["name"] == "new/c.db"
        for name, code, line in (
            ("", ExitCode.USAGE, "has many databases: name one: litereplica wait"),
            ("missing.db", ExitCode.NOT_FOUND, "there is no live database at"),
            ("eu", ExitCode.NOT_FOUND, "there is no live database at"),
            ("eu/b.db-wal", ExitCode.NOT_FOUND, "there is no live database at"),
            ("eu/b.db/0", ExitCode.NOT_FOUND, "there is no live database at"),
            (".at/2026-01-01/a.db", ExitCode.NOT_FOUND, "there is no live database at"),
        ):
            refused = program("wait", mount.mountpoint / name, "--caught-up")
            assert (refused.returncode, line in refused.stderr) == (code, True), refused


def test_a_wait_for_a_database_of_a_prefix_asks_for_the_next_file_only(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    """The mount polls once an hour, and S3 tells nothing, so only what a wait asks brings news."""
    primary, tenants = tmp_path / "primary.db", s3_bucket.server.url(s3_bucket.name, "tenants")
    url = s3_bucket.server.url(s3_bucket.name, "tenants/eu/b.db")
    publish(primary, url, "CREATE TABLE t (x)")
    with MountedReplica(tenants, tmp_path / "m", name="", poll_interval="1h", options=["--hydrate", "none"]) as mount:
        replica = own_directory({}, uid=0) / f"{mount.pid}.sock"
        path = mount.mountpoint / "eu/b.db"

        def requests() -> dict[str, int]:
            records = {each["db_path"]: each for each in (ask(replica, "GET", "/status") or {})["databases"]}
            return {each["purpose"]: each["requests"] for each in records[str(path)]["requests"]}

        with closing(sqlite3.connect(path)) as reader:
            assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
            for txid in (2, 3):
                publish(primary, url, "INSERT INTO t VALUES (1)")
                before = requests()
                assert do(replica, "/wait", path=str(path), txid=f"{txid:016x}")["txid"] == f"{txid:016x}"
                assert do(replica, "/wait", path=str(path), txid=f"{txid:016x}")["txid"] == f"{txid:016x}", (
                    "costs nothing"
                )
                assert reader.execute("SELECT count(*) FROM t").fetchone() == (txid - 1,)
                after = requests()
                assert after.pop("poll") - before.pop("poll", 0) == 2, "that file, and the one after it"
                assert after == before


def test_a_database_of_a_prefix_that_cannot_be_opened_is_tried_again_while_somebody_waits(tmp_path: Path) -> None:
    store = tmp_path / "store"
    problems = ["damaged.db cannot be read"]
    with (
        Publisher(tmp_path / "primary", setup="CREATE TABLE t (x)", replica=store / "damaged.db") as publisher,
        MountedReplica(f"file://{store}", tmp_path / "m", name="", expected_problems=problems) as mount,
    ):
        file = next(publisher.replica.rglob("*.ltx"))
        sound = file.read_bytes()
        file.write_bytes(sound[:-40] + bytes(20) + sound[-20:])
        path = mount.mountpoint / "damaged.db"
        late = program("wait", path, "--caught-up", "--timeout", "100ms")
        assert (late.returncode, "is not open after 0.1 s: see the log" in late.stderr) == (ExitCode.NOT_REACHED, True)
        waiting = subprocess.Popen(
            [litereplica_binary(), "wait", path, "--caught-up"], stdout=subprocess.PIPE, text=True
        )
        try:
            trio.run(partial(wait_until, lambda: failures(mount) >= 2, within_s=DEADLINE_S))
            assert waiting.poll() is None
            file.write_bytes(sound)
            assert waiting.communicate(timeout=DEADLINE_S)[0] == f"{1:016x}\n"
        finally:
            waiting.kill()
            waiting.wait()


def failures(mount: MountedReplica) -> int:
    return int(mount.status()["databases"]["failed"])
