"""What we publish, read by the real Litestream; and a database that it is replicating."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from litereplica.errors import UsageError
from litereplica.ltxstore.store import open_ltx_store
from litereplica.testing.litestream import LitestreamProcess, litestream_restore
from litereplica.writer.database import checkpoint
from tests.conftest import S3Bucket
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.helpers.waiting import wait_until
from tests.writer.running import memory_store, publish_once, replicating, until_published

pytestmark = pytest.mark.slow

IN_THREAD = trio.to_thread.run_sync


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
async def test_litestream_restores_what_we_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FRAMES", 30)
    url = f"file://{tmp_path}/replica"
    store = open_ltx_store(url)
    with Application(tmp_path / "app.db", page_size=page_size) as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as replicator:
            for i in range(30):
                await app("INSERT INTO t VALUES (randomblob(?))", 1000 * i)
                if i % 10 == 9:
                    await app("DELETE FROM t WHERE rowid % 2")
                    await app("VACUUM")
            expected = await until_published(store, app)
            await wait_until(lambda: replicator.statistics().checkpoints > 0)
    restored = tmp_path / "restored.db"
    await IN_THREAD(litestream_restore, url, restored)
    assert await IN_THREAD(restored.read_bytes) == expected == await fold(store)


async def test_litestream_restores_what_we_publish_to_a_real_s3_store(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    store = open_ltx_store(s3_bucket.url)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("INSERT INTO t VALUES (randomblob(12000000))")  # the first file is streamed from the disk
        async with replicating(app.database, store):
            for i in range(10):
                await app("INSERT INTO t VALUES (randomblob(?))", 1000 * i)
            expected = await until_published(store, app)
    restored = tmp_path / "restored.db"
    await IN_THREAD(litestream_restore, s3_bucket.url, restored)
    assert await IN_THREAD(restored.read_bytes) == expected
    await store.aclose()


async def test_database_that_litestream_replicates_is_refused_until_it_stops(tmp_path: Path) -> None:
    theirs = f"file://{tmp_path}/theirs"
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        litestream = LitestreamProcess(app.database, theirs)
        await IN_THREAD(litestream.start)
        try:
            with pytest.raises(UsageError, match=rf"replicated by Litestream \(process {litestream.pid}\)"):
                await publish_once(app.database, store)
        finally:
            await IN_THREAD(litestream.stop)
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()


async def test_replica_of_litestream_is_continued_without_a_snapshot(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/replica"
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("INSERT INTO t VALUES (randomblob(200000))")
        litestream = LitestreamProcess(app.database, url)
        await IN_THREAD(litestream.start)
        await app("INSERT INTO t VALUES (1)")
        txid = await IN_THREAD(litestream.sync)
        await IN_THREAD(litestream.stop)
        store = open_ltx_store(url)
        await app("INSERT INTO t VALUES (2)")
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()
        newest = (await store.list_level(0))[-1]
        assert newest.max_txid > txid
        assert len((await store.open(newest)).index) < 10
