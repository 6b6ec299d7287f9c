"""`litereplica restore` as a user runs it: output, summary, refusals with their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from tests.cli.program import DEADLINE_S, program
from tests.ltxstore.replicas import History


@pytest.fixture
def history() -> History:
    made = History()
    made.commit(40)
    made.commit(30, 1, 7)
    made.commit(33, 1)
    return made


def test_database_is_written_and_said_so_on_stderr(tmp_path: Path, replica: str, history: History) -> None:
    done = program("restore", replica, "-o", tmp_path / "out.db")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("litereplica: restored TXID 0000000000000003 to ")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "out.db").read_bytes() == history.database(3)


def test_json_is_a_summary_and_stderr_is_silent(tmp_path: Path, replica: str) -> None:
    done = program("restore", replica, "-o", tmp_path / "out.db", "--json")
    summary = json.loads(done.stdout)
    assert 0 <= summary.pop("seconds") < DEADLINE_S
    assert summary == {
        "db_path": str(tmp_path / "out.db"),
        "txid": "0000000000000003",
        "page_size": 512,
        "pages": 33,
        "bytes": 33 * 512,
        "files": 3,
    }
    assert done.stderr == ""


def test_existing_file_needs_force(tmp_path: Path, replica: str, history: History) -> None:
    (tmp_path / "out.db").write_bytes(b"precious")
    done = program("restore", replica, "-o", tmp_path / "out.db")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.endswith("exists: name another file, or add --force to replace it\n")
    assert (tmp_path / "out.db").read_bytes() == b"precious"
    assert program("restore", replica, "-o", tmp_path / "out.db", "--force").returncode == 0
    assert (tmp_path / "out.db").read_bytes() == history.database(3)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_empty_or_missing_replica_is_not_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    done = program("restore", f"file://{tmp_path}/{name}", "-o", tmp_path / "out.db")
    assert done.returncode == ExitCode.NOT_FOUND
    assert done.stderr.startswith("litereplica: error: the replica has no LTX files")
    assert not (tmp_path / "out.db").exists()


def test_damaged_file_is_named(tmp_path: Path, replica: str) -> None:
    path = tmp_path / "replica" / "ltx" / "0" / "0000000000000002-0000000000000002.ltx"
    data = bytearray(path.read_bytes())
    data[150] ^= 1
    path.write_bytes(data)
    done = program("restore", replica, "-o", tmp_path / "out.db")
    assert done.returncode == ExitCode.DAMAGED
    assert "ltx/0/0000000000000002-0000000000000002.ltx" in done.stderr
    assert done.stderr.count("\n") == 1


def test_full_file_system_is_an_environment_problem(tmp_path: Path, replica: str) -> None:
    """A limit on the size of files stands in for a full disk."""
    limited = f"ulimit -f 1; exec {sys.executable} -m litereplica.cli.main restore {replica} -o {tmp_path}/out.db"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "out.db" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["replica"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_and_leaves_nothing(tmp_path: Path, replica: str, number: signal.Signals) -> None:
    """The program is stopped while it waits for a file that never comes."""
    out = tmp_path / "out"
    out.mkdir()
    waiting = (
        "import sys, trio\n"
        "from litereplica.ltxstore import store\n"
        "async def get(self, info, range=None):\n"
        "    print('reading', flush=True)\n"
        "    await trio.sleep_forever()\n"
        "store.LTXStore.get = get\n"
        "from litereplica.cli.main import main\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", waiting, "restore", replica, "-o", str(out / "out.db")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        assert len(list(out.iterdir())) == 1
        os.kill(process.pid, number)
        assert process.wait(DEADLINE_S) == 130
    assert list(out.iterdir()) == []
