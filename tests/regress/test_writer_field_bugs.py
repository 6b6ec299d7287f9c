"""Bugs that users of Litestream met in its writer, each as a test of ours; `ls` are threads of benbjohnson/litestream.

Those of stores, of two writers, and of sizes and clocks are in `test_store_field_bugs.py`.
"""

from __future__ import annotations

import errno
import random
import sqlite3
from itertools import count
from pathlib import Path

import pytest
import trio

from litereplica.ltxstore import spooled_file
from litereplica.ltxstore.spooled_file import SpooledFile
from litereplica.restore.restore import restore
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.writer import backoff
from litereplica.writer.database import checkpoint
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.helpers.waiting import wait_until
from tests.writer.running import memory_store, page_counts, publish_once, replicating, txids, until_published

ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"


@pytest.fixture
def frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FRAMES", 10)
    monkeypatch.setattr(checkpoint, "AHEAD_FRAMES", 3)


def integrity(image: bytes, path: Path) -> str:
    """What SQLite says of a database; `path` is scratch space."""
    path.write_bytes(image)
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


@pytest.mark.usefixtures("frequent_checkpoints")
async def test_ls1432_commits_of_two_connections_survive_our_checkpoints(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as one, Application(tmp_path / "app.db") as two:
        await one("CREATE TABLE t (x)")
        async with replicating(one.database, store) as replicator:
            while replicator.statistics().checkpoints < 3:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(one.commits, 200)
                    nursery.start_soon(two.commits, 200)
            await until_published(store, one)


@pytest.mark.usefixtures("frequent_checkpoints")
async def test_ls1164_replica_is_sound_at_every_txid_while_indexes_change(tmp_path: Path) -> None:
    store = memory_store()
    chance = random.Random(1164)
    with Application(tmp_path / "app.db") as app:
        await app.script(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b, c);"
            "CREATE INDEX ia ON t (a); CREATE INDEX ib ON t (b); CREATE UNIQUE INDEX ic ON t (c)"
        )
        async with replicating(app.database, store) as replicator:
            for i in count():
                if i >= 200 and replicator.statistics().checkpoints >= 2:
                    break
                await app("INSERT INTO t (a, b, c) VALUES (?, randomblob(40), ?)", chance.randrange(50), i)
                if i % 10 == 0:
                    await app("DELETE FROM t WHERE a = ?", chance.randrange(50))
                    await app("PRAGMA wal_checkpoint(PASSIVE)")
            await until_published(store, app)
    newest = (await txids(store))[-1]
    for txid in {*range(1, newest, max(1, newest // 20)), newest}:
        assert integrity(await fold(store, target=txid), tmp_path / "check.db") == "ok", f"TXID {txid}"


async def test_ls752_five_hundred_transactions_and_a_truncated_wal_while_stopped(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app(f"INSERT INTO t {ROWS} SELECT randomblob(300) FROM n", 3000)
        async with replicating(app.database, store):
            await app("INSERT INTO t VALUES ('with a writer')")
        for i in range(500):
            await app("INSERT INTO t VALUES (?)", i)
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
        async with replicating(app.database, store):
            await app("INSERT INTO t VALUES ('with one again')")
            image = await until_published(store, app)
    await restore(store, tmp_path / "restored.db")
    assert (tmp_path / "restored.db").read_bytes() == image
    assert max((await page_counts(store))[1:]) < 30, "the whole database was published again"


@pytest.mark.usefixtures("frequent_checkpoints")
async def test_ls1083_wal_that_is_used_again_from_its_start_at_the_same_size(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (n INTEGER PRIMARY KEY, x)")
        await app("INSERT INTO t VALUES (1, randomblob(60000))")
        async with replicating(app.database, store) as replicator:
            for _ in range(4):
                await app("UPDATE t SET x = randomblob(60000)")
                await until_published(store, app)
                done = replicator.statistics().checkpoints
                await wait_until(lambda: replicator.statistics().wal_frames == 0)
                assert replicator.statistics().checkpoints >= done
            wal = app.database.with_name("app.db-wal")
            size, head = wal.stat().st_size, wal.read_bytes()[:32]
            await app("UPDATE t SET x = randomblob(60000)")
            assert wal.stat().st_size == size
            assert wal.read_bytes()[:32] != head, "it was not used again"
            await until_published(store, app)


@pytest.mark.slow
async def test_ls1309_first_snapshot_of_a_slow_store_is_consistent(tmp_path: Path) -> None:
    store = memory_store(LatencyStorage(MemoryStorage(), 0.01, bytes_per_s=10_000_000))
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app(f"INSERT INTO t {ROWS} SELECT randomblob(40000) FROM n", 600)
        await app("PRAGMA busy_timeout = 50")
        committed = trio.Event()

        async def commit_and_checkpoint() -> None:
            for i in range(100):
                await app("INSERT INTO t VALUES (?)", i)
                await app("PRAGMA wal_checkpoint(TRUNCATE)")
                await trio.sleep(0.02)
            committed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit_and_checkpoint)
            async with replicating(app.database, store):
                first = await fold(store, target=1)
                assert integrity(first, tmp_path / "check.db") == "ok"
                await committed.wait()
                await until_published(store, app)


@pytest.mark.usefixtures("frequent_checkpoints")
async def test_ls1199_pages_of_one_large_transaction_are_all_covered(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store):
            for _ in range(5):
                await app("INSERT INTO t VALUES (zeroblob(?))", 31 * 4096)
                await app("PRAGMA wal_checkpoint(PASSIVE)")
                image = await until_published(store, app)
                covered: set[int] = set()
                for info in await store.list_level(0):
                    covered |= set((await store.open(info)).index.pgno.tolist())
                assert set(range(1, len(image) // 4096 + 1)) <= covered


async def test_ls875_growing_and_vacuuming_within_one_file(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db", page_size=512) as app:
        await app("CREATE TABLE t (x)")
        await publish_once(app.database, store)
        await app(f"INSERT INTO t {ROWS} SELECT zeroblob(5000) FROM n", 2000)  # 22,000 pages
        await app("DELETE FROM t WHERE rowid > 10")
        await app("VACUUM")
        assert await publish_once(app.database, store) == 1
        assert await fold(store) == await app.image()


@pytest.mark.parametrize("mode", ["PASSIVE", "TRUNCATE"])
async def test_ls927_ls997_ls1197_checkpoints_of_an_idle_database_publish_nothing(tmp_path: Path, mode: str) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("PRAGMA busy_timeout = 1")
        async with replicating(app.database, store):
            for _ in range(100):
                await app(f"PRAGMA wal_checkpoint({mode})")
        for _ in range(3):
            await app(f"PRAGMA wal_checkpoint({mode})")
            assert await publish_once(app.database, store) == 0
    assert await txids(store) == [1]


@pytest.mark.usefixtures("frequent_checkpoints")
async def test_ls1198_steady_writes_never_cause_a_file_of_the_databases_size(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app(f"INSERT INTO t {ROWS} SELECT randomblob(3000) FROM n", 3000)
        async with replicating(app.database, store) as replicator:
            for i in range(500):
                await app("UPDATE t SET x = randomblob(3000) WHERE rowid = ?", 1 + i * 6)
            await until_published(store, app)
            assert replicator.statistics().checkpoints >= 5
    first, *rest = await page_counts(store)
    assert first > 3000
    assert max(rest) < 600


async def test_ls781_restored_database_without_local_state_goes_on(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app(f"INSERT INTO t {ROWS} SELECT randomblob(3000) FROM n", 100)
        await publish_once(app.database, store)
        await app("INSERT INTO t VALUES ('before')")
        await publish_once(app.database, store)
    await restore(store, tmp_path / "new.db")
    with Application(tmp_path / "new.db") as app:
        async with replicating(app.database, store):
            await app("INSERT INTO t VALUES ('after')")
            image = await until_published(store, app)
    await restore(store, tmp_path / "again.db")
    assert (tmp_path / "again.db").read_bytes() == image
    assert max((await page_counts(store))[1:]) < 10


@pytest.mark.usefixtures("frequent_checkpoints")
async def test_ls724_application_is_never_refused_while_a_reader_keeps_a_large_wal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PARTIAL_RETRY_S", 0.02)
    store = memory_store()
    with Application(tmp_path / "app.db") as app, Application(tmp_path / "app.db") as reader:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as replicator:
            await reader("BEGIN")
            assert await reader("SELECT count(*) FROM t") == [[0]]
            for i in range(60):  # each raises if it is refused
                await app("INSERT INTO t VALUES (randomblob(100000))")
                if i % 10 == 0:
                    await until_published(store, app)
            assert replicator.statistics().wal_frames > 1000
            await reader("COMMIT")
            await until_published(store, app)
            await wait_until(lambda: replicator.statistics().wal_frames == 0)


async def test_ls1310_full_disk_is_told_of_at_once_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backoff, "RETRY_S", 0.02)
    monkeypatch.setattr(spooled_file, "MEMORY_BYTES", 10_000)
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as replicator:

            def full(file: SpooledFile) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            with monkeypatch.context() as context:
                context.setattr(SpooledFile, "_spill", full)
                await app("INSERT INTO t VALUES (randomblob(200000))")
                await wait_until(lambda: "No space left on device" in caplog.text)
                assert replicator.statistics().files == 1
            await until_published(store, app)
