"""What the last to leave a fully published database makes of its WAL, with SQLite's own processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from litereplica.writer.database import sqlite_database
from litereplica.writer.replicator import open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.writer.running import memory_store, page_counts, publish_once, replicating, txids, until_published

pytestmark = pytest.mark.slow


async def test_wal_is_gone_when_the_application_and_then_the_writer_have_ended(tmp_path: Path) -> None:
    """Another file in the database's place would be corrupted by a WAL that stayed."""
    path, store = tmp_path / "app.db", memory_store()
    with Application(path) as app:
        await app("CREATE TABLE t (x)")
        async with replicating(path, store):
            await app("INSERT INTO t VALUES (1)")
            image = await until_published(store, app)
            app.close()
            assert path.with_name("app.db-wal").exists()
    assert not path.with_name("app.db-wal").exists()
    assert not path.with_name("app.db-shm").exists()
    assert path.read_bytes() == image
    assert await publish_once(path, store) == 0, "the next start compares nothing and publishes nothing"


async def test_wal_stays_when_the_application_goes_on(tmp_path: Path) -> None:
    path, store = tmp_path / "app.db", memory_store()
    with Application(path) as app:
        await app("CREATE TABLE t (x)")
        async with replicating(path, store):
            await app("INSERT INTO t VALUES (1)")
        assert path.with_name("app.db-wal").exists()
        await app("INSERT INTO t VALUES (2)")
        assert await publish_once(path, store) == 1
        assert await fold(store) == await app.image()
    assert max((await page_counts(store))[1:]) < 3


async def test_wal_stays_when_not_all_is_published(tmp_path: Path) -> None:
    path, store = tmp_path / "app.db", memory_store()
    with Application(path) as app:
        await app("CREATE TABLE t (x)")
        async with open_replicator(path, store, ReplicatorOptions()) as replicator, trio.open_nursery() as nursery:
            await nursery.start(replicator.run, trio.Event())
            app.close()
            nursery.cancel_scope.cancel()  # as if killed
    assert path.with_name("app.db-wal").exists()


async def test_large_wal_is_emptied_when_the_writer_leaves_before_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_database, "LARGE_WAL_BYTES", 100_000)
    path, store = tmp_path / "app.db", memory_store()
    wal = path.with_name("app.db-wal")
    with Application(path) as app, Application(path) as reader:
        await app("CREATE TABLE t (x)")
        async with replicating(path, store):
            await reader("BEGIN")
            await reader("SELECT * FROM t")
            await app("INSERT INTO t VALUES (randomblob(300000))")
            await until_published(store, app)
            await reader("COMMIT")
            assert wal.stat().st_size > 300_000
        assert wal.stat().st_size == 0
        assert await publish_once(path, store) == 0
        await app("INSERT INTO t VALUES (1)")
        assert await publish_once(path, store) == 1
        assert await fold(store) == await app.image()
    assert await txids(store) == [1, 2, 3]
