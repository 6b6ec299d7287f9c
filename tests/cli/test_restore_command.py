"""`litereplica restore` as a user runs it: output, summary, refusals with their exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from tests.cli.program import DEADLINE_S, program
from tests.helpers.publisher import Publisher
from tests.ltxstore.replicas import History

pytestmark = pytest.mark.slow


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
    assert 0 <= summary.pop("duration_ms") < 1000 * DEADLINE_S
    files = (tmp_path / "replica").rglob("*.ltx")
    assert summary == {
        "db_path": str(tmp_path / "out.db"),
        "replica": replica,
        "txid": "0000000000000003",
        "page_size": 512,
        "pages": 33,
        "bytes": 33 * 512,
        "files": 3,
        "bytes_read": sum(path.stat().st_size for path in files),
        "integrity_check": "none",
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


_HOLD = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1])
held.execute("PRAGMA journal_mode=wal")
held.execute("CREATE TABLE mine(x)")
print("ready", flush=True)
sys.stdin.read()
"""


def test_database_that_a_program_has_open_is_not_replaced(tmp_path: Path, replica: str, history: History) -> None:
    out = tmp_path / "out.db"
    command = [sys.executable, "-c", _HOLD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        inode = out.stat().st_ino
        done = program("restore", replica, "-o", out, "--force")
        holder.communicate(timeout=DEADLINE_S)
    assert done.returncode == ExitCode.USAGE
    assert f"{out} is open in process {holder.pid}: stop it" in done.stderr
    assert out.stat().st_ino == inode
    assert program("restore", replica, "-o", out, "--force").returncode == 0
    assert out.read_bytes() == history.database(3)


def test_replica_with_a_gap_tells_what_can_be_restored(tmp_path: Path, replica: str, history: History) -> None:
    (tmp_path / "replica" / "ltx" / "0" / f"{3:016x}-{3:016x}.ltx").rename(
        tmp_path / "replica" / "ltx" / "0" / f"{4:016x}-{4:016x}.ltx"
    )
    done = program("restore", replica, "-o", tmp_path / "out.db")
    assert done.returncode == ExitCode.NOT_FOUND
    assert f"--txid {2:016x} can be restored" in done.stderr
    assert program("restore", replica, "-o", tmp_path / "out.db", "--txid", f"{2:016x}").returncode == 0
    assert (tmp_path / "out.db").read_bytes() == history.database(2)


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
    limited = f"ulimit -f 1; exec {sys.executable} -m litereplica restore {replica} -o {tmp_path}/out.db"
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


# --- which state ------------------------------------------------------------------------------


def test_state_at_a_txid_or_before_a_time(tmp_path: Path, replica: str, history: History) -> None:
    out = tmp_path / "out.db"
    assert program("restore", replica, "-o", out, "--txid", f"{2:016x}").returncode == 0
    assert out.read_bytes() == history.database(2)
    after = "2023-11-14T22:13:20.001Z"  # every file of `replicas` has the same time, a millisecond earlier
    assert program("restore", replica, "-o", out, "--timestamp", after, "--force").returncode == 0
    assert out.read_bytes() == history.database(3)


def test_point_that_is_none_is_not_found_with_the_next_step(tmp_path: Path, replica: str) -> None:
    done = program("restore", replica, "-o", tmp_path / "out.db", "--txid", f"{4:016x}")
    assert done.returncode == ExitCode.NOT_FOUND
    assert done.stderr.endswith("cannot be restored to TXID 0000000000000004: the nearest: 0000000000000003\n")
    done = program("restore", replica, "-o", tmp_path / "out.db", "--timestamp", "2023-11-14T22:13:20Z")
    assert done.returncode == ExitCode.NOT_FOUND
    assert "its first point is TXID 0000000000000001 of 2023-11-14T22:13:20.000Z" in done.stderr
    assert not (tmp_path / "out.db").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--txid", f"{1:016x}", "--timestamp", "1 hour ago"),
        ("--txid", "7"),
        ("--timestamp", "01/02/2026"),
        ("-f", "--txid", f"{1:016x}"),
        ("-f", "--all"),
        ("--all", "--dry-run"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, replica: str, options: tuple[str, ...]) -> None:
    done = program("restore", replica, "-o", tmp_path / "out.db", *options)
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.db").exists()


# --- whether, and how --------------------------------------------------------------------------


def test_existing_database_or_empty_replica_can_be_no_error(tmp_path: Path, replica: str) -> None:
    (tmp_path / "out.db").write_bytes(b"precious")
    assert program("restore", replica, "-o", tmp_path / "out.db", "--if-db-not-exists").returncode == 0
    assert (tmp_path / "out.db").read_bytes() == b"precious"
    (tmp_path / "empty").mkdir()
    done = program("restore", f"file://{tmp_path}/empty", "-o", tmp_path / "new.db", "--if-replica-exists")
    assert (done.returncode, (tmp_path / "new.db").exists()) == (0, False)


def test_dry_run_tells_what_would_be_read_and_writes_nothing(tmp_path: Path, replica: str) -> None:
    done = program("restore", replica, "-o", tmp_path / "out.db", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert (plan["min_txid"], plan["max_txid"], plan["bytes"]) == (f"{1:016x}", f"{3:016x}", 33 * 512)
    assert [(file["name"], file["whole"]) for file in plan["files"]] == [
        (f"{txid:016x}-{txid:016x}.ltx", True) for txid in (1, 2, 3)
    ]
    assert plan["bytes_read"] == sum(file["size"] for file in plan["files"])
    table = program("restore", replica, "-o", tmp_path / "out.db", "--dry-run")
    assert "0000000000000002-0000000000000002.ltx" in table.stdout
    assert "would be written" in table.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["replica"]


@pytest.mark.parametrize("check", ["quick", "full"])
def test_database_that_fails_the_integrity_check_does_not_appear(tmp_path: Path, replica: str, check: str) -> None:
    """The pages of `replicas` are no database."""
    done = program("restore", replica, "-o", tmp_path / "out.db", "--integrity-check", check)
    assert done.returncode == ExitCode.DAMAGED
    assert f"fails the {check} integrity check" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["replica"]


def test_sound_database_passes_the_integrity_check_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    with Publisher(tmp_path / "primary", setup="CREATE TABLE t(x); INSERT INTO t VALUES (1)") as publisher:
        (tmp_path / "out").mkdir()
        out = tmp_path / "out" / "app.db"
        done = program("restore", publisher.url, "-o", out, "--integrity-check", "full", "--json")
        assert json.loads(done.stdout)["integrity_check"] == "full"
        assert out.read_bytes() == publisher.content
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["app.db"]


# --- which replica -----------------------------------------------------------------------------


def test_database_stands_for_the_replica_that_it_was_published_to(tmp_path: Path) -> None:
    database, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    with sqlite3.connect(database) as connection:
        connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE t(x); INSERT INTO t VALUES (7)")
    connection.close()
    assert program("replicate", database, url, "--once").returncode == 0
    assert program("restore", database, "-o", tmp_path / "copy.db").returncode == 0
    copy = sqlite3.connect(tmp_path / "copy.db")
    assert copy.execute("SELECT x FROM t").fetchall() == [(7,)]
    copy.close()
    done = program("restore", tmp_path / "other.db", "-o", tmp_path / "new.db")
    assert done.returncode == ExitCode.USAGE
    assert "is known: give the replica's URL" in done.stderr


def test_configuration_file_names_the_replica_and_the_place(tmp_path: Path, replica: str, history: History) -> None:
    (tmp_path / "dbs").mkdir()
    config = tmp_path / "litereplica.yml"
    config.write_text(f"dbs:\n  - path: {tmp_path}/dbs/app.db\n    replica:\n      url: {replica}\n")
    assert program("restore", tmp_path / "dbs" / "app.db", "-c", config).returncode == 0
    assert (tmp_path / "dbs" / "app.db").read_bytes() == history.database(3)
    done = program("restore", tmp_path / "dbs" / "other.db", "-c", config)
    assert done.returncode == ExitCode.USAGE
    assert "does not name" in done.stderr


# --- all of a prefix, and following -------------------------------------------------------------


def test_all_databases_of_a_prefix_are_restored_and_one_that_fails_is_named(
    tmp_path: Path, replica: str, history: History
) -> None:
    root = tmp_path / "root"
    for name in ("a.db", "deep/b.db", "deep/broken.db"):
        shutil.copytree(tmp_path / "replica", root / name)
    (root / "deep" / "broken.db" / "ltx" / "0" / f"{2:016x}-{2:016x}.ltx").unlink()
    done = program("restore", f"file://{root}", "--all", "-o", tmp_path / "out", "--json")
    assert done.returncode == ExitCode.NOT_FOUND
    assert "1 of 3 databases were not restored: deep/broken.db" in done.stderr
    for name in ("a.db", "deep/b.db"):
        assert (tmp_path / "out" / name).read_bytes() == history.database(3)
    records = json.loads(done.stdout)
    assert [Path(record["db_path"]).name for record in records] == ["a.db", "b.db", "broken.db"]
    assert ["error" in record for record in records] == [False, False, True]
    shutil.rmtree(root / "deep" / "broken.db")
    again = program("restore", f"file://{root}", "--all", "-o", tmp_path / "out", "--if-db-not-exists")
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    nowhere = program("restore", f"file://{root}", "--all")
    assert "--all -o DIRECTORY" in nowhere.stderr
    assert program("restore", f"file://{root}", "--all", "-o", tmp_path / "out").returncode == ExitCode.USAGE
    (tmp_path / "nothing").mkdir()
    nothing = program("restore", f"file://{tmp_path}/nothing", "--all", "-o", tmp_path / "out")
    assert nothing.returncode == ExitCode.NOT_FOUND


def test_names_that_would_do_harm_are_reported_and_not_restored(tmp_path: Path, replica: str, history: History) -> None:
    root = tmp_path / "root"
    for name in ("a.db", "a.db-journal", "b.db-wal", "esc\x1b[2J.db", "line\nbreak.db"):
        shutil.copytree(tmp_path / "replica", root / name)
    done = program("restore", f"file://{root}", "--all", "-o", tmp_path / "out")
    assert done.returncode == ExitCode.NOT_FOUND
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.db"]
    assert "4 of 5 databases were not restored" in done.stderr
    assert "\x1b" not in done.stderr
    assert "line\\nbreak.db" in done.stderr


def test_follow_keeps_up_until_it_is_stopped_and_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    with Publisher(tmp_path / "primary", setup="CREATE TABLE t(x)") as publisher:
        command = [sys.executable, "-m", "litereplica", "restore", "-f", publisher.url, "-o", str(out)]
        for number in range(2):
            with subprocess.Popen(
                [*command, "--follow-interval", "50ms"], stderr=subprocess.PIPE, text=True
            ) as process:
                assert process.stderr is not None
                lines = iter(process.stderr.readline, "")
                assert any("following" in line for line in lines)
                publisher.transaction(f"INSERT INTO t VALUES ({number})")
                assert any(f"to {publisher.txid:016x}" in line for line in lines)
                os.kill(process.pid, signal.SIGTERM)
                assert process.wait(DEADLINE_S) == 0
        copy = sqlite3.connect(out)
        assert copy.execute("SELECT x FROM t").fetchall() == [(0,), (1,)]
        copy.close()
    (tmp_path / "out.db-txid").unlink()
    done = program("restore", "-f", publisher.url, "-o", out)
    assert done.returncode == ExitCode.USAGE
