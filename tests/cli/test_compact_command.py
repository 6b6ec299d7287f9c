"""`litereplica compact` as a user runs it: the file it makes, what it says, refusals with their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.ltxstore.store import open_ltx_store
from tests.cli.program import DEADLINE_S, program
from tests.conftest import S3Bucket
from tests.ltxstore.replicas import History, publish

pytestmark = pytest.mark.slow

FIRST, LAST = "0000000000000001", "0000000000000004"


@pytest.fixture
def history() -> History:
    made = History()
    made.commit(5)
    made.commit(3, 1)
    made.commit(900, 2)
    made.commit(900, 1)
    return made


def test_level_gets_one_file_and_the_inputs_stay(tmp_path: Path, replica: str, history: History) -> None:
    done = program("compact", replica, "--level", "1")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"litereplica: merged 4 files to L1/{FIRST}-{LAST}, ")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / f"replica/ltx/1/{FIRST}-{LAST}.ltx").read_bytes() == history.file(1, 4)
    assert len(list((tmp_path / "replica/ltx/0").glob("*.ltx"))) == 4


def test_json_is_a_summary_and_stderr_is_silent(tmp_path: Path, replica: str) -> None:
    done = program("compact", replica, "--level", "1", "--json")
    summary = json.loads(done.stdout)
    assert 0 <= summary.pop("duration_ms") < DEADLINE_S * 1000
    listed = json.loads(program("ltx", replica, "--level", "1", "--json").stdout)
    assert summary == {"file": listed[0], "inputs": 4}
    assert listed[0]["size"] == (tmp_path / f"replica/ltx/1/{FIRST}-{LAST}.ltx").stat().st_size
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_to_merge_is_said_and_no_error(replica: str) -> None:
    program("compact", replica, "--level", "1")
    done = program("compact", replica, "--level", "1")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"litereplica: nothing to merge into level 1 of {replica}\n"
    done = program("compact", replica, "--level", "3", "--json")
    summary = json.loads(done.stdout)
    del summary["duration_ms"]
    assert summary == {"file": None, "inputs": 0}


@pytest.mark.parametrize("level", ["0", "9", "x"])
def test_level_that_nothing_is_merged_into_is_a_usage_error(replica: str, level: str) -> None:
    assert program("compact", replica, "--level", level).returncode == ExitCode.USAGE


def test_level_is_required(replica: str) -> None:
    done = program("compact", replica)
    assert done.returncode == ExitCode.USAGE
    assert "--level" in done.stderr


def test_damaged_file_is_named_and_nothing_is_published(tmp_path: Path, replica: str) -> None:
    path = tmp_path / f"replica/ltx/0/{LAST}-{LAST}.ltx"
    path.write_bytes(path.read_bytes()[:-1])
    done = program("compact", replica, "--level", "1")
    assert done.returncode == ExitCode.DAMAGED
    assert f"ltx/0/{LAST}-{LAST}.ltx" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "replica/ltx/1").exists()


def test_unreachable_store_is_a_store_error() -> None:
    done = program("compact", "s3://no-such-bucket/x?endpoint=http://127.0.0.1:1", "--level", "1")
    assert done.returncode == ExitCode.STORE
    assert done.stderr.count("\n") == 1


def test_full_file_system_is_an_environment_problem(
    tmp_path: Path, replica: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands in for a full disk, and a small limit of memory for a large replica."""
    (tmp_path / "spool").mkdir()
    small = (
        "from litereplica.compaction import merge; merge.SPOOL_MEMORY_BYTES = 10000\n"
        "from litereplica.cli.main import main; main()\n"
    )
    (tmp_path / "small.py").write_text(small)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spool"))
    limited = f"ulimit -f 12; exec {sys.executable} {tmp_path}/small.py compact {replica} --level 1"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert f"cannot write a temporary file in {tmp_path}/spool" in done.stderr
    assert list((tmp_path / "spool").iterdir()) == []
    assert not (tmp_path / "replica/ltx/1").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_and_leaves_nothing(tmp_path: Path, replica: str, number: signal.Signals) -> None:
    """The program is stopped while it waits for a file that never comes."""
    waiting = (
        "import trio\n"
        "from litereplica.ltxstore import store\n"
        "async def get(self, info, range=None):\n"
        "    print('reading', flush=True)\n"
        "    await trio.sleep_forever()\n"
        "store.LTXStore.get = get\n"
        "from litereplica.cli.main import main\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", waiting, "compact", replica, "--level", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        os.kill(process.pid, number)
        assert process.wait(DEADLINE_S) == 130
    assert not (tmp_path / "replica/ltx/1").exists()


async def test_replica_on_s3_is_compacted(s3_bucket: S3Bucket, history: History) -> None:
    store = open_ltx_store(s3_bucket.url)
    for txid in range(1, history.txid + 1):
        await publish(store, history, 0, txid, txid)
    done = await trio.to_thread.run_sync(program, "compact", s3_bucket.url, "--level", "1")
    assert done.returncode == 0, done.stderr
    (info,) = await store.list_level(1)
    assert (await store.get(info)).data == history.file(1, 4)
    await store.aclose()
