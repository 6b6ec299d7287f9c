"""`litereplica ltx`: what a replica holds, in Litestream's words."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.file import FileStorage
from litereplica.testing.litestream import litestream_ltx
from tests.cli.program import program as run
from tests.conftest import S3Bucket
from tests.ltxstore.replicas import History, publish


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("ltx", *arguments)


@pytest.fixture
def replica(tmp_path: Path) -> str:
    history = History()
    for _ in range(3):
        history.commit(3, 1)

    async def fill() -> None:
        store = LTXStore(FileStorage(tmp_path / "replica"), Layout.FILE)
        for level, low, high in ((0, 2, 2), (0, 3, 3), (1, 1, 2), (9, 1, 1)):
            await publish(store, history, level, low, high)

    trio.run(fill)
    return f"file://{tmp_path}/replica"


@pytest.mark.parametrize("level", ["0", "1", "5", "9", "all"])
def test_json_is_what_litestream_prints(replica: str, level: str) -> None:
    done = program(replica, "--level", level, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == litestream_ltx(replica, level=level)


def test_table_has_a_line_for_each_file_of_level_0_by_default(replica: str) -> None:
    lines = program(replica).stdout.splitlines()
    assert lines[0].split() == ["level", "min_txid", "max_txid", "size", "created"]
    assert [line.split()[:3] for line in lines[1:]] == [["0", f"{txid:016x}", f"{txid:016x}"] for txid in (2, 3)]
    assert lines[1].split()[-1] == "2023-11-14T22:13:20Z"


def test_empty_replica_is_an_empty_list_and_a_note(tmp_path: Path) -> None:
    done = program(f"file://{tmp_path}/none", "--level", "all", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    assert done.stderr == f"litereplica: no LTX files in file://{tmp_path}/none\n"


def test_missing_bucket_is_one_clear_line(s3_bucket: S3Bucket) -> None:
    url = s3_bucket.server.url("no-such-bucket", "app.db")
    done = program(url)
    assert done.returncode == ExitCode.STORE
    assert "no-such-bucket" in done.stderr
    assert done.stderr.count("\n") == 1


def test_level_that_does_not_exist_is_a_usage_error(replica: str) -> None:
    done = program(replica, "--level", "10")
    assert done.returncode == ExitCode.USAGE
    assert "'10'" in done.stderr
