"""`litereplica verify` as a user runs it: what it says, exit codes, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.ltxstore.store import open_ltx_store
from tests.cli.program import program
from tests.conftest import S3Bucket
from tests.ltxstore.replicas import History, publish

pytestmark = pytest.mark.slow

LAST = "0000000000000004"


@pytest.fixture
def history() -> History:
    made = History()
    for size, changed in ((5, ()), (3, (1,)), (900, (2,)), (900, (1,))):
        made.commit(size, *changed)
    return made


def test_sound_replica_is_said_to_be_on_stderr(replica: str) -> None:
    done = program("verify", replica)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("litereplica: checked 4 files, ")
    assert done.stderr.endswith(f", 4 points up to TXID {LAST}: no problems\n")


def test_damaged_file_is_one_line_and_the_exit_code_says_it(tmp_path: Path, replica: str) -> None:
    path = tmp_path / f"replica/ltx/0/{LAST}-{LAST}.ltx"
    data = bytearray(path.read_bytes())
    data[150] ^= 1
    path.write_bytes(data)
    done = program("verify", replica)
    assert done.returncode == ExitCode.DAMAGED
    assert done.stdout.startswith(f"error: ltx/0/{LAST}-{LAST}.ltx: ")
    assert done.stdout.endswith(f"; TXID {LAST} cannot be restored\n")
    assert done.stdout.count("\n") == 1
    assert done.stderr.splitlines()[-1].startswith("litereplica: error: the replica has 1 error: ")


def test_json_has_the_problems_and_the_same_exit_code(tmp_path: Path, replica: str) -> None:
    (tmp_path / f"replica/ltx/0/{'0' * 15}2-{'0' * 15}2.ltx").unlink()
    (tmp_path / "replica/notes.txt").write_text("x")
    done = program("verify", replica, "--json", "--quick")
    report = json.loads(done.stdout)
    assert done.returncode == ExitCode.DAMAGED
    assert (report["files"], report["points"], report["newest_txid"], report["errors"]) == (3, 1, LAST, 1)
    gap, foreign = report["problems"]
    assert (gap["severity"], gap["lost"]) == ("error", ["0000000000000003", LAST])
    assert (foreign["severity"], foreign["file"], foreign["lost"]) == ("note", "notes.txt", None)


def test_only_notes_are_no_failure(tmp_path: Path, replica: str) -> None:
    (tmp_path / "replica/bad\x1b[31mname").write_text("x")
    done = program("verify", replica)
    assert done.returncode == 0
    assert done.stdout == "note: bad?[31mname: does not belong to the replica; it is ignored\n"


def test_empty_replica_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = program("verify", f"file://{tmp_path}/empty")
    assert done.returncode == ExitCode.NOT_FOUND
    assert done.stderr.count("\n") == 1


def test_unreachable_store_is_a_store_error() -> None:
    done = program("verify", "s3://no-such-bucket/x?endpoint=http://127.0.0.1:1")
    assert done.returncode == ExitCode.STORE
    assert done.stderr.count("\n") == 1


async def test_replica_on_s3_is_verified(s3_bucket: S3Bucket, history: History) -> None:
    store = open_ltx_store(s3_bucket.url)
    for txid in range(1, history.txid + 1):
        await publish(store, history, 0, txid, txid)
    await publish(store, history, 1, 1, 3)
    done = await trio.to_thread.run_sync(program, "verify", s3_bucket.url, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == []
    await store.storage.put(f"0001/{'0' * 15}1-{'0' * 15}3.ltx", b"")
    assert (await trio.to_thread.run_sync(program, "verify", s3_bucket.url)).returncode == ExitCode.DAMAGED
    await store.aclose()
