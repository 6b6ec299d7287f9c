"""What SQLite finds wrong with a database is damage, or it is not: one reading of it for `diff` and for the writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from litereplica.foreign_database import damage_of_structure
from litereplica.writer.database.connections import structure_problem

PAGE_SIZE = 512


def make(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as client:
        client.create_function("app", 1, lambda value: value, deterministic=True)
        client.create_collation("app", lambda one, other: (one > other) - (one < other))
        client.execute(f"PRAGMA page_size={PAGE_SIZE}")
        client.execute("CREATE TABLE t(a, b)")
        client.executemany("INSERT INTO t VALUES (?, NULL)", [("x" * 50,)] * 200)
        client.execute("PRAGMA writable_schema=1")
        for statement in statements:
            client.execute(statement)
    return path


def overwritten(path: Path, page: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_SIZE)
        file.write(data)
    return path


CHECK = "CREATE TABLE t(a, b, CHECK (a = 1))"
SCHEMA = "UPDATE sqlite_schema SET sql = '{}' WHERE name = 't'"
CASES: dict[str, tuple[Callable[[Path], Path], bool]] = {
    "sound": (make, False),
    "constraint NOT NULL is violated": (lambda path: make(path, SCHEMA.format("CREATE TABLE t(a, b NOT NULL)")), False),
    "constraint CHECK is violated": (
        lambda path: make(path, SCHEMA.format(CHECK)),
        False,
    ),
    "needs a function of the application": (lambda path: make(path, "CREATE INDEX i ON t(app(a))"), False),
    "needs a collation of the application": (lambda path: make(path, "CREATE INDEX i ON t(a COLLATE app)"), False),
    "page of a table": (lambda path: overwritten(make(path), 4, bytes(PAGE_SIZE)), True),
    "page of a table, and a constraint": (
        lambda path: overwritten(make(path, SCHEMA.format("CREATE TABLE t(a, b NOT NULL)")), 4, bytes(PAGE_SIZE)),
        True,
    ),
    "no database": (lambda path: overwritten(make(path), 1, b"x" * 100), True),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_what_is_wrong_with_pages_and_not_with_content(tmp_path: Path, case: str) -> None:
    build, is_damaged = CASES[case]
    with closing(apsw.Connection(str(build(tmp_path / "x.db")))) as connection:
        found = damage_of_structure(connection)
        assert (found is not None) == is_damaged, found
        assert structure_problem(connection, lambda: False) == found
        assert found is None or "***" not in found
        if is_damaged and case != "no database":
            assert "Tree" in str(found)


def test_check_that_is_ended_finds_nothing_for_the_writer_and_is_an_error_for_others(tmp_path: Path) -> None:
    with closing(apsw.Connection(str(make(tmp_path / "x.db")))) as connection:
        connection.set_progress_handler(lambda: True, 1)
        with pytest.raises(apsw.InterruptError):
            damage_of_structure(connection)
        connection.set_progress_handler(None)
        steps = iter([True])
        assert structure_problem(connection, lambda: next(steps, True)) is None
