"""What is moved into the database ahead of a checkpoint, without the barrier, stays in the WAL until it is published.

The held read is the reason: whoever wants to restart or to truncate the WAL needs the lock that it has, and so it
is not enough for that that all frames are in the database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from litereplica.writer.database import checkpoint
from litereplica.writer.database.checkpoint import move_ahead
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.database.wal_follower import WalChange, WalFollower
from tests.helpers.app import Application
from tests.writer.held_source import followed, source_held_in_its_wal

pytestmark = pytest.mark.slow

MODES = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")
HAMMERED_S = 2.0


@pytest.fixture(autouse=True)
def always_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "AHEAD_FRAMES", 1)


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Application]:
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("PRAGMA busy_timeout = 1")
        yield app


@pytest.fixture
async def source(app: Application) -> AsyncIterator[SQLiteDatabase]:
    """Held as the writer holds it: by a read of frames that are not all in the database."""
    async with source_held_in_its_wal(app) as source:
        yield source


@pytest.fixture
async def tail(source: SQLiteDatabase) -> AsyncIterator[WalFollower]:
    with followed(source.wal_path) as tail:
        yield tail


async def test_frames_that_were_moved_and_not_published_cannot_be_lost_from_the_wal(
    app: Application, source: SQLiteDatabase, tail: WalFollower
) -> None:
    for number in range(20):
        await app("INSERT INTO t VALUES (randomblob(3000))")
        if number % 5 == 4:
            await source.run(lambda: move_ahead(source, tail))
    state = await source.run(source.wal_state)
    assert state.backfilled == state.log, "all of it is in the database: nothing but the held read keeps the WAL"
    tail.scan()
    assert tail.committed == state.log
    head, frames = tail.path.read_bytes()[:32], [tail.read_page(frame) for frame in range(tail.committed)]
    for mode in MODES:
        blocked, _, _ = (await app(f"PRAGMA wal_checkpoint({mode})"))[0]
        assert blocked == (mode != "PASSIVE")
        await app("INSERT INTO t VALUES ('the next commit would restart it')")
    assert tail.path.read_bytes()[:32] == head
    assert [tail.read_page(frame) for frame in range(len(frames))] == frames
    assert tail.look() is WalChange.FRAMES
    tail.scan()
    assert tail.committed == len(frames) + len(MODES)


async def test_no_moment_of_moving_ahead_lets_the_wal_be_restarted(
    app: Application, source: SQLiteDatabase, tail: WalFollower
) -> None:
    """Two connections commit and truncate as fast as they can, while the read is renewed again and again."""
    head, moved, ended = tail.path.read_bytes()[:32], 0, trio.Event()

    async def hammer(connection: Application) -> None:
        while not ended.is_set():
            await connection("PRAGMA busy_timeout = 5000")
            await connection("INSERT INTO t VALUES (1)")
            await connection("PRAGMA busy_timeout = 5")
            await connection("PRAGMA wal_checkpoint(TRUNCATE)")

    with Application(app.database) as other:
        async with trio.open_nursery() as nursery:
            for connection in (app, other):
                nursery.start_soon(hammer, connection)
            deadline = trio.current_time() + HAMMERED_S
            while trio.current_time() < deadline or moved < 30:
                before = await source.run(source.wal_state)
                await source.run(lambda: move_ahead(source, tail))
                moved += (await source.run(source.wal_state)).backfilled > before.backfilled
                assert tail.path.read_bytes()[:32] == head, "restarted, with frames in it that nobody has published"
            ended.set()
        tail.scan()
        assert tail.committed == (await source.run(source.wal_state)).log
