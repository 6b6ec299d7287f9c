"""A database as the writer holds it, for tests of single steps of a checkpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from litereplica.writer.database.sqlite_database import SQLiteDatabase, open_database
from litereplica.writer.database.wal_follower import WalFollower
from tests.helpers.app import Application


@asynccontextmanager
async def held_source(app: Application) -> AsyncIterator[SQLiteDatabase]:
    """Held by a read that was taken when all of the WAL was in the database."""
    async with open_database(app.database) as source:
        await source.run(source.connect)
        await source.run(source.take_read)
        yield source
        await source.run(source.release_read)


@asynccontextmanager
async def source_held_in_its_wal(app: Application) -> AsyncIterator[SQLiteDatabase]:
    """Held by a read of frames that are not all in the database. The application needs a table `t (x)`."""
    async with held_source(app) as source:
        await app("INSERT INTO t VALUES ('held')")
        assert await source.run(source.renew_read)
        yield source


@contextmanager
def followed(path: Path) -> Iterator[WalFollower]:
    """A follower at the beginning of a WAL."""
    wal = WalFollower(path)
    wal.reopen()
    wal.attach()
    yield wal
    wal.close()
