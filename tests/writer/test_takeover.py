"""A writer that starts beside a replica to which another writer may have published: real processes on one store."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from litereplica.restore.provenance import read_provenance
from tests.cli.program import program

pytestmark = pytest.mark.slow


class Host:
    """A machine with a copy of the database, and the replica that all hosts share."""

    def __init__(self, tmp_path: Path, name: str) -> None:
        self.url = f"file://{tmp_path}/replica"
        self.database = tmp_path / name / "app.db"
        self.database.parent.mkdir()

    def run(self, *statements: str) -> list[tuple[object, ...]]:
        """The application: one connection, which checkpoints when it closes."""
        with closing(sqlite3.connect(self.database, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            for statement in statements[:-1]:
                connection.execute(statement)
            return connection.execute(statements[-1]).fetchall()

    def publish(self, *options: str) -> tuple[int, str]:
        """Exit code, and lines above INFO, of `replicate --once`."""
        done = program("replicate", self.database, self.url, "--once", *options)
        return done.returncode, "".join(each for each in done.stderr.splitlines(True) if " INFO " not in each)

    def restore(self, *options: str) -> None:
        done = program("restore", self.url, "-o", self.database, *options)
        assert done.returncode == 0, done.stderr

    def newest(self, column: str) -> object:
        """What a restore of the newest state has."""
        path = self.database.with_name("check.db")
        assert program("restore", self.url, "-o", path, "--force").returncode == 0
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(f"SELECT {column} FROM t").fetchone()[0]


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[Host, Host]:
    """`a` has published two rows, `b` has restored them."""
    a, b = Host(tmp_path, "a"), Host(tmp_path, "b")
    a.run("CREATE TABLE t (x)", "INSERT INTO t VALUES ('one'), ('two')")
    assert a.publish()[0] == 0
    b.restore()
    return a, b


def test_an_old_primary_that_comes_back_is_refused(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    b.run("INSERT INTO t VALUES ('of b')")
    assert b.publish()[0] == 0
    b.run("DELETE FROM t WHERE x = 'one'")
    assert b.publish()[0] == 0
    a.run("INSERT INTO t VALUES ('of a, never seen')")
    for _ in range(2):
        code, error = a.publish()
        assert code == ExitCode.CONFLICT
        assert f"{a.url}, whose newest TXID 0000000000000003 was published by another writer" in error
        assert f"litereplica restore {a.url} -o {a.database} --force" in error
        assert "commits that only this database has are lost" in error
        assert "--take-over" in error
        assert error.count("\n") == 1
    assert a.newest("group_concat(x)") == "two,of b"


def test_taking_over_publishes_this_state_and_keeps_the_other_in_the_history(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    b.run("INSERT INTO t VALUES ('of b')")
    assert b.publish()[0] == 0
    a.run("INSERT INTO t VALUES ('of a')")
    code, error = a.publish("--take-over")
    assert (code, error.count("publishing it as the newest state")) == (0, 1)
    assert a.newest("group_concat(x)") == "one,two,of a"
    b.restore("--force", "--txid", f"{2:016x}")
    assert b.run("SELECT group_concat(x) FROM t") == [("one,two,of b",)]
    a.run("UPDATE t SET x = 'again'")
    assert a.publish()[0] == 0, "it is the writer again"
    assert b.publish()[0] == ExitCode.CONFLICT, "and the other is not"


def test_a_restored_database_goes_on_with_local_changes_as_long_as_nobody_else_publishes(
    hosts: tuple[Host, Host],
) -> None:
    a, b = hosts
    proof = read_provenance(b.database)
    assert proof is not None
    assert (proof.url, proof.txid, proof.lineage != 0) == (b.url, 1, True)
    b.run("ALTER TABLE t ADD COLUMN migrated", "VACUUM", "INSERT INTO t VALUES ('of b', 1)")
    a.run("INSERT INTO t VALUES ('of a')")
    assert a.publish()[0] == 0
    assert b.publish()[0] == ExitCode.CONFLICT
    b.restore("--force")
    b.run("ALTER TABLE t ADD COLUMN migrated", "VACUUM", "INSERT INTO t VALUES ('of b', 1)")
    assert b.publish() == (0, "")
    assert b.newest("group_concat(x)") == "one,two,of a,of b"


def test_a_copy_without_proof_goes_on_only_if_its_pages_are_those_of_the_newest_state(
    hosts: tuple[Host, Host],
) -> None:
    _, b = hosts
    copy = b.database.with_name("copy.db")
    shutil.copyfile(b.database, copy)
    copy.replace(b.database)
    assert read_provenance(b.database) is None
    assert b.publish() == (0, "")
    copy = b.database.with_name("copy.db")
    shutil.rmtree(b.database.with_name(".app.db-litereplica"))
    b.run("INSERT INTO t VALUES ('of b')")
    assert b.publish()[0] == ExitCode.CONFLICT


def test_a_writer_that_goes_on_by_itself_needs_no_proof(hosts: tuple[Host, Host]) -> None:
    """Downtime with changes and checkpoints, an older copy that somebody restored, and a new file in its place."""
    a, _ = hosts
    a.run("INSERT INTO t VALUES ('while down')", "VACUUM")
    assert a.publish() == (0, "")
    shutil.copyfile(a.database, a.database.with_name("older.db"))
    a.run("DELETE FROM t")
    assert a.publish() == (0, "")
    a.database.with_name("older.db").replace(a.database)
    code, error = a.publish()
    assert code == 0
    assert "was replaced while it was not replicated: its content follows TXID 0000000000000003" in error
    assert a.newest("count(*)") == 3


def test_one_database_of_a_directory_that_is_refused_leaves_the_others_alone(tmp_path: Path) -> None:
    hosts = [tmp_path / "a", tmp_path / "b"]
    for host in hosts:
        host.mkdir()
    for name in ("one.db", "two.db"):
        with closing(sqlite3.connect(hosts[0] / name)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE t (x)")
            connection.commit()
    config = tmp_path / "litereplica.yml"

    def publish(host: Path) -> tuple[int, str]:
        config.write_text(
            json.dumps({"dbs": [{"dir": str(host), "pattern": "*.db", "replica": {"path": f"{tmp_path}/r"}}]})
        )
        done = program("replicate", "--config", config, "--once")
        return done.returncode, done.stderr

    assert publish(hosts[0])[0] == 0
    assert program("restore", f"file://{tmp_path}/r/one.db", "-o", hosts[1] / "one.db").returncode == 0
    with closing(sqlite3.connect(hosts[1] / "one.db")) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()
    assert publish(hosts[1])[0] == 0
    for name in ("one.db", "two.db"):
        with closing(sqlite3.connect(hosts[0] / name)) as connection:
            connection.execute("INSERT INTO t VALUES ('of a')")
            connection.commit()
    code, error = publish(hosts[0])
    assert code == ExitCode.CONFLICT
    assert "one.db does not continue" in error
    for name, expected in (("one.db", [(1,)]), ("two.db", [("of a",)])):
        assert program("restore", f"file://{tmp_path}/r/{name}", "-o", tmp_path / name).returncode == 0
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            assert connection.execute("SELECT x FROM t").fetchall() == expected
