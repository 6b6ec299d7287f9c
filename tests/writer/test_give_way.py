"""Checkpoints of the application that restart the WAL succeed although the writer holds a read, and lose nothing.

A WARNING that the WAL was restarted by another program would fail each of these tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from litereplica.errors import TransientStorageError
from litereplica.storage.base import Body
from litereplica.testing.memory import MemoryStorage
from litereplica.writer.database import sqlite_database
from litereplica.writer.database.checkpoint import give_way
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.database.wal_follower import WalChange, WalFollower
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.helpers.waiting import wait_until
from tests.writer.held_source import followed, source_held_in_its_wal
from tests.writer.running import memory_store, page_counts, replicating, until_published

pytestmark = pytest.mark.slow

BLOCKING = ["FULL", "RESTART", "TRUNCATE"]
DEADLINE_S = 20.0
HAMMERED = 40


@pytest.mark.parametrize("sync_interval_s", [0.02, 600.0])
@pytest.mark.parametrize("mode", BLOCKING)
async def test_blocking_checkpoint_of_the_application_succeeds(
    tmp_path: Path, mode: str, sync_interval_s: float
) -> None:
    """Also when the next file is not due for ten minutes: the frames are published for the checkpoint."""
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store, sync_interval_s=sync_interval_s):
            for number in range(3):
                await app("INSERT INTO t VALUES (?)", number)
                await app("INSERT INTO t VALUES (randomblob(9000))")
                busy, frames, copied = (await app(f"PRAGMA wal_checkpoint({mode})"))[0]
                assert (busy, copied) == (0, frames)
                if mode == "TRUNCATE":
                    assert tmp_path.joinpath("app.db-wal").stat().st_size == 0
            await app("INSERT INTO t VALUES ('the next commit restarts the WAL')")
            assert await app("PRAGMA wal_checkpoint(TRUNCATE)") == [[0, 0, 0]]
            assert await fold(store) == await app.image()
        assert max((await page_counts(store))[1:]) < len(await app.image()) // 4096


async def test_everything_arrives_while_several_commit_and_truncate_as_fast_as_they_can(tmp_path: Path) -> None:
    store, path = memory_store(), tmp_path / "app.db"
    succeeded = []

    async def hammer(app: Application, mode: str) -> None:
        await app("PRAGMA busy_timeout = 20000")  # SQLite's busy handler is not fair
        for number in range(HAMMERED):
            await app("INSERT INTO t VALUES (?)", number)
            await app("UPDATE t SET x = randomblob(500) WHERE rowid % 7 = ?", number % 7)
            busy, *_ = (await app(f"PRAGMA wal_checkpoint({mode})"))[0]
            succeeded.append(not busy)

    with Application(path) as app, Application(path) as second, Application(path) as third:
        await app("CREATE TABLE t (x)")
        async with replicating(path, store):
            async with trio.open_nursery() as nursery:
                for connection, mode in zip((app, second, third), BLOCKING, strict=True):
                    nursery.start_soon(hammer, connection, mode)
            await until_published(store, app)
        assert await fold(store) == await app.image()
    assert sum(succeeded) > HAMMERED


class Silent(MemoryStorage):
    """Refuses every put while `silent`."""

    silent = False

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        if self.silent:
            raise TransientStorageError("silent", key=key)
        return await super().put_if_absent(key, body, modified_ms=modified_ms)


@pytest.mark.logs("cannot publish .* silent")
@pytest.mark.parametrize("mode", ["RESTART", "TRUNCATE"])
async def test_nothing_unpublished_leaves_the_wal(tmp_path: Path, mode: str) -> None:
    storage = Silent()
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store):
            storage.silent = True
            await app("PRAGMA busy_timeout = 300")
            await app("INSERT INTO t VALUES (randomblob(9000))")
            assert (await app(f"PRAGMA wal_checkpoint({mode})"))[0][0] == 1, "it went through with frames unpublished"
            storage.silent = False
            await until_published(store, app)
            await app("PRAGMA busy_timeout = 5000")
            assert (await app(f"PRAGMA wal_checkpoint({mode})"))[0][0] == 0


async def test_reader_of_the_application_that_outlasts_the_checkpoint_costs_nothing(tmp_path: Path) -> None:
    """The checkpoint fails for its own reason, after the held read has given way; commits go on in the same WAL."""
    store = memory_store()
    with Application(tmp_path / "app.db") as app, Application(tmp_path / "app.db") as reader:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store):
            await app("INSERT INTO t VALUES (1)")
            await until_published(store, app)
            await reader("BEGIN")
            await reader("SELECT * FROM t")
            await app("PRAGMA busy_timeout = 500")
            for number in range(3):
                assert (await app("PRAGMA wal_checkpoint(TRUNCATE)"))[0][0] == 1
                await app("INSERT INTO t VALUES (?)", number)
                await until_published(store, app)
            await reader("COMMIT")
            await app("PRAGMA busy_timeout = 5000")
            assert (await app("PRAGMA wal_checkpoint(TRUNCATE)"))[0][0] == 0
            await app("INSERT INTO t VALUES (4)")
            await until_published(store, app)


async def test_wal_that_grew_is_emptied_while_the_writer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_database, "LARGE_WAL_BYTES", 100_000)
    monkeypatch.setattr("litereplica.writer.checkpointer.LARGE_WAL_BYTES", 100_000)
    monkeypatch.setattr("litereplica.writer.checkpointer.SHRINK_RETRY_S", 0.1)
    monkeypatch.setattr("litereplica.writer.database.checkpoint.CHECKPOINT_FRAMES", 5)
    store, path = memory_store(), tmp_path / "app.db"
    wal = path.with_name("app.db-wal")
    with Application(path) as app, Application(path) as reader:
        await app("CREATE TABLE t (x)")
        async with replicating(path, store):
            await reader("BEGIN")
            await reader("SELECT * FROM t")
            await app("INSERT INTO t VALUES (randomblob(500000))")
            await until_published(store, app)
            await reader("COMMIT")
            assert wal.stat().st_size > 500_000
            with trio.fail_after(DEADLINE_S):
                while wal.stat().st_size >= 100_000:
                    await app("INSERT INTO t VALUES (randomblob(5000))")
            await app("INSERT INTO t VALUES (1)")
            await until_published(store, app)
        assert await fold(store) == await app.image()
        assert max((await page_counts(store))[1:]) < len(await app.image()) // 4096


# --- the exchange of the held read -----------------------------------------------------------------------------------


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Application]:
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        yield app


@pytest.fixture
async def source(app: Application) -> AsyncIterator[SQLiteDatabase]:
    async with source_held_in_its_wal(app) as source:
        yield source


@pytest.fixture
async def wal(source: SQLiteDatabase) -> AsyncIterator[WalFollower]:
    with followed(source.wal_path) as wal:
        yield wal


async def let_it_give_way(app: Application, source: SQLiteDatabase, wal: WalFollower) -> None:
    """All is in the database and published, so that the WAL may be restarted."""
    await app("PRAGMA busy_timeout = 1")
    await app("PRAGMA wal_checkpoint(PASSIVE)")
    wal.advance(wal.committed)
    assert await source.run(lambda: give_way(source, wal))


async def test_held_read_gives_way_only_when_all_is_published_and_copied(
    app: Application, source: SQLiteDatabase, wal: WalFollower
) -> None:
    await app("PRAGMA busy_timeout = 1")

    async def step() -> bool:
        return await source.run(lambda: give_way(source, wal))

    assert not await step(), "nothing is copied"
    await app("PRAGMA wal_checkpoint(PASSIVE)")
    assert not await step(), "nothing is published"
    wal.advance(wal.committed)
    await app("INSERT INTO t VALUES ('unseen')")
    assert not await step()
    await app("PRAGMA wal_checkpoint(PASSIVE)")
    assert not await step(), "SQLite counts a frame that was not published"
    assert (await app("PRAGMA wal_checkpoint(TRUNCATE)"))[0][0] == 1
    wal.scan()
    wal.advance(wal.committed)
    assert await step()
    assert source.may_restart
    assert wal.is_sealed
    assert (await app("PRAGMA wal_checkpoint(TRUNCATE)"))[0][0] == 0
    assert wal.look() is WalChange.NONE


async def test_frames_committed_after_it_gave_way_stay_in_the_wal(
    app: Application, source: SQLiteDatabase, wal: WalFollower
) -> None:
    await let_it_give_way(app, source, wal)
    await app("INSERT INTO t VALUES ('restarts the WAL')")
    for mode in ("PASSIVE", *BLOCKING):
        _, frames, copied = (await app(f"PRAGMA wal_checkpoint({mode})"))[0]
        assert copied < frames, "the WAL may be restarted a second time, with frames in it that nobody has seen"
    assert wal.look() is WalChange.FRAMES
    wal.scan()
    assert wal.committed == (await source.run(source.wal_state)).log


async def test_as_many_frames_of_another_wal_are_not_taken_for_published(
    app: Application, source: SQLiteDatabase, wal: WalFollower
) -> None:
    await let_it_give_way(app, source, wal)
    await app("INSERT INTO t VALUES ('restarts the WAL')")
    while (await source.run(source.wal_state)).log < wal.position:
        await app("INSERT INTO t VALUES (1)")
    assert await source.run(source.renew_read)
    await app("PRAGMA wal_checkpoint(PASSIVE)")
    state = await source.run(source.wal_state)
    assert state.log == state.backfilled == wal.position
    assert not await source.run(lambda: give_way(source, wal))
    assert (await app("PRAGMA wal_checkpoint(TRUNCATE)"))[0][0] == 1


async def test_guard_lets_everything_be_copied_and_the_wal_not_be_restarted(
    app: Application, source: SQLiteDatabase, wal: WalFollower
) -> None:
    await app("PRAGMA busy_timeout = 1")
    await app("INSERT INTO t VALUES ('committed after the read mark')")
    assert (await app("PRAGMA wal_checkpoint(FULL)"))[0][0] == 1
    assert await source.run(source.guard)
    head = wal.path.read_bytes()[:32]
    for mode, busy in (("FULL", 0), ("RESTART", 1), ("TRUNCATE", 1)):
        await app("INSERT INTO t VALUES (1)")
        found, frames, copied = (await app(f"PRAGMA wal_checkpoint({mode})"))[0]
        assert (found, copied) == (busy, frames)
        await source.run(source.wal_state)  # SQLite in this process locks and unlocks read marks
    assert wal.path.read_bytes()[:32] == head
    assert not await source.run(source.renew_read), "everything is copied: a read would not keep the WAL"
    wal.scan()
    wal.advance(wal.committed)
    assert await source.run(lambda: give_way(source, wal))
    assert (await app("PRAGMA wal_checkpoint(TRUNCATE)"))[0][0] == 0


async def test_guard_ends_when_the_checkpoint_has_given_up(
    app: Application, source: SQLiteDatabase, wal: WalFollower
) -> None:
    await app("INSERT INTO t VALUES (1)")
    assert await source.run(source.guard)
    wal.scan()
    wal.advance(wal.committed)
    assert not await source.run(lambda: give_way(source, wal))
    assert not source.is_guarded
    await app("PRAGMA busy_timeout = 1")
    assert (await app("PRAGMA wal_checkpoint(TRUNCATE)"))[0][0] == 1, "the WAL was not kept"


async def test_wal_that_is_restarted_while_it_is_looked_at_is_followed(
    app: Application, source: SQLiteDatabase, wal: WalFollower
) -> None:
    class Racing(WalFollower):
        """Lets the application restart the WAL after its header was read."""

        restart: tuple[str, ...] = ()

        def _frame_header(self, frame: int) -> bytes:
            statements, self.restart = self.restart, ()
            for sql in statements:
                app.call(sql)
            return super()._frame_header(frame)

    await app("PRAGMA wal_checkpoint(PASSIVE)")
    racing = Racing(source.wal_path)
    racing.reopen()
    racing.attach()
    racing.advance(racing.committed)
    assert await source.run(lambda: give_way(source, racing))
    racing.restart = ("PRAGMA wal_checkpoint(TRUNCATE)",)
    assert racing.look() is WalChange.NONE
    await app("INSERT INTO t VALUES (1)")
    assert racing.look() is WalChange.FRAMES
    racing.scan()
    assert racing.committed == (await source.run(source.wal_state)).log
    racing.close()


async def test_waiting_checkpoint_shows_by_its_locks(app: Application, source: SQLiteDatabase) -> None:
    assert not source.awaits_readers()
    await app("BEGIN IMMEDIATE")
    assert not source.awaits_readers(), "a transaction was taken for a checkpoint"
    await app("COMMIT")
    await app("INSERT INTO t VALUES (1)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(app, "PRAGMA wal_checkpoint(RESTART)")
        await wait_until(source.awaits_readers)
        await source.run(source.release_read)
    assert not source.awaits_readers()
