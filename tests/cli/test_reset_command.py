"""`litereplica reset`: the local state goes, the database and the replica stay, and publishing continues."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from litereplica.cli import main
from litereplica.errors import ExitCode
from litereplica.writer.database.state_directory import StateDirectory, state_path
from tests.cli.program import program


def make(path: Path, row: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
    connection.execute("INSERT INTO t VALUES (?)", (row,))
    connection.commit()
    connection.close()


@pytest.mark.slow
def test_state_is_removed_and_the_writer_continues_its_own_replica(tmp_path: Path) -> None:
    database, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    make(database, 1)
    assert program("replicate", "-once", database, url).returncode == ExitCode.OK
    make(database, 2)
    before = database.read_bytes()
    state = state_path(database)
    files = {path.name for path in state.iterdir()}
    shown = program("reset", "-dry-run", "-json", f"sqlite://{database}")
    assert {path.name for path in state.iterdir()} == files
    assert json.loads(shown.stdout)["dry_run"]
    done = program("reset", "-json", database)
    removed = {Path(path).name for path in json.loads(done.stdout)["removed"]}
    assert (
        removed == {Path(path).name for path in json.loads(shown.stdout)["removed"]} == files - set(state_names(state))
    )
    assert "checkpoint.json" in removed
    assert database.read_bytes() == before
    assert program("replicate", "-once", database, url).returncode == ExitCode.OK, "it knows its own files"
    assert program("verify", database, url).returncode == ExitCode.OK


def state_names(state: Path) -> list[str]:
    return [path.name for path in state.iterdir()]


def test_database_without_state_that_is_replicated_or_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "app.db"
    assert main.run(["reset", str(database)]) == ExitCode.USAGE
    assert "there is no database" in capsys.readouterr().err
    make(database, 1)
    assert main.run(["reset", str(database)]) == ExitCode.OK
    assert "has no local state" in capsys.readouterr().err
    assert not state_path(database).exists()
    with StateDirectory(database):
        assert main.run(["reset", str(database)]) == ExitCode.CONFLICT
    assert "another process replicates" in capsys.readouterr().err
