"""`litereplica replicate` as a user runs it."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from litereplica.testing.mounts import litereplica_binary
from tests.helpers.json_language import require_printed

pytestmark = pytest.mark.slow

DEADLINE_S = 20.0


def database(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (1);")
    connection.close()
    return path


def replicate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [litereplica_binary(), "replicate", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    require_printed(command, done.stdout)
    return done


def test_once_publishes_what_there_is_and_says_so(tmp_path: Path) -> None:
    app = database(tmp_path / "app.db")
    url = f"file://{tmp_path}/replica"
    done = replicate(app, url, "--once")
    assert done.returncode == ExitCode.OK
    assert done.stdout == f"{app} is published at TXID 0000000000000001: 2 pages in 1 file(s)\n"
    assert "switched" in done.stderr
    done = replicate(app, url, "--once", "--json")
    assert json.loads(done.stdout) == {
        "db_path": str(app),
        "url": url,
        "txid": "0000000000000001",
        "published_files": 0,
        "published_pages": 0,
        "published_bytes": 0,
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_publishes_what_is_left_and_ends_it_with_success(tmp_path: Path, number: signal.Signals) -> None:
    app = database(tmp_path / "app.db")
    first = tmp_path / "replica/ltx/0/0000000000000001-0000000000000001.ltx"
    log = tmp_path / "log"
    command: list[str | Path] = [
        litereplica_binary(),
        "replicate",
        app,
        f"file://{tmp_path}/replica",
        "--sync-interval",
        "1h",
    ]
    process = subprocess.Popen([*command, "--log-file", log])
    try:
        wait_for(first)
        for number_of_row in range(3):
            subprocess.run(["sqlite3", app, f"INSERT INTO t VALUES ({number_of_row})"], check=True)
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == ExitCode.OK
    finally:
        process.kill()
        process.wait()
    restored = tmp_path / "restored.db"
    subprocess.run(
        [litereplica_binary(), "restore", f"file://{tmp_path}/replica", "-o", restored], check=True, capture_output=True
    )
    connection = sqlite3.connect(restored)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (4,)
    connection.close()
    assert "first snapshot" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["text", "URL", "--once"], ExitCode.USAGE, "is not a SQLite database"),
        (["missing.db", "URL"], ExitCode.USAGE, "does not exist: name an existing SQLite database"),
        ([".", "URL"], ExitCode.USAGE, "is a directory"),
        (["app.db", "URL", "--json"], ExitCode.USAGE, "add --once"),
        (["app.db", "URL", "--sync-interval", "0s"], ExitCode.USAGE, "--sync-interval"),
        (["app.db", "URL", "--no-lease", "--wait-lease"], ExitCode.USAGE, "exclude each other: choose one of them"),
        (["app.db", "nowhere"], ExitCode.USAGE, "is not a URL"),
        (["app.db"], ExitCode.USAGE, "app.db has no replica: write replicate app.db REPLICA_URL"),
        (["app.db", "URL", "-c", "x.yml"], ExitCode.USAGE, "a database and --config exclude each other"),
        (["app.db", "URL", "--once", "--exec", "true"], ExitCode.USAGE, "--once and exec exclude each other"),
        (["app.db", "URL", "--exec", "'true"], ExitCode.USAGE, "--exec: the command has a quote that is not closed"),
        (["-c", "missing.yml"], ExitCode.USAGE, "there is no configuration file missing.yml: name an existing file"),
    ],
)
def test_what_cannot_be_replicated_is_one_line_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: ExitCode, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    database(tmp_path / "app.db")
    (tmp_path / "text").write_text("hello\n")
    done = replicate(*[f"file://{tmp_path}/replica" if item == "URL" else item for item in arguments])
    assert done.returncode == code
    (error,) = done.stderr.splitlines()
    assert error.startswith("litereplica: error: ")
    assert line in error
    assert not (tmp_path / "replica").exists()


def test_database_locked_in_rollback_mode_is_an_error_of_one_line(tmp_path: Path) -> None:
    app = database(tmp_path / "app.db")
    holder = sqlite3.connect(app, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    done = replicate(app, f"file://{tmp_path}/replica", "--once")
    holder.close()
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "is locked by another program: try again" in done.stderr.splitlines()[-1]


def test_options_say_more_than_the_file_and_the_log_is_as_it_asks(tmp_path: Path) -> None:
    app = database(tmp_path / "app.db")
    file = tmp_path / "litereplica.yml"
    file.write_text(
        f"logging: {{type: json, level: warn}}\naccess-key-id: $UNSET_KEY\nvalidation: x\n"
        f"dbs: [{{path: {app}, lease: wait, replica: {{path: {tmp_path}/replica}}}}]\n"
    )
    done = replicate("-c", file, "--no-lease", "--once", "--json")
    assert [each["db_path"] for each in json.loads(done.stdout)] == [str(app)]
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["WARNING", "WARNING"]
    assert "validation (line 3)" in lines[0]["msg"]
    assert lines[1]["msg"] == f"{file}: these variables are not set, and count as empty: UNSET_KEY"
    assert not (tmp_path / "replica/lock.json").exists()


def test_credentials_in_a_file_that_others_may_read_are_warned_of(tmp_path: Path) -> None:
    app = database(tmp_path / "app.db")
    file = tmp_path / "litereplica.yml"
    url = "s3://bucket/x?endpoint=ftp.invalid"
    file.write_text(
        f"access-key-id: a\nsecret-access-key: hidden\ndbs: [{{path: {app}.missing, replica: {{url: '{url}'}}}}]\n"
    )
    for mode, warned in ((0o644, True), (0o600, False)):
        file.chmod(mode)
        done = replicate("-c", file, "--once")
        assert done.returncode != ExitCode.OK
        assert ("contains credentials and other users can read it: run 'chmod 600" in done.stderr) is warned
        assert "hidden" not in done.stderr


def test_help_has_an_example() -> None:
    done = replicate("--help")
    assert "litereplica replicate app.db file:///srv/replica" in done.stdout


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.01)
