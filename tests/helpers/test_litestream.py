"""What other tests rely on: `sync` means that the commits are in the store, and the process ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from litereplica.testing.litestream import NEVER, LitestreamError, LitestreamProcess, litestream_ltx, litestream_restore


def sql(db: Path, statements: str) -> str:
    return subprocess.run(["sqlite3", str(db), statements], check=True, capture_output=True, text=True).stdout


def test_every_commit_before_a_sync_is_in_the_store(tmp_path: Path) -> None:
    db, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    sql(db, "PRAGMA journal_mode=wal; CREATE TABLE t (x)")
    with LitestreamProcess(db, url, sync_interval=NEVER) as litestream:
        for number in range(5):
            sql(db, f"INSERT INTO t VALUES ({number})")
            txid = litestream.sync()
            newest = max(int(str(file["max_txid"]), 16) for file in litestream_ltx(url))
            assert newest == txid
            litestream_restore(url, tmp_path / f"{number}.db")
            assert sql(tmp_path / f"{number}.db", "SELECT count(*) FROM t") == f"{number + 1}\n"
        assert "sync" in litestream.log


def test_stopped_process_has_published_and_is_gone(tmp_path: Path) -> None:
    db, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    sql(db, "PRAGMA journal_mode=wal; CREATE TABLE t (x)")
    litestream = LitestreamProcess(db, url, sync_interval=NEVER)
    litestream.start()
    pid = litestream.pid
    sql(db, "INSERT INTO t VALUES (1)")
    litestream.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    litestream_restore(url, tmp_path / "out.db")
    assert sql(tmp_path / "out.db", "SELECT count(*) FROM t") == "1\n"


def test_settings_reach_the_process(tmp_path: Path) -> None:
    db, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    sql(db, "PRAGMA journal_mode=wal; CREATE TABLE t (x)")
    with LitestreamProcess(db, url, settings={"logging": {"level": "error"}}) as litestream:
        assert litestream.log == ""


def test_process_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(LitestreamError, match="replica"),
        LitestreamProcess(tmp_path / "app.db", "nonsense://x"),
    ):
        pass
