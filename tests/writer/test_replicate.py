"""What is published, from databases that another process writes to."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from litereplica.errors import SourceReplaced, UsageError
from litereplica.file_events import MISSES, Changes
from litereplica.format.sqlite import DatabaseHeader
from litereplica.testing.faults import FaultAt, FaultStorage, Request
from litereplica.testing.ltx_files import read_file
from litereplica.testing.memory import MemoryStorage
from litereplica.writer import backoff
from litereplica.writer import replicator as replicator_module
from litereplica.writer.database import checkpoint
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.replicator import Replicator
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.helpers.waiting import wait_until
from tests.writer.running import (
    DEADLINE_S,
    memory_store,
    page_counts,
    publish_once,
    replicating,
    txids,
    until_published,
)

pytestmark = pytest.mark.slow

AN_HOUR_S = 3600.0


async def fill(app: Application, rows: int, size: int = 300) -> None:
    await app(
        "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "SELECT randomblob(?) FROM n",
        rows,
        size,
    )


async def until_checkpoints(replicator: Replicator, count: int) -> None:
    await wait_until(lambda: replicator.statistics().checkpoints >= count)


async def test_first_file_is_the_whole_database(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await fill(app, 500)
        async with replicating(app.database, store) as replicator:
            assert await txids(store) == [1]
            assert await fold(store) == await app.image()
            assert replicator.statistics().pages == len(await app.image()) // 4096


async def test_each_commit_after_a_quiet_period_is_published_at_once(tmp_path: Path, mock_clock: MockClock) -> None:
    mock_clock.rate = 1.0
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store, sync_interval_s=AN_HOUR_S):
            for i in range(3):
                await app("INSERT INTO t VALUES (?)", i)
                await until_published(store, app)
                mock_clock.jump(AN_HOUR_S)
        assert await txids(store) == [1, 2, 3, 4]


async def test_commit_is_published_because_the_kernel_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks before the end of the test; a file beside it that others write to wakes nobody."""
    for module, name in ((replicator_module, "LOCK_INTERVAL_S"), (backoff, "LOOK_INTERVAL_S")):
        monkeypatch.setattr(module, name, 3600.0)
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store):
            (tmp_path / "other").write_bytes(b"other")
            for number in range(3):
                await app("INSERT INTO t VALUES (?)", number)
                await until_published(store, app)


async def test_commit_is_published_where_the_kernel_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file system that takes a watch and has no events, as one of the network; that is noticed and said."""
    caplog.set_level(logging.INFO, "litereplica")
    monkeypatch.setattr(Changes, "tell", lambda self, name: None)
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as replicator:
            for number in range(MISSES + 1):
                await app("INSERT INTO t VALUES (?)", number)
                await until_published(store, app)
            assert not replicator._changes.is_sure
    assert "does not tell of changes" in caplog.text


async def test_commits_in_quick_succession_share_a_file(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store, sync_interval_s=60):
            await app("INSERT INTO t VALUES (0)")
            await until_published(store, app)
            for i in range(50):
                await app("INSERT INTO t VALUES (?)", i)
        assert await txids(store) == [1, 2, 3]
        assert await fold(store) == await app.image()


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
async def test_growth_shrinking_and_rewriting_arrive_at_every_page_size(tmp_path: Path, page_size: int) -> None:
    store = memory_store()
    setup = "PRAGMA auto_vacuum = incremental;"
    with Application(tmp_path / "app.db", page_size=page_size, setup=setup) as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store):
            for statement in (
                "INSERT INTO t VALUES (zeroblob(200000))",
                "CREATE INDEX i ON t (length(x))",
                "UPDATE t SET x = randomblob(100000)",
                "DELETE FROM t",
                "PRAGMA incremental_vacuum(1)",
                "PRAGMA incremental_vacuum",
                "INSERT INTO t VALUES (randomblob(50000))",
                "DROP INDEX i",
                "VACUUM",
            ):
                await app(statement)
                await until_published(store, app)


async def test_shrinking_and_growing_in_one_file_keeps_every_page(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await fill(app, 3000)
        await publish_once(app.database, store)
        await app("DELETE FROM t WHERE rowid % 50")
        await app("VACUUM")
        await fill(app, 6000)
        assert await publish_once(app.database, store) == 1
        assert await fold(store) == await app.image()


async def test_pages_allocated_and_freed_in_one_transaction_are_in_its_file(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await publish_once(app.database, store)
        await app.script("BEGIN; CREATE TABLE u (x); INSERT INTO u VALUES (zeroblob(400000)); DELETE FROM u; COMMIT")
        image = await app.image()
        async with replicating(app.database, store):
            file = await read_file(store, (await store.list_level(0))[-1])
            assert set(range(3, len(image) // 4096 + 1)) <= set(file.index.pgno.tolist())
        assert await fold(store) == image


@pytest.mark.parametrize("mode", ["passive", "full", "restart", "truncate"])
async def test_checkpoints_of_the_application_lose_nothing(tmp_path: Path, mode: str) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("PRAGMA busy_timeout = 10")
        async with replicating(app.database, store):
            for _ in range(5):
                await fill(app, 100)
                await app(f"PRAGMA wal_checkpoint({mode})")
                await until_published(store, app)
        counts = await page_counts(store)
        assert max(counts[1:]) < len(await app.image()) // 4096, "a change was published as a whole database"


async def test_checkpoint_moves_the_wal_and_the_next_commit_restarts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FRAMES", 50)
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        wal = tmp_path / "app.db-wal"
        async with replicating(app.database, store) as replicator:
            for expected in range(1, 5):
                salts = wal.read_bytes()[16:24]
                await fill(app, 1000)
                await until_checkpoints(replicator, expected)
                assert replicator.statistics().wal_frames == 0
                await app("INSERT INTO t VALUES (1)")
                assert wal.read_bytes()[16:24] != salts
                await until_published(store, app)
        counts = await page_counts(store)
        assert len(counts) >= 9
        assert max(counts[2:]) < counts[0] + 200


async def test_application_with_automatic_checkpoints_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FRAMES", 30)
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("PRAGMA wal_autocheckpoint = 10")
        async with replicating(app.database, store) as replicator:
            for _ in range(100):
                await fill(app, 20)
            await wait_until(lambda: replicator.statistics().checkpoints >= 1)
            await until_published(store, app)


class Barriers:
    """Counts the barriers that begin while it is installed, and the requests under each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[int] = []  # under each barrier so far
        self._held = False
        begin, end = SQLiteDatabase.begin_barrier, SQLiteDatabase.end_barrier

        def begin_barrier(database: SQLiteDatabase) -> bool:
            self._held = begin(database)
            if self._held:
                self.requests.append(0)
            return self._held

        def end_barrier(database: SQLiteDatabase) -> None:
            end(database)
            self._held = False

        monkeypatch.setattr(SQLiteDatabase, "begin_barrier", begin_barrier)
        monkeypatch.setattr(SQLiteDatabase, "end_barrier", end_barrier)

    def count_request(self, request: Request) -> None:
        if self._held:
            self.requests[-1] += 1


async def test_commits_wait_for_one_barrier_a_checkpoint_and_one_request_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FRAMES", 20)
    barriers = Barriers(monkeypatch)
    storage = MemoryStorage()
    store, uncounted = memory_store(FaultStorage(storage, barriers.count_request)), memory_store(storage)
    outcomes: list[checkpoint.Outcome] = []
    record = checkpoint.Schedule.record

    def recorded(schedule: checkpoint.Schedule, now_s: float, outcome: checkpoint.Outcome) -> None:
        record(schedule, now_s, outcome)
        outcomes.append(outcome)

    monkeypatch.setattr(checkpoint.Schedule, "record", recorded)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("PRAGMA synchronous = normal")
        async with replicating(app.database, store) as replicator:
            commits = 0
            while replicator.statistics().checkpoints < 5:
                await app.commits(100)
                commits += 100
            await until_published(uncounted, app)
            held = len(barriers.requests)
            done = outcomes.count(checkpoint.Outcome.DONE)
            assert held <= len(outcomes) + 1, "a barrier that is no checkpoint's"
            assert done <= 1 + 3 * commits // checkpoint.CHECKPOINT_FRAMES, "a checkpoint for fewer frames than are due"
            assert max(barriers.requests) <= 1
    assert await txids(store) == list(range(1, len(await txids(store)) + 1))


async def test_long_reader_delays_the_checkpoint_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FRAMES", 20)
    monkeypatch.setattr(checkpoint, "PARTIAL_RETRY_S", 0.05)
    store = memory_store()
    with Application(tmp_path / "app.db") as app, Application(tmp_path / "app.db") as reader:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as replicator:
            await app("INSERT INTO t VALUES (1)")
            await reader("BEGIN")
            before = await reader("SELECT count(*) FROM t")
            for _ in range(10):
                await fill(app, 100)
                await until_published(store, app)
            assert replicator.statistics().wal_frames > 0
            assert await reader("SELECT count(*) FROM t") == before
            await reader("COMMIT")
            await wait_until(lambda: replicator.statistics().wal_frames == 0)
            await fill(app, 100)
            await until_published(store, app)


async def test_rolled_back_transaction_that_spilled_does_not_hide_the_next(tmp_path: Path) -> None:
    """Its frames stay in the file, and a shorter transaction overwrites only the first of them."""
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("PRAGMA cache_size = 10")
        async with replicating(app.database, store):
            for _ in range(3):
                await app("BEGIN")
                await fill(app, 3000)
                await trio.sleep(0.1)
                await app("ROLLBACK")
                await app("INSERT INTO t VALUES (1)")
                await until_published(store, app)


async def test_transaction_that_rewrites_its_own_frames_arrives(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("PRAGMA cache_size = 10")
        async with replicating(app.database, store):
            await app("BEGIN")
            for _ in range(5):
                await fill(app, 500)
                await app("UPDATE t SET x = randomblob(300) WHERE rowid % 7 = 0")
                await trio.sleep(0.05)
            await app("COMMIT")
            await until_published(store, app)


async def test_idle_database_causes_no_file_and_no_request(tmp_path: Path) -> None:
    storage = FaultStorage(MemoryStorage(), lambda request: None)
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as replicator:
            storage.plan = FaultAt(1, for_good=True)
            before = replicator.statistics()
            await trio.sleep(0.3)
            after = replicator.statistics()
            assert replace(after, syncs=before.syncs) == before, "it looks, and does nothing else"


async def test_schema_stays_as_it_was(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        schema = await app("SELECT * FROM sqlite_schema")
        image = await app.image()
        async with replicating(app.database, store):
            pass
        assert await app("SELECT * FROM sqlite_schema") == schema
        assert await app.image() == image


async def test_rollback_mode_database_is_switched_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = memory_store()
    with Application(tmp_path / "app.db", journal_mode="delete") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store):
            assert "switched" in caplog.text
            assert "from journal mode delete to WAL" in caplog.text
            await app("INSERT INTO t VALUES (1)")
            assert DatabaseHeader.decode(await until_published(store, app)).wal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: create a table"),
        (b"text\n", "is not a SQLite database"),
        (b"x" * 8192, "is not a SQLite database"),
        (None, "does not exist"),
    ],
)
async def test_file_that_is_no_database_is_refused_and_left_alone(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "app.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        await publish_once(path, memory_store())
    left = await trio.to_thread.run_sync(os.listdir, tmp_path)
    assert left == (["app.db"] if content is not None else [])


async def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        await publish_once(tmp_path, memory_store())


async def test_replaced_database_ends_replication_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with replicating(app.database, memory_store()):
                app.database.rename(tmp_path / "moved.db")
                await trio.sleep(DEADLINE_S)
        assert caught.group_contains(SourceReplaced, match="deleted or replaced")
