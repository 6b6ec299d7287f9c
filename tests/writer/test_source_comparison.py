"""`litereplica verify DB`: a database and the newest state of its replica, page by page, while both are in use."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.ltxstore.store import open_ltx_store
from litereplica.writer import source_comparison
from litereplica.writer.source_comparison import compare
from tests.cli.program import program
from tests.helpers.app import Application
from tests.writer.programs import Process, processes
from tests.writer.running import until_published

pytestmark = pytest.mark.slow


def verify(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return program("verify", *arguments)


@pytest.mark.parametrize("page_size", [512, 4096])
async def test_database_equals_its_replica_while_the_application_commits(tmp_path: Path, page_size: int) -> None:
    """Growing, shrinking, and with checkpoints of its own; each comparison has a state of its own."""
    store = open_ltx_store(f"file://{tmp_path}/replica")
    with Application(tmp_path / "app.db", page_size=page_size) as app, processes() as started:
        await app("CREATE TABLE t (x)")
        started.append(writer := Process(app.database, store.url))
        await until_published(store, app)
        txids, ended = [], trio.Event()
        async with trio.open_nursery() as nursery:

            async def commit() -> None:
                i = 0
                while not ended.is_set():
                    i += 1
                    await app("INSERT INTO t VALUES (randomblob(3000))")
                    if i % 50 == 0:
                        await app("DELETE FROM t WHERE rowid % 2 = 0")
                    if i % 120 == 0:
                        await app("VACUUM")
                    if i % 30 == 0:
                        await app("PRAGMA wal_checkpoint(PASSIVE)")
                    await trio.sleep(0.002)

            nursery.start_soon(commit)
            for _ in range(6):
                found = await trio.to_thread.run_sync(verify, app.database, store.url, "--json")
                assert found.returncode == 0, found.stdout + found.stderr
                record = json.loads(found.stdout)
                assert record["equal"]
                txids.append(record["txid"])
            ended.set()
        assert txids == sorted(set(txids))
        assert await writer.stop() == ExitCode.OK, writer.log.read_text()
    found = verify(app.database)  # the replica is known from its writer's notes
    assert (found.returncode, found.stdout) == (0, "")
    assert f"{app.database} equals TXID" in found.stderr


async def test_page_that_differs_is_named(tmp_path: Path) -> None:
    """The file was changed and its times were set back: only a comparison shows it."""
    database, url = tmp_path / "app.db", f"file://{tmp_path}/replica"
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert program("replicate", database, url, "--once").returncode == 0
    before = database.stat()
    with database.open("r+b") as file:
        file.seek(4096 * 6 + 1000)
        file.write(b"changed")
    os.utime(database, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = verify(database, url)
    assert found.returncode == ExitCode.DAMAGED
    assert "1 of 26 pages" in found.stderr
    assert f"differ from TXID 0000000000000001 of {url}: 7: start its writer" in found.stderr
    record = json.loads(verify(database, url, "--json").stdout)
    assert (record["equal"], record["differing"], record["first_pages"], record["behind"]) == (False, 1, [7], False)
    assert program("replicate", database, url, "--once", "--verify-source").returncode == 0
    assert verify(database, url).returncode == 0


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
async def test_commits_that_no_writer_publishes_are_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal_mode: str
) -> None:
    monkeypatch.setattr(source_comparison, "CATCH_UP_S", 0.2)
    store = open_ltx_store(f"file://{tmp_path}/replica")
    database = tmp_path / "app.db"
    with Application(database) as app:
        await app("CREATE TABLE t (x)")
        assert program("replicate", database, store.url, "--once").returncode == 0
        await app(f"PRAGMA journal_mode = {journal_mode}")
        await app("INSERT INTO t VALUES (zeroblob(9000))")
        found = await compare(store, database)
        assert found.txid == 1
        assert found.pages == found.replica_pages + 2
        assert {2, 3, 4} <= set(found.differing)
        assert found.is_behind == (journal_mode == "wal")
        assert await app("PRAGMA journal_mode") == [[journal_mode]], "a comparison changes nothing"


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE t (x)")
    url = f"file://{tmp_path}/replica"
    for arguments, code, message in (
        ((database, url), ExitCode.NOT_FOUND, "there is no replica at"),
        ((database,), ExitCode.USAGE, "no replica of"),
        ((database, url, "--quick"), ExitCode.USAGE, "--quick is for a replica's files"),
        ((url, url), ExitCode.USAGE, "only one URL"),
        ((tmp_path / "missing.db", url), ExitCode.USAGE, "does not exist"),
    ):
        found = verify(*arguments)
        assert (found.returncode, message in found.stderr) == (code, True), found.stderr
