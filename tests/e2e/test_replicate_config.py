"""`litereplica replicate` with a configuration file, as a service manager runs it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from litereplica.control.client import ask
from litereplica.errors import ExitCode
from litereplica.testing.litestream import child_environment, litestream_binary
from litereplica.testing.mounts import litereplica_binary
from litereplica.testing.server_thread import serving
from tests.conftest import S3Bucket
from tests.helpers.archives import unpack
from tests.helpers.json_language import require_printed
from tests.restore.test_generations import GOLDEN

pytestmark = pytest.mark.slow

DEADLINE_S = 30.0


class Writer:
    """`litereplica replicate` in a process of its own, with its log and its control socket."""

    def __init__(self, process: subprocess.Popen[str], log: Path, control: Path) -> None:
        self.process = process
        self._log = log
        self._control = control

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def databases(self) -> dict[str, dict[str, Any]]:
        """What it tells of its databases, by their names; empty before it tells anything."""
        document = ask(self._control, "GET", "/status") or {}
        return {Path(each["db_path"]).name: each for each in document.get("databases", [])}

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds, while it runs."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def wait_for_txid(self, name: str, txid: int) -> None:
        self.wait_for(lambda: int(self.databases().get(name, {"txid": "0"})["txid"], 16) >= txid)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.send(number)
        return self.process.wait(DEADLINE_S)


@contextmanager
def writer(directory: Path, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> Iterator[Writer]:
    log = directory / "writer.log"
    command = ["setpriv", "--pdeathsig", "KILL", litereplica_binary(), "replicate", *arguments, "--log-file", log]
    process = subprocess.Popen(list(map(str, command)), text=True, stderr=subprocess.PIPE, env=environment)
    try:
        yield Writer(process, log, directory / "s")
    finally:
        process.kill()
        process.communicate()


def configuration(directory: Path, dbs: Sequence[Mapping[str, Any]], **settings: Any) -> Path:
    """A file whose control socket is `s` in the directory; JSON is YAML."""
    path = directory / "litereplica.yml"
    socket = {"path": str(directory / "s")}
    path.write_text(json.dumps({"socket": socket, "sync-interval": "50ms", "dbs": list(dbs), **settings}))
    path.chmod(0o600)
    return path


def entry(directory: Path, name: str, **settings: Any) -> dict[str, Any]:
    return {"path": str(directory / name), "replica": {"path": str(directory / "replica" / name)}, **settings}


def make(path: Path, *rows: int) -> Path:
    execute(path, "PRAGMA journal_mode = wal", "CREATE TABLE t (x)", *(f"INSERT INTO t VALUES ({row})" for row in rows))
    return path


def execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    for statement in statements:
        connection.execute(statement).fetchall()
    connection.close()


def restored(directory: Path, name: str, *, replica: Path | None = None) -> list[int]:
    """The rows of a replica's latest state."""
    output = directory / f"restored-{name}"
    url = f"file://{replica or directory / 'replica' / name}"
    command = [litereplica_binary(), "restore", url, "-o", str(output), "--force"]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
    connection = sqlite3.connect(output)
    rows = [row for (row,) in connection.execute("SELECT x FROM t ORDER BY rowid")]
    connection.close()
    return rows


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a short name: sockets have short ones, and pytest's directories are deep."""
    done = subprocess.run(["mktemp", "-d", "-t", "lr-XXXXXX"], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    yield path
    subprocess.run(["rm", "-r", str(path)], check=True)


# --- the file


def test_a_file_that_litestream_accepts_is_accepted_and_means_the_same(place: Path) -> None:
    make(place / "app.db", 1, 2)
    file = place / "litestream.yml"
    file.write_text(
        f"""
access-key-id: AKIAXXXXXXXX
secret-access-key: $NOT_SET
addr: ":0"
levels:
  - interval: 30s
  - interval: 5m
snapshot:
  interval: 12h
  retention: 48h
l0-retention: 5m
l0-retention-check-interval: 15s
shutdown-sync-timeout: 30s
logging:
  level: info
  type: text
  stderr: true
dbs:
  - path: ${{PLACE}}/app.db
    monitor-interval: 1s
    checkpoint-interval: 1m
    busy-timeout: 1s
    min-checkpoint-page-count: 1000
    truncate-page-n: 121359
    replica:
      type: file
      path: {place}/replica/app
      sync-interval: 100ms
      validation-interval: 6h
""".replace("access-key-id: AKIAXXXXXXXX\nsecret-access-key: $NOT_SET\n", "")
    )
    environment = {**os.environ, "PLACE": str(place)}
    theirs = subprocess.run(
        [litestream_binary(), "databases", "-config", str(file), "-json"],
        env=child_environment(environment), capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours = subprocess.run(
        [litereplica_binary(), "databases", "--config", str(file), "--json"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    require_printed(["databases", "--json"], ours.stdout)
    assert [each["path"] for each in json.loads(theirs.stdout)] == [f"{place}/app.db"]
    assert [(each["path"], each["url"]) for each in json.loads(ours.stdout)] == [
        (f"{place}/app.db", f"file://{place}/replica/app")
    ]
    assert "dbs[0].truncate-page-n" in ours.stderr
    published = subprocess.run(
        [litereplica_binary(), "replicate", "--config", str(file), "--once", "--json"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    require_printed(["replicate", "--json"], published.stdout)
    assert [each["txid"] for each in json.loads(published.stdout)] == ["0000000000000001"]
    warnings = [line for line in published.stderr.splitlines() if " WARNING " in line]
    assert len(warnings) == 1
    assert "no effect: " in warnings[0]
    subprocess.run(
        [litestream_binary(), "restore", "-config", str(file), "-o", str(place / "theirs.db"), str(place / "app.db")],
        env=child_environment(environment), capture_output=True, check=True,
    )  # fmt: skip
    connection = sqlite3.connect(place / "theirs.db")
    assert connection.execute("SELECT x FROM t").fetchall() == [(1,), (2,)]
    connection.close()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("dbs: [{path: a, replica: {path: r}, replicaz: {}}]", "line 1: there is no key dbs[0].replicaz: did you mean"),
        ("age: {recipients: [x]}\n", "line 1: age is not supported"),
        ("dbs: [", "is not YAML"),
        (None, "there is no configuration file"),
    ],
)
def test_a_wrong_file_is_an_error_of_one_line(place: Path, text: str | None, line: str) -> None:
    file = place / "litereplica.yml"
    if text is not None:
        file.write_text(text)
    for arguments in (["replicate", "-c", file], ["databases", "-c", file], ["status", "-c", file]):
        done = subprocess.run(
            [litereplica_binary(), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == ExitCode.USAGE
        (error,) = done.stderr.splitlines()
        assert line in error


def test_the_file_is_named_by_the_environment_and_a_database_on_the_command_line_wins(place: Path) -> None:
    file = configuration(place, [entry(place, "app.db")])
    make(place / "app.db", 1)
    make(place / "other.db", 2)
    environment = {**os.environ, "LITEREPLICA_CONFIG": str(file)}
    command = [litereplica_binary(), "replicate", "--once", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [Path(each["db_path"]).name for each in json.loads(done.stdout)] == ["app.db"]
    command += [str(place / "other.db"), f"file://{place}/replica/other.db"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert Path(json.loads(done.stdout)["db_path"]).name == "other.db"
    done = subprocess.run(
        [*command, "--config", str(file)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert "exclude each other" in done.stderr


def test_all_databases_of_a_file_are_published_and_one_that_fails_is_named(place: Path) -> None:
    make(place / "a.db", 1)
    make(place / "b.db", 2)
    (place / "c.db").write_text("this is no database, but as long as the header of one must be" * 3)
    file = configuration(place, [entry(place, name) for name in ("a.db", "b.db", "c.db")])
    with writer(place, "-c", file) as running:
        running.wait_for_txid("a.db", 1)
        running.wait_for_txid("b.db", 1)
        running.wait_for(lambda: running.databases()["c.db"]["error"])
        execute(place / "a.db", "INSERT INTO t VALUES (3)")
        running.wait_for_txid("a.db", 2)
        assert running.end() == ExitCode.OK
    assert restored(place, "a.db") == [1, 3]
    assert restored(place, "b.db") == [2]


# --- SIGHUP


def test_sighup_adds_and_removes_databases(place: Path) -> None:
    for number, name in enumerate(("a.db", "b.db", "c.db")):
        make(place / name, number)
    with writer(place, "-c", configuration(place, [entry(place, "a.db"), entry(place, "b.db")])) as running:
        running.wait_for_txid("a.db", 1)
        running.wait_for_txid("b.db", 1)
        configuration(place, [entry(place, "a.db"), entry(place, "c.db")])
        running.send(signal.SIGHUP)
        running.wait_for_txid("c.db", 1)
        running.wait_for(lambda: "the configuration was reloaded: 2 databases" in running.log)
        execute(place / "a.db", "INSERT INTO t VALUES (10)")
        execute(place / "b.db", "INSERT INTO t VALUES (10)")
        running.wait_for_txid("a.db", 2)
        assert running.databases().get("b.db", {"state": "gone"})["state"] == "gone"
        assert running.end() == ExitCode.OK
    assert restored(place, "a.db") == [0, 10]
    assert restored(place, "b.db") == [1]
    assert restored(place, "c.db") == [2]


def test_an_error_in_the_file_keeps_the_old_configuration(place: Path) -> None:
    make(place / "a.db", 1)
    file = configuration(place, [entry(place, "a.db")])
    with writer(place, "-c", file) as running:
        running.wait_for_txid("a.db", 1)
        file.write_text("dbs: [{path: x}]")
        running.send(signal.SIGHUP)
        running.wait_for(lambda: "cannot reload the configuration, which stays unchanged: " in running.log)
        assert "line 1: dbs[0] has no replica" in running.log
        execute(place / "a.db", "INSERT INTO t VALUES (2)")
        running.wait_for_txid("a.db", 2)
        assert running.end() == ExitCode.OK


# --- the program


def script(place: Path, text: str) -> str:
    """A Python program as a command line."""
    path = place / "program.py"
    path.write_text(text)
    return f"{sys.executable} {path}"


def test_the_program_starts_when_the_replica_is_up_to_date_and_its_exit_code_is_ours(place: Path) -> None:
    make(place / "a.db", 1)
    first = place / "replica/a.db/ltx/0/0000000000000001-0000000000000001.ltx"
    program = script(
        place,
        f"""
import os, sqlite3, sys
assert os.path.exists({str(first)!r})
connection = sqlite3.connect({str(place / "a.db")!r}, isolation_level=None)
connection.execute("INSERT INTO t VALUES (2)")
os._exit(5)
""",
    )
    with writer(place, "-c", configuration(place, [entry(place, "a.db")], exec=program)) as running:
        assert running.process.wait(DEADLINE_S) == 5
    assert restored(place, "a.db") == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_the_program_and_what_it_writes_then_is_published(place: Path, number: signal.Signals) -> None:
    make(place / "a.db", 1)
    program = script(
        place,
        f"""
import signal, sqlite3, sys
connection = sqlite3.connect({str(place / "a.db")!r}, isolation_level=None)
def stop(number, frame):
    connection.execute("INSERT INTO t VALUES (?)", (number,))
    sys.exit(9)
signal.signal({int(number)}, stop)
open({str(place / "ready")!r}, "w").close()
signal.pause()
""",
    )
    with writer(place, "-c", configuration(place, [entry(place, "a.db")]), "--exec", program) as running:
        running.wait_for((place / "ready").exists)
        assert running.end(number) == 9
    assert restored(place, "a.db") == [1, int(number)]


def test_a_program_is_not_started_beside_another_writer_of_one_of_several_named_databases(place: Path) -> None:
    for name in ("a.db", "b.db"):
        make(place / name, 1)
    other = place / "other"
    other.mkdir()
    with writer(other, make(other / "b.db", 1), f"file://{place}/replica/b.db") as holder:
        holder.wait_for(lambda: "published L0" in holder.log)
        file = configuration(place, [entry(place, name) for name in ("a.db", "b.db")], exec="sleep 1000")
        with writer(place, "-c", file) as running:
            assert running.process.wait(DEADLINE_S) == ExitCode.CONFLICT
            assert "started sleep" not in running.log
            assert running.process.stderr is not None
            assert "is leased to" in running.process.stderr.read()
        configuration(place, [entry(place, name) for name in ("a.db", "b.db")])
        with writer(place, "-c", file) as running:  # without a program, the others go on
            running.wait_for(lambda: running.databases().get("b.db", {}).get("state") == "failed")
            running.wait_for_txid("a.db", 1)
            assert running.end() == ExitCode.OK


def test_a_program_that_our_signal_ends_is_a_success_and_one_that_another_ends_is_not(place: Path) -> None:
    make(place / "a.db", 1)
    file = configuration(place, [entry(place, "a.db")], exec="sleep 1000")
    with writer(place, "-c", file) as running:
        running.wait_for(lambda: "started sleep" in running.log)
        assert running.end() == ExitCode.OK
    with writer(place, "-c", configuration(place, [entry(place, "a.db")], exec="sh -c 'kill -KILL $$$$'")) as running:
        assert running.process.wait(DEADLINE_S) == 2
    program = script(place, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with writer(place, "-c", configuration(place, [entry(place, "a.db")], exec=program)) as running:
        assert running.process.wait(DEADLINE_S) == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("no-such-program --x", "cannot run 'no-such-program': no such program"),
        ("a | b", "the command is not run by a shell, but has shell operators: write sh -c"),
    ],
)
def test_a_program_that_cannot_be_run_is_an_error_of_one_line_and_nothing_is_published(
    place: Path, program: str, line: str
) -> None:
    make(place / "a.db", 1)
    with writer(place, place / "a.db", f"file://{place}/replica", "--exec", program) as running:
        _, errors = running.process.communicate(timeout=DEADLINE_S)
        assert running.process.returncode == ExitCode.USAGE
        assert line in errors
        assert len(errors.splitlines()) == 1
    assert not (place / "replica").exists()


def test_replication_that_must_not_go_on_ends_the_program(place: Path) -> None:
    make(place / "a.db", 1)
    program = script(
        place,
        f"""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open({str(place / "ended")!r}, "w").close(), sys.exit(0)))
open({str(place / "ready")!r}, "w").close()
while True:
    time.sleep(1)
""",
    )
    with writer(place, place / "a.db", f"file://{place}/replica", "--exec", program) as running:
        running.wait_for((place / "ready").exists)
        other = [make(place / "other.db", 1, 2, 3), f"file://{place}/replica", "--no-lease", "--take-over", "--once"]
        subprocess.run([litereplica_binary(), "replicate", *map(str, other)], check=True, capture_output=True)
        execute(place / "a.db", "INSERT INTO t VALUES (2)")
        _, errors = running.process.communicate(timeout=DEADLINE_S)
    assert running.process.returncode == ExitCode.CONFLICT
    assert errors.startswith("litereplica: error: ")
    assert (place / "ended").exists()


# --- restoring what is missing


def test_a_missing_database_is_restored_and_goes_on(place: Path) -> None:
    make(place / "a.db", 1, 2)
    file = configuration(place, [entry(place, "a.db", **{"restore-if-db-not-exists": True})])
    command = [litereplica_binary(), "replicate", "-c", str(file), "--once"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(f"rm -r {place}/a.db {place}/.a.db-litereplica", shell=True, check=True)
    (place / "a.db-wal").write_bytes(b"of a database that was deleted")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE
    assert "a.db-wal of an earlier database does: move it away, or delete it" in done.stderr
    subprocess.run(f"rm -rf {place}/a.db-* {place}/.a.db-litereplica", shell=True, check=True)
    with writer(place, "-c", file) as running:
        running.wait_for_txid("a.db", 1)
        execute(place / "a.db", "INSERT INTO t VALUES (3)")
        running.wait_for_txid("a.db", 2)
        assert "restored TXID 0000000000000001" in running.log
        assert running.end() == ExitCode.OK
    assert restored(place, "a.db") == [1, 2, 3]
    assert sorted(path.name for path in (place / "replica/a.db/ltx/0").iterdir()) == [
        "0000000000000001-0000000000000001.ltx",
        "0000000000000002-0000000000000002.ltx",
    ]


def test_a_database_that_exists_is_not_restored(place: Path) -> None:
    make(place / "a.db", 1)
    arguments = [place / "a.db", f"file://{place}/replica/a.db", "--restore-if-db-not-exists", "--once"]
    command = [litereplica_binary(), "replicate", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)
    execute(place / "a.db", "INSERT INTO t VALUES (2)")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "exists: not restoring it" in done.stderr
    assert restored(place, "a.db") == [1, 2]


def test_a_backup_by_litestream_03_is_restored_and_goes_on_as_ltx(place: Path) -> None:
    """The application would otherwise begin with an empty database, which is what this option is to prevent."""
    with tarfile.open(GOLDEN) as archive:
        unpack(archive, place)
    command = [litereplica_binary(), "replicate", str(place / "a.db"), f"file://{place}/replica"]
    done = subprocess.run(
        [*command, "--restore-if-db-not-exists", "--once"], check=True, capture_output=True, text=True
    )
    assert "restored generation 2717047099308279" in done.stderr
    execute(place / "a.db", "CREATE TABLE more (x)")
    subprocess.run([*command, "--once"], check=True, capture_output=True)
    assert restored(place, "a.db", replica=place / "replica")[-1] == 23
    subprocess.run([litestream_binary(), "restore", "-o", str(place / "theirs.db"), command[-1]], check=True)
    connection = sqlite3.connect(place / "theirs.db")
    assert connection.execute("SELECT * FROM more").fetchall() == []
    connection.close()


def test_with_an_empty_replica_the_program_makes_the_database(place: Path) -> None:
    program = script(
        place,
        f"""
import sqlite3
connection = sqlite3.connect({str(place / "new/a.db")!r}, isolation_level=None)
connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x); INSERT INTO t VALUES (1);")
""",
    )
    url, options = f"file://{place}/replica/a.db", ("--restore-if-db-not-exists", "--exec", program)
    with writer(place, place / "new/a.db", url, *options) as running:
        assert running.process.wait(DEADLINE_S) == ExitCode.OK
        assert "is empty: not restoring" in running.log
    assert restored(place, "a.db") == [1]


def test_databases_of_a_directory_are_restored(place: Path) -> None:
    (place / "data/sub").mkdir(parents=True)
    make(place / "data/a.db", 1)
    make(place / "data/sub/b.db", 2)
    make(place / "data/skipped.sqlite", 3)
    dbs = [
        {"dir": str(place / "data"), "pattern": "*.db", "recursive": True, "replica": {"path": str(place / "replica")}}
    ]
    file = configuration(place, dbs)
    command = [litereplica_binary(), "replicate", "-c", str(file), "--once"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["rm", "-r", str(place / "data")], check=True)
    subprocess.run([*command, "--restore-if-db-not-exists"], check=True, capture_output=True)
    for path, row in ((place / "data/a.db", 1), (place / "data/sub/b.db", 2)):
        connection = sqlite3.connect(path)
        assert connection.execute("SELECT x FROM t").fetchall() == [(row,)]
        connection.close()
    assert not (place / "data/skipped.sqlite").exists()


def test_a_standby_restores_when_its_turn_has_come_and_then_starts_the_program(place: Path) -> None:
    primary, standby = place / "p", place / "q"
    primary.mkdir()
    standby.mkdir()
    url = f"file://{place}/replica"
    make(primary / "a.db", 1)
    program = script(
        place,
        f"""
import sqlite3, time
connection = sqlite3.connect({str(standby / "a.db")!r}, isolation_level=None)
connection.execute("INSERT INTO t VALUES (3)")
""",
    )
    with writer(primary, primary / "a.db", url) as holder:
        holder.wait_for(lambda: "published L0" in holder.log)
        dbs = [{"path": str(standby / "a.db"), "replica": {"url": url}, "restore-if-db-not-exists": True}]
        waiting = configuration(standby, dbs, lease="wait", exec=program)
        with writer(standby, "-c", waiting) as successor:
            successor.wait_for(lambda: "standing by" in successor.log)
            assert successor.databases()["a.db"]["state"] == "starting"
            execute(primary / "a.db", "INSERT INTO t VALUES (2)")
            holder.wait_for((place / "replica/ltx/0/0000000000000002-0000000000000002.ltx").exists)
            assert not (standby / "a.db").exists()
            assert holder.end() == ExitCode.OK
            assert successor.process.wait(DEADLINE_S) == ExitCode.OK
    assert restored(place, "a.db", replica=place / "replica") == [1, 2, 3]


def test_a_standby_without_a_database_does_not_start_the_program(place: Path) -> None:
    file = configuration(place, [entry(place, "a.db")], lease="wait", exec=f"touch {place}/started")
    with writer(place, "-c", file) as running:
        _, errors = running.process.communicate(timeout=DEADLINE_S)
    assert running.process.returncode == ExitCode.USAGE
    assert "a standby cannot create it: add --restore-if-db-not-exists" in errors
    assert not (place / "started").exists()


def test_former_keys_are_named_and_a_heartbeat_is_sent(place: Path) -> None:
    make(place / "a.db", 1)
    requested = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.set()
            self.send_response(204)
            self.end_headers()

    replica = {"path": str(place / "replica/a.db"), "retention": "72h", "retention-check-interval": "1h"}
    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as port:
        url = f"http://127.0.0.1:{port}/ping/token"
        file = configuration(place, [{"path": str(place / "a.db"), "replica": replica}], **{"heartbeat-url": url})
        with writer(place, "-config", file) as running:
            running.wait_for(requested.is_set)
            assert running.end() == ExitCode.OK
            warnings = [line for line in running.log.splitlines() if " WARNING " in line]
    assert len(warnings) == 2
    assert all("is of Litestream 0.3: write instead" in line for line in warnings)


# --- credentials


def test_credentials_of_the_file_are_used_for_its_replicas_and_shown_nowhere(
    place: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = s3_bucket.server
    environment = {name: value for name, value in server.environment().items() if not name.startswith("AWS_")}
    environment |= {"KEY": server.access_key, "SECRET": server.secret_key, "HOME": str(place)}
    make(place / "a.db", 1)
    make(place / "b.db", 2)
    s3 = {"type": "s3", "bucket": s3_bucket.name, "endpoint": server.endpoint, "region": "us-east-1"}
    right = {"access-key-id": "$KEY", "secret-access-key": "${SECRET}"}
    wrong = {"access-key-id": "nobody", "secret-access-key": "wrong-secret-of-nobody"}
    dbs = [
        {"path": str(place / "a.db"), "replica": {**s3, "path": "a"}},
        {"path": str(place / "b.db"), "replica": {**s3, "path": "b", **wrong}},
    ]
    with writer(place, "-c", configuration(place, dbs, **right), environment=environment) as running:
        running.wait_for_txid("a.db", 1)
        running.wait_for(lambda: running.databases()["b.db"]["error"])
        told = json.dumps(running.databases())
        assert running.end() == ExitCode.UNPUBLISHED
        said = running.log + told
    for secret in (server.secret_key, "wrong-secret-of-nobody"):
        assert secret not in said


def test_the_program_is_started_although_the_store_does_not_answer(place: Path) -> None:
    make(place / "a.db", 1)
    program = script(place, f"open({str(place / 'started')!r}, 'w').close(); import signal; signal.pause()")
    patched = (
        "import sys; from litereplica.cli import main, replication; replication.PROGRAM_WAIT_S = 0.2; "
        "sys.exit(main.run(sys.argv[1:]))"
    )
    arguments = [place / "a.db", "s3://bucket/a?endpoint=127.0.0.1:1", "--exec", program]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", patched, "replicate", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not (place / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == ExitCode.UNPUBLISHED
    assert "starting the program anyway" in log
