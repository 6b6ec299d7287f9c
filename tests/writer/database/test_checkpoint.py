"""A checkpoint moves nothing that SQLite counts as committed and the follower has not seen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest

from litereplica.writer.database.checkpoint import Outcome, checkpoint
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.database.wal_follower import WalChange, WalFollower
from tests.helpers.app import Application
from tests.writer.held_source import held_source

F = TypeVar("F", bound=WalFollower)

pytestmark = [pytest.mark.slow, pytest.mark.logs("the WAL has 3 frames, but 2 were published")]


class BlindFollower(WalFollower):
    """Sees no frame that was committed after `attach`."""

    def look(self) -> WalChange:
        return WalChange.NONE

    def see(self) -> None:
        if super().look() is WalChange.FRAMES:
            self.scan()


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Application]:
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        yield app


@pytest.fixture
async def source(app: Application) -> AsyncIterator[SQLiteDatabase]:
    async with held_source(app) as source:
        yield source


def following(wal: F) -> F:
    """The follower, attached and at the end of the WAL."""
    wal.reopen()
    wal.attach()
    wal.advance(wal.committed)
    return wal


async def test_checkpoint_is_given_up_if_sqlite_counts_more_frames_than_were_published(
    app: Application, source: SQLiteDatabase
) -> None:
    wal = following(BlindFollower(source.wal_path))
    await app("INSERT INTO t VALUES (1)")

    async def publish() -> None:
        raise AssertionError("the follower sees nothing to publish")

    before = await source.run(source.wal_state)
    assert await checkpoint(source, wal, publish, publish_limit_s=1.0) is Outcome.LOST
    assert await source.run(source.wal_state) == before, "a frame that was not published was moved"
    assert not wal.is_sealed

    wal.see()
    wal.advance(wal.committed)
    assert await checkpoint(source, wal, publish, publish_limit_s=1.0) is Outcome.DONE
    assert (await source.run(source.wal_state)).sealed
    wal.close()


async def test_checkpoint_is_given_up_if_what_was_committed_before_the_barrier_stays_unpublished(
    app: Application, source: SQLiteDatabase
) -> None:
    wal = following(WalFollower(source.wal_path))
    await app("INSERT INTO t VALUES (1)")

    async def publish() -> None:
        """Publishes nothing."""

    before = await source.run(source.wal_state)
    assert await checkpoint(source, wal, publish, publish_limit_s=1.0) is Outcome.LOST
    assert await source.run(source.wal_state) == before
    wal.close()
