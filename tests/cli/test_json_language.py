"""What commands print with --json follows docs/JSON.md; Litestream's own answers are Litestream's."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.cli import main
from litereplica.errors import ExitCode
from tests.helpers.json_language import require_one_language


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A database and its replica, with two points."""
    directory = tmp_path_factory.mktemp("json")
    database, url = directory / "app.db", f"file://{directory}/replica"
    for statement in ("CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"):
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode = wal")
            connection.executescript(f"{statement};")
        assert main.run(["replicate", str(database), url, "--once"]) == ExitCode.OK
    return database, url


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["replicate", "DB", "URL", "--once", "--json"],
        ["status", "URL", "--json"],
        ["history", "URL", "--json"],
        ["diff", "URL", "--from", "0000000000000001", "--json"],
        ["verify", "URL", "--json"],
        ["verify", "DB", "URL", "--json"],
        ["status", "--all", "--json"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_json_is_one_language(
    replica: tuple[Path, str], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"DB": str(replica[0]), "URL": replica[1]}
    capsys.readouterr()
    assert main.run([places.get(word, word) for word in arguments]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    assert document
    require_one_language(document)
