"""A database that is replaced, overwritten, moved or damaged, while it is replicated or while no writer runs."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.testing.mounts import litereplica_binary
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.writer.programs import Process, processes
from tests.writer.running import txids, until_published

pytestmark = pytest.mark.slow

SOON = (
    "import litereplica.writer.database.checkpoint as c, litereplica.writer.database.file_watch as f, sys; "
    "c.CHECKPOINT_INTERVAL_S = 0.1; f.EXPLAIN_WITHIN_S = 1.0; "
    "from litereplica.cli.main import run; sys.exit(run(sys.argv[1:]))"
)
"""The program with checkpoints at short intervals, and little patience with unexplained changes."""
ROWS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "
    "INSERT INTO t SELECT randomblob(300) FROM n"
)
DIFFER = "and not by its WAL: they are published"
WROTE = "something else than SQLite wrote to"


def make(path: Path, rows: int, *, page_size: int = 4096, mode: str = "wal") -> Path:
    """A database that no program has open."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE t (x)")
        connection.execute(ROWS.format(rows))
    return path


def overwrite(target: Path, source: Path) -> None:
    """As `cat source > target`: the same inode with another content."""
    subprocess.run(["sh", "-c", 'cat "$1" > "$2"', "sh", source, target], check=True)


def insert(path: Path, value: str = "inserted") -> None:
    """An application that begins, commits and ends."""
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("INSERT INTO t VALUES (?)", (value,))


def image(path: Path) -> bytes:
    """The bytes of a database that no other program changes."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.serialize()


async def until_same(store: LTXStore, path: Path) -> None:
    """Wait until the replica is what SQLite reads from the database."""
    with Application(path) as app:
        await until_published(store, app)


async def until_published_as(store: LTXStore, txid: int) -> None:
    """Wait until the replica has this TXID."""
    with trio.fail_after(20):
        while txid not in await txids(store):  # noqa: ASYNC110
            await trio.sleep(0.02)


async def until_settled(database: Path, store: LTXStore) -> None:
    """Wait until everything is published and in the database file, and noted."""
    mark = database.with_name(f".{database.name}-litereplica") / "checkpoint.json"
    with trio.fail_after(20):
        while not mark.exists() or json.loads(mark.read_bytes())["txid"] != max(await txids(store), default=0):  # noqa: ASYNC110
            await trio.sleep(0.02)  # another process writes it


@pytest.fixture
def store(tmp_path: Path) -> LTXStore:
    return open_ltx_store(f"file://{tmp_path}/replica")


@pytest.fixture
def started() -> Iterator[list[Process]]:
    with processes() as started:
        yield started


def start(started: list[Process], database: Path, store: LTXStore, *options: str) -> Process:
    started.append(writer := Process(database, store.url, *options, program=SOON))
    return writer


@pytest.mark.parametrize("other", ["larger", "smaller", "in rollback mode"])
@pytest.mark.parametrize("suspended", [False, True])
async def test_database_that_is_overwritten_in_place_while_it_is_replicated_is_published(
    tmp_path: Path, store: LTXStore, started: list[Process], other: str, suspended: bool
) -> None:
    database = make(tmp_path / "app.db", 300)
    rows = {"larger": 900, "smaller": 20, "in rollback mode": 500}
    new = make(tmp_path / "new.db", rows[other], mode="delete" if other == "in rollback mode" else "wal")
    writer = start(started, database, store)
    await writer.until_said("published")
    insert(database)  # the WAL has frames, and its index the size of this database
    await until_published_as(store, 2)
    await until_settled(database, store)
    if suspended:
        os.kill(writer.pid, signal.SIGSTOP)
    overwrite(database, new)
    if suspended:
        os.kill(writer.pid, signal.SIGCONT)
    await writer.until_said(f"{WROTE} {database}: ")
    insert(database)
    await until_same(store, database)
    await writer.until_said(DIFFER)
    assert await writer.stop() == ExitCode.OK, writer.log.read_text()
    assert await fold(store) == image(database)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (rows[other] + 1,)


async def test_backup_that_is_copied_over_the_database_by_the_book_is_published(
    tmp_path: Path, store: LTXStore, started: list[Process]
) -> None:
    """The WAL and its index are removed, as instructions for restoring a backup say."""
    database = make(tmp_path / "app.db", 300)
    writer = start(started, database, store, "--watch")
    insert(database)
    await until_settled(database, store)
    os.kill(writer.pid, signal.SIGSTOP)
    overwrite(database, make(tmp_path / "new.db", 900))
    for suffix in ("-wal", "-shm"):
        database.with_name(f"app.db{suffix}").unlink(missing_ok=True)
    os.kill(writer.pid, signal.SIGCONT)
    await until_same(store, database)
    assert await writer.stop() == ExitCode.OK, writer.log.read_text()
    assert await fold(store) == image(database)


@pytest.mark.parametrize("copy", ["another", "older", "one page"])
async def test_database_that_is_overwritten_after_a_kill_is_compared_at_the_start(
    tmp_path: Path, store: LTXStore, started: list[Process], copy: str
) -> None:
    """The WAL that the writer left behind goes on from the replica: it says nothing about the file."""
    database = make(tmp_path / "app.db", 300)
    older = tmp_path / "older.db"
    older.write_bytes(database.read_bytes())
    writer = start(started, database, store)
    insert(database)
    await until_settled(database, store)
    os.kill(writer.pid, signal.SIGSTOP)  # so that it notices nothing
    if copy == "one page":
        with database.open("r+b") as file:  # a page full of rows takes another row's content
            file.seek(4096 * 5 + 4000)
            file.write(bytes(50))
    else:
        overwrite(database, make(tmp_path / "new.db", 600) if copy == "another" else older)
    insert(database, "afterwards")
    os.kill(writer.pid, signal.SIGKILL)
    await writer.ended()
    again = start(started, database, store)
    await until_same(store, database)
    assert await again.stop() == ExitCode.OK, again.log.read_text()
    assert await fold(store) == image(database) == database.read_bytes()


async def test_overwrite_that_a_writer_published_frames_over_is_noticed_at_its_next_start(
    tmp_path: Path, store: LTXStore, started: list[Process]
) -> None:
    """As older versions left it: the newest file was made from this WAL, and the pages below are another database's."""
    database = make(tmp_path / "app.db", 300)
    with Application(database) as app:
        writer = start(started, database, store)
        await app("INSERT INTO t VALUES (1)")
        await until_settled(database, store)
        await app("INSERT INTO t VALUES (2)")
        await until_published(store, app)
        os.kill(writer.pid, signal.SIGKILL)
        await writer.ended()
        app.kill()  # the WAL stays
        with database.open("r+b") as file:
            file.seek(4096 * 5 + 4000)
            file.write(bytes(50))
    again = start(started, database, store)
    await again.until_said("comparing the pages, because the database file has changed")
    await again.until_said(DIFFER)
    await until_same(store, database)
    assert await again.stop() == ExitCode.OK, again.log.read_text()
    assert not again.has_said(WROTE), "the start has found it"


@pytest.mark.parametrize("verify", [False, True])
async def test_start_after_a_clean_stop_compares_only_if_it_is_asked_to(
    tmp_path: Path, store: LTXStore, started: list[Process], verify: bool
) -> None:
    database = make(tmp_path / "app.db", 300)
    with Application(database) as app:
        for options in ((), ("--verify-source",) if verify else ()):
            writer = start(started, database, store, *options)
            await writer.until_said("replicating")
            await until_settled(database, store)
            assert await writer.stop() == ExitCode.OK
        assert writer.has_said("resumed from") != verify
        await app("INSERT INTO t VALUES (1)")
        again = start(started, database, store)
        await until_published(store, app)
        assert await again.stop() == ExitCode.OK
        assert not again.has_said(DIFFER)


async def test_changes_that_sqlite_makes_to_the_file_are_not_taken_for_others(
    tmp_path: Path, store: LTXStore, started: list[Process]
) -> None:
    """Checkpoints of the application, a vacuum, a restore by the backup API, and a new mode, time and link."""
    database = make(tmp_path / "app.db", 300)
    other = make(tmp_path / "other.db", 500)
    writer = start(started, database, store)
    with Application(database, setup="PRAGMA wal_autocheckpoint = 5;") as app:
        await app("DELETE FROM t WHERE rowid % 3 = 0")
        await app("VACUUM")
        await until_published(store, app)
        for i in range(200):
            await app("INSERT INTO t VALUES (?)", i)
            if i % 20 == 0:
                await app("PRAGMA wal_checkpoint(PASSIVE)")
        await until_published(store, app)
        database.chmod(0o640)
        os.utime(database)
        (tmp_path / "link.db").hardlink_to(database)
        await trio.sleep(1.5)  # longer than it waits for an explanation of the new time
        await app("INSERT INTO t VALUES (1)")
        await until_published(store, app)
    with closing(sqlite3.connect(other)) as source, closing(sqlite3.connect(database, timeout=10)) as target:
        source.backup(target)
    await until_same(store, database)
    assert await writer.stop() == ExitCode.OK, writer.log.read_text()
    assert not writer.has_said("WARNING"), writer.log.read_text()


@pytest.mark.parametrize("damage", ["truncated", "empty", "not a database", "rubbish"])
async def test_source_that_sqlite_calls_malformed_is_not_published_until_it_is_mended(
    tmp_path: Path, store: LTXStore, started: list[Process], damage: str
) -> None:
    database = make(tmp_path / "app.db", 300)
    writer = start(started, database, store)
    insert(database)
    await until_settled(database, store)
    good, before = image(database), await txids(store)
    content = bytearray(database.read_bytes())
    broken = tmp_path / "broken.db"
    if damage == "rubbish":
        content[4096:] = bytes(range(256)) * ((len(content) - 4096) // 256)
    elif damage == "not a database":
        content[:100] = b"x" * 100
    else:
        del content[len(content) // 2 if damage == "truncated" else 0 :]
    broken.write_bytes(content)
    overwrite(database, broken)
    expected = {"truncated": "malformed", "rubbish": "malformed", "empty": "is empty"}
    await writer.until_said(expected.get(damage, "is not a SQLite database"))
    await writer.until_said("retrying")
    assert writer.runs
    assert await txids(store) == before
    new = make(tmp_path / "new.db", 100)
    overwrite(database, new)
    await until_same(store, new)
    assert await writer.stop() == ExitCode.OK, writer.log.read_text()
    assert good != image(database)


async def test_malformed_source_is_refused_at_the_start_and_its_replica_stays_as_it_is(
    tmp_path: Path, store: LTXStore, started: list[Process]
) -> None:
    database = make(tmp_path / "app.db", 300)
    writer = start(started, database, store)
    await until_settled(database, store)
    assert await writer.stop() == ExitCode.OK
    content = bytearray(database.read_bytes())
    content[4096 * 3 :] = bytes(len(content) - 4096 * 3)
    overwrite(database, _written(tmp_path / "broken.db", bytes(content)))
    again = start(started, database, store)
    assert await again.ended() == ExitCode.DAMAGED
    assert "is malformed: Tree" in again.error
    assert "its replica stays as it is" in again.error
    assert await txids(store) == [1]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def released(tmp_path: Path, name: str, rows: int) -> Path:
    """A database in a directory of its own."""
    (tmp_path / name).mkdir()
    return make(tmp_path / name / "app.db", rows)


@pytest.mark.parametrize("link", ["current", "current/app.db"])
async def test_link_that_is_repointed_is_a_replaced_database(
    tmp_path: Path, store: LTXStore, started: list[Process], link: str
) -> None:
    """Any component of the path may be a link: the directory of a release, or the file itself."""
    first, second = released(tmp_path, "release-1", 100), released(tmp_path, "release-2", 300)
    path = tmp_path / "current"
    targets = (first.parent, second.parent) if link == "current" else (first, second)
    if link != "current":
        path.mkdir()
        path /= "app.db"
    path.symlink_to(targets[0])
    database = tmp_path / "current" / "app.db"
    writer = start(started, database, store)
    await until_same(store, first)
    (tmp_path / "new").symlink_to(targets[1])
    (tmp_path / "new").replace(path)
    await writer.until_said(f"leads to {second} now")
    insert(second)
    await until_same(store, second)
    assert writer.has_said("was replaced while it was not replicated")
    (tmp_path / "new").symlink_to(targets[0])
    (tmp_path / "new").replace(path)
    insert(first, "in the old release again")
    await until_same(store, first)
    assert await writer.stop() == ExitCode.OK, writer.log.read_text()


@pytest.mark.parametrize("change", ["replaced", "replaced beside its WAL", "deleted", "hard link", "vacuumed"])
async def test_database_that_is_replaced_is_followed_if_that_is_wanted(
    tmp_path: Path, store: LTXStore, started: list[Process], change: str
) -> None:
    database = make(tmp_path / "app.db", 300)
    new = make(tmp_path / "new.db", 100)
    writer = start(started, database, store, "--watch")
    insert(database)
    await until_settled(database, store)
    if change == "vacuumed":
        new.unlink()
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("VACUUM INTO ?", (str(new),))
    if change != "replaced beside its WAL":
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"app.db{suffix}").unlink(missing_ok=True)
    if change == "deleted":
        database.unlink()
        await writer.until_said("does not exist")
    if change == "hard link":
        (tmp_path / "link.db").hardlink_to(new)
        (tmp_path / "link.db").replace(database)
    else:
        new.replace(database)
    await writer.until_said("was deleted or replaced")
    await until_same(store, database)
    insert(database)
    await until_same(store, database)
    assert await writer.stop() == ExitCode.OK, writer.log.read_text()


async def test_database_of_a_configuration_is_followed_when_it_is_replaced(
    tmp_path: Path, store: LTXStore, started: list[Process]
) -> None:
    database = make(tmp_path / "app.db", 300)
    file = tmp_path / "litereplica.yml"
    file.write_text(f"dbs: [{{path: {database}, replica: {{url: '{store.url}'}}}}]\nsocket: {{enabled: false}}\n")
    with (tmp_path / "log").open("wb") as log:
        command = [litereplica_binary(), "replicate", "--config", str(file)]
        process = subprocess.Popen(command, stderr=log)  # noqa: ASYNC220 - in no time
    try:
        await until_same(store, database)
        make(tmp_path / "new.db", 100).replace(database)
        await until_same(store, database)
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(20) == ExitCode.OK, (tmp_path / "log").read_text()


async def test_file_of_another_page_size_ends_its_writer(
    tmp_path: Path, store: LTXStore, started: list[Process]
) -> None:
    database = make(tmp_path / "app.db", 300)
    writer = start(started, database, store)
    insert(database)
    await until_settled(database, store)
    before = await txids(store)
    overwrite(database, make(tmp_path / "new.db", 300, page_size=1024))
    await writer.until_said("has pages of 1024 bytes, the replica")
    assert "replicate to another URL" in writer.error
    assert await txids(store) == before
    await writer.stop()
