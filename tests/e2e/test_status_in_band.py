"""What a client learns that only has the mounted file: extended attributes, and the status as a database."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from litereplica.control.client import ask
from litereplica.control.sockets import own_directory
from litereplica.errors import ExitCode
from litereplica.fuse.mountpoint import Owner
from litereplica.fuse.mountpoint import ask as ask_as
from litereplica.testing.mounts import MountedReplica
from tests.cli.program import program
from tests.conftest import S3Bucket
from tests.e2e.test_outage import publish, silent
from tests.helpers.json_language import require_answered
from tests.helpers.publisher import Publisher

pytestmark = pytest.mark.slow

OTHER_USER = 65_534


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    with Publisher(tmp_path / "primary", setup="CREATE TABLE t (x)") as publisher:
        yield publisher


STATUS = (
    "SELECT d.name, d.state, d.txid, d.lag_ms, d.error, (SELECT count(*) FROM lr.readers), "
    "(SELECT sum(requests) > 0 FROM lr.requests), (SELECT count(*) FROM lr.files), (SELECT max(txid) FROM lr.points) "
    "FROM lr.databases d"
)
"""Joined with the rows of a client."""


def attributes(path: Path) -> dict[str, str]:
    return {name.removeprefix("user.litereplica."): os.getxattr(path, name).decode() for name in os.listxattr(path)}


def as_other_user(*command: str | Path) -> subprocess.CompletedProcess[str]:
    prefix = ["setpriv", f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups"]
    return subprocess.run([*prefix, *map(str, command)], capture_output=True, text=True, check=False)


def test_state_is_in_the_attributes_and_in_a_database_that_any_client_attaches(
    publisher: Publisher, tmp_path: Path
) -> None:
    with MountedReplica(publisher.url, tmp_path, options=("--allow-other",)) as mount:
        txid = f"{publisher.txid:016x}"
        mount.wait_for(publisher.txid)
        found = attributes(mount.path)
        assert (found["txid"], found["lag_ms"], found["behind_bytes"]) == (txid, "0", "0")
        assert found["status"] == "following"
        assert attributes(mount.path.with_name("app.db-pos")) == {}
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(mount.path, "user.litereplica.nothing")

        tables = mount.mountpoint / ".litereplica.db"
        assert tables.name not in {each.name for each in mount.mountpoint.iterdir()}
        with closing(sqlite3.connect(mount.path)) as client, closing(sqlite3.connect(tables)) as other:
            client.execute("ATTACH ? AS lr", (str(tables),))
            assert client.execute("PRAGMA lr.integrity_check").fetchone() == ("ok",)
            publisher.transaction("INSERT INTO t VALUES (1)")
            mount.wait_for(publisher.txid)
            later = f"{publisher.txid:016x}"
            assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            client.execute("BEGIN")
            assert client.execute("SELECT count(*) FROM main.t").fetchone() == (1,)
            with closing(sqlite3.connect(tables)) as third:
                third.execute("ATTACH ? AS lr", (str(tables),))
                row = third.execute(STATUS).fetchone()
                assert row[:6] == ("app.db", "following", later, 0, None, 1)
                assert row[6] == 1
                assert row[7] > 0
                assert row[8] == later
                assert third.execute("SELECT DISTINCT usd FROM lr.requests").fetchall() == [(None,)]
                assert third.execute("SELECT pid, txid FROM lr.readers").fetchone() == (os.getpid(), later)
                document = ask(own_directory({}, uid=0) / f"{mount.pid}.sock", "GET", "/status") or {}
                require_answered("/status", document)
                (state,) = document["databases"]
                told = third.execute("SELECT txid, timestamp, url, mountpoint FROM lr.databases").fetchone()
                assert told == (state["txid"], state["timestamp"], publisher.url, str(mount.mountpoint))
                assert attributes(mount.path)["timestamp"] == state["timestamp"]
            assert client.execute("SELECT txid FROM lr.databases").fetchone() == (txid,), "it does not change"
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                client.execute("INSERT INTO lr.points VALUES (1, 1)")
            client.rollback()
        copy = tmp_path / "copy.db"
        copy.write_bytes(tables.read_bytes())
        with closing(sqlite3.connect(copy)) as copied:
            assert copied.execute("PRAGMA integrity_check").fetchone() == ("ok",)

        make_reachable(mount.mountpoint)
        seen = ask_as(lambda: " ".join(attributes(mount.path)).encode(), owner=Owner(OTHER_USER, OTHER_USER))
        assert seen == b"txid timestamp lag_ms"
        hidden = json.loads(as_other_user("cat", mount.mountpoint / ".litereplica").stdout)
        assert set(hidden) == {"name", "txid", "timestamp", "lag_ms"}
        rows = as_other_user(
            "sqlite3", f"file:{tables}?mode=ro", "SELECT * FROM databases; SELECT count(*) FROM readers, requests;"
        )
        assert rows.returncode == 0, rows
        assert publisher.url not in rows.stdout
        assert str(mount.mountpoint) not in rows.stdout
        assert f"app.db|||||{later}|" in rows.stdout


@pytest.mark.slow
def test_other_users_learn_as_little_of_a_mount_of_many(tmp_path: Path) -> None:
    with (
        Publisher(tmp_path / "prefix", setup="CREATE TABLE t(x)") as publisher,
        MountedReplica(
            f"file://{publisher.replica.parent}", tmp_path / "mount", name="", options=("--allow-other", "--all")
        ) as mount,
        closing(sqlite3.connect(mount.mountpoint / publisher.replica.name)) as client,
    ):
        make_reachable(mount.mountpoint)
        client.execute("SELECT count(*) FROM t")
        of_one = program("status", mount.mountpoint / publisher.replica.name, "--json")
        (record,) = json.loads(of_one.stdout)["databases"]
        assert (record["state"], record["txid"]) == ("following", f"{publisher.txid:016x}")
        one = mount.mountpoint / ".each" / publisher.replica.name / ".litereplica"
        for path, known in ((mount.mountpoint / ".litereplica", set()), (one, {"name", "txid", "timestamp", "lag_ms"})):
            assert json.loads(path.read_bytes())["url"]
            assert set(json.loads(as_other_user("cat", path).stdout)) == known


def make_reachable(path: Path) -> None:
    for parent in path.parents:
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)


def test_a_fixed_mount_says_what_it_is(publisher: Publisher, tmp_path: Path) -> None:
    first = publisher.txid
    with MountedReplica(publisher.url, tmp_path, options=("--txid", f"{first:016x}", "--log-format", "json")) as mount:
        assert attributes(mount.path)["status"] == "fixed"
        assert json.loads((mount.mountpoint / ".litereplica").read_bytes())["state"] == "fixed"
        with closing(sqlite3.connect(mount.mountpoint / ".litereplica.db")) as tables:
            row = tables.execute("SELECT state, txid, newest_txid FROM databases").fetchone()
        assert row == ("fixed", f"{first:016x}", None)
        lines = [json.loads(line) for line in mount.log_file.read_text().splitlines()]
        assert any(line["msg"].startswith("mounted ") and line["level"] == "INFO" for line in lines)


def test_a_mount_whose_store_is_silent_is_unhealthy_and_healthy_again_after(
    s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    publish(tmp_path / "app.db", s3_bucket.url, "CREATE TABLE t (x)")
    with MountedReplica(s3_bucket.url, tmp_path / "m", expected_problems=("polling fails",)) as mount:
        socket = own_directory({}, uid=0) / f"{mount.pid}.sock"

        def state() -> dict[str, Any]:
            (record,) = (ask(socket, "GET", "/status") or {})["databases"]
            return dict(record)

        assert program("health", mount.mountpoint).returncode == ExitCode.OK
        assert "USD by S3's price list" in program("status", mount.mountpoint).stdout
        with silent(s3_bucket.server.pid):
            mount.wait_until(lambda: state()["state"] == "failed", what="failure")
            assert state()["lag_ms"] > 1000
            assert state()["news_age_ms"] > 1000
            sick = program("status", mount.mountpoint, "--check")
            assert (sick.returncode, f"{mount.path} is failed (" in sick.stderr) == (ExitCode.NOT_REACHED, True), sick
            assert attributes(mount.path)["status"] == "failed"
        mount.wait_until(lambda: state()["state"] == "following", what="recovery")
        assert state()["lag_ms"] == 0
        assert program("health", mount.mountpoint, "--max-lag", "1s").returncode == ExitCode.OK
