"""`litereplica snapshot` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from litereplica.format.decoder import decode_file
from tests.cli.program import DEADLINE_S, program
from tests.ltxstore.replicas import History

pytestmark = pytest.mark.slow

FIRST, LAST = "0000000000000001", "0000000000000003"


@pytest.fixture
def history() -> History:
    made = History()
    made.commit(40)
    made.commit(30, 1, 7)
    made.commit(33, 1)
    return made


def test_snapshot_has_the_whole_database(tmp_path: Path, replica: str, history: History) -> None:
    done = program("snapshot", replica)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"litereplica: merged 3 files to L9/{FIRST}-{LAST}, ")
    file = decode_file((tmp_path / f"replica/ltx/9/{FIRST}-{LAST}.ltx").read_bytes())
    assert b"".join(file.pages) == history.database(3)


def test_json_is_a_summary_and_a_second_snapshot_is_not_made(replica: str) -> None:
    done = program("snapshot", replica, "--json")
    summary = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert (summary["file"]["level"], summary["file"]["max_txid"], summary["inputs"]) == (9, LAST, 3)
    again = program("snapshot", replica, "--json")
    assert (again.returncode, json.loads(again.stdout)["file"]) == (0, None)
    said = program("snapshot", replica)
    assert said.stderr == f"litereplica: {replica} already has a snapshot of its latest state\n"


def test_snapshot_of_the_name_with_other_pages_is_a_conflict(tmp_path: Path, replica: str, history: History) -> None:
    """It appears while we merge: the listing did not have it."""
    other = History()
    other.commit(33)
    other.commit(33, 2)
    other.commit(33, 3)
    hidden = (
        "import sys\n"
        "from litereplica.ltxstore import store\n"
        "listed = store.LTXStore.list_level\n"
        "async def list_level(self, level, *, after=0):\n"
        "    return [] if level == 9 else await listed(self, level, after=after)\n"
        "store.LTXStore.list_level = list_level\n"
        "from litereplica.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    path = tmp_path / f"replica/ltx/9/{FIRST}-{LAST}.ltx"
    path.parent.mkdir()
    path.write_bytes(other.file(1, 3))
    done = script(hidden, "snapshot", replica)
    assert done.returncode == ExitCode.CONFLICT
    assert path.name in done.stderr
    assert path.read_bytes() == other.file(1, 3)
    path.write_bytes(history.file(1, 3))
    done = script(hidden, "snapshot", replica)
    assert (done.returncode, done.stderr.endswith("which existed already\n")) == (0, True)


def script(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_empty_replica_is_not_found(tmp_path: Path) -> None:
    done = program("snapshot", f"file://{tmp_path}/none")
    assert done.returncode == ExitCode.NOT_FOUND
    assert done.stderr.startswith("litereplica: error: the replica has no LTX files")


def test_replica_without_a_beginning_is_not_found(tmp_path: Path, replica: str) -> None:
    (tmp_path / f"replica/ltx/0/{FIRST}-{FIRST}.ltx").unlink()
    done = program("snapshot", replica)
    assert done.returncode == ExitCode.NOT_FOUND
    assert "no snapshot" in done.stderr
