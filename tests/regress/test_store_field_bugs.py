"""Bugs that users of Litestream met with stores, with two writers, with sizes and clocks, each as a test of our writer.

`ls` are threads of benbjohnson/litestream, `ltx` of superfly/ltx, `minio` of minio/minio.
"""

from __future__ import annotations

import os
import random
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from litereplica.errors import ConditionsIgnored, ConflictError
from litereplica.ltxstore.lease_record import LOCK_KEY
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.restore.restore import restore
from litereplica.storage.wrappers import Operation
from litereplica.testing.memory import MemoryStorage
from litereplica.testing.s3_proxy import Exchange, Misbehaviour, Trouble, s3_proxy
from litereplica.writer.database import checkpoint
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.replicator import open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from tests.conftest import S3Bucket
from tests.helpers.app import Application
from tests.helpers.careless import Careless
from tests.helpers.fold import fold
from tests.writer.running import memory_store, publish_once, replicating, txids, until_published

COMPARED_BYTES = 16 << 20


@pytest.mark.slow
async def test_ls918_ls912_store_that_rejects_checksum_trailers_and_chunked_uploads(
    tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    def rejects(exchange: Exchange) -> Misbehaviour | None:
        headers = exchange.headers
        chunked = "aws-chunked" in headers.get("content-encoding", "") or "transfer-encoding" in headers
        trailer = any(name.startswith(("x-amz-checksum", "x-amz-trailer", "x-amz-sdk-checksum")) for name in headers)
        streamed = "STREAMING" in headers.get("x-amz-content-sha256", "")
        return Misbehaviour(Trouble.STATUS, status=400) if chunked or trailer or streamed else None

    with s3_proxy(s3_bucket.server) as proxy, Application(tmp_path / "app.db") as app:
        proxy.plan = rejects
        store = open_ltx_store(proxy.url(s3_bucket.name))
        await app("CREATE TABLE t (x)")
        await app("INSERT INTO t VALUES (randomblob(20000000))")  # in parts
        async with replicating(app.database, store):
            await app("INSERT INTO t VALUES (1)")
            await until_published(store, app)
        assert not proxy.troubles
        await store.aclose()


@pytest.mark.parametrize("ignored", [Operation.PUT_IF_ABSENT, Operation.PUT_IF_MATCH, Operation.DELETE_IF_MATCH])
async def test_minio21526_store_that_ignores_a_condition_gets_no_lease(tmp_path: Path, ignored: Operation) -> None:
    storage = MemoryStorage()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with open_replicator(
            app.database, memory_store(Careless(storage, ignored)), ReplicatorOptions(lease=LeaseMode.HOLD)
        ) as replicator:
            with pytest.raises(ConditionsIgnored, match="--no-lease"):
                await replicator.publish_once()
    assert LOCK_KEY not in storage.objects
    assert not storage.objects


async def test_ls422_ls1119_of_two_writers_on_one_path_one_stops_and_nothing_is_mixed(tmp_path: Path) -> None:
    store = memory_store()
    errors = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with Application(tmp_path / "one" / "app.db") as one, Application(tmp_path / "two" / "app.db") as two:

        async def follow(app: Application, started: trio.Event) -> None:
            async with open_replicator(app.database, store, ReplicatorOptions(sync_interval_s=0.01)) as replicator:
                try:
                    await replicator.run(trio.Event())
                except ConflictError as exc:
                    errors.append((app, exc))
                    stopped.set()

        stopped = trio.Event()
        for app in (one, two):
            await app("CREATE TABLE t (x)")
        await publish_once(one.database, store)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for app in (one, two):
                    nursery.start_soon(follow, app, trio.Event())
                while not stopped.is_set():
                    await one("INSERT INTO t VALUES ('of one')")
                    await two("INSERT INTO t VALUES ('of two')")
                ((loser, error),) = errors
                winner = two if loser is one else one
                await until_published(store, winner)
                nursery.cancel_scope.cancel()
    assert any(text in str(error) for text in ("another writer has published TXID", "does not continue"))
    published = await txids(store)
    assert published == list(range(1, len(published) + 1))


async def test_ls1342_name_of_a_published_file_is_on_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    store = open_ltx_store(f"file://{tmp_path}/replica")
    level = tmp_path / "replica" / "ltx" / "0"
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await publish_once(app.database, store)
        synced.clear()
        await app("INSERT INTO t VALUES (1)")
        await publish_once(app.database, store)
    assert await txids(store) == [1, 2]
    assert level in synced, "the directory"
    file = next(number for number, path in enumerate(synced) if path.parent == level or "0000000000000002" in path.name)
    assert file < synced.index(level), "the file before its name"


async def test_ls1271_ls1478_size_follows_the_commit_when_the_database_shrinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FRAMES", 10)
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store):
            sizes = []
            for size in (800_000, 100, 2_000_000, 5_000):
                await app("DELETE FROM t")
                await app("INSERT INTO t VALUES (randomblob(?))", size)
                await app("VACUUM")
                image = await until_published(store, app)
                newest = (await store.list_level(0))[-1]
                file = await store.open(newest)
                assert file.header.commit == len(image) // 4096
                assert int(file.index.pgno.max()) <= file.header.commit
                sizes.append(file.header.commit)
    assert sizes[0] > sizes[1] < sizes[2] > sizes[3]
    await restore(store, tmp_path / "restored.db")
    assert (tmp_path / "restored.db").stat().st_size == sizes[-1] * 4096


@pytest.mark.slow
async def test_ltx51_database_beyond_the_lock_page_of_64_kib_pages(tmp_path: Path) -> None:
    """At 64 KiB a page, 1 GiB into the file, it is page 16,385."""
    path = tmp_path / "app.db"
    await trio.to_thread.run_sync(make_large, path)
    store = open_ltx_store(f"file://{tmp_path}/replica")
    await publish_once(path, store)
    assert 16385 not in await pages_of(store, 1)
    with Application(path, page_size=65536) as app:
        await app("INSERT INTO t VALUES (randomblob(200000))")
        await publish_once(path, store)
        assert min(await pages_of(store, 2) - {1}) > 2
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
        await restore(store, tmp_path / "restored.db")
    assert await trio.to_thread.run_sync(equal, path, tmp_path / "restored.db")


def make_large(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript("PRAGMA page_size = 65536; PRAGMA journal_mode = off; PRAGMA synchronous = off")
        connection.execute("CREATE TABLE t (x)")
        for size in (600_000_000, 480_000_000):
            connection.execute("INSERT INTO t VALUES (zeroblob(?))", (size,))
        assert connection.execute("PRAGMA page_count").fetchone()[0] > 16385
    finally:
        connection.close()


async def pages_of(store: LTXStore, txid: int) -> set[int]:
    info = next(info for info in await store.list_level(0) if info.max_txid == txid)
    return set((await store.open(info)).index.pgno.tolist())


def equal(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while part := first.read(COMPARED_BYTES):
            if part != second.read(COMPARED_BYTES):
                return False
    return True


async def test_clock_that_steps_by_an_hour_at_every_look_keeps_times_in_order(tmp_path: Path) -> None:
    rng = random.Random(7)
    hour_ms = 3_600_000
    store = memory_store()

    def now_ms() -> int:
        return 1_700_000_000_000 + rng.choice((-hour_ms, 0, hour_ms))

    stop = trio.Event()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with (
            open_replicator(app.database, store, ReplicatorOptions(sync_interval_s=0.01, now_ms=now_ms)) as replicator,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(replicator.run, stop)
            for number in range(30):
                await app("INSERT INTO t VALUES (?)", number)
                await until_published(store, app)
            stop.set()
        times = [(await store.open(info)).header.timestamp_ms for info in await store.list_level(0)]
        assert len(times) > 20
        assert all(earlier <= later for earlier, later in pairwise(times))
        assert await fold(store) == await app.image()
