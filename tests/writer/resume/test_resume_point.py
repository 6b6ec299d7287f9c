"""What is published at a start, after every kind of stop."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trio

from litereplica.errors import ConflictError, TransientStorageError, UsageError
from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.testing.memory import MemoryStorage
from litereplica.testing.mounts import litereplica_binary
from litereplica.types import FileInfo
from litereplica.writer.replicator import open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.helpers.outdated_listings import OutdatedListings
from tests.writer.running import memory_store, page_counts, publish_once, replicating, txids, until_published

pytestmark = pytest.mark.slow

ROWS = 2000


async def database(app: Application) -> None:
    await app("CREATE TABLE t (x)")
    await app(
        "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "SELECT randomblob(300) FROM n",
        ROWS,
    )


async def publish_and_vanish(path: Path, store: LTXStore, app: Application) -> None:
    """Publish, then stop without any of the steps of an ordinary end, as a killed process does."""
    stop = trio.Event()
    async with (
        open_replicator(path, store, ReplicatorOptions(sync_interval_s=0.01)) as replicator,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(replicator.run, stop)
        await until_published(store, app)
        nursery.cancel_scope.cancel()


async def test_killed_writer_goes_on_in_the_same_wal(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await database(app)
        await publish_and_vanish(app.database, store, app)
        await app("INSERT INTO t VALUES (1)")
        await publish_and_vanish(app.database, store, app)
        await app("INSERT INTO t VALUES (2)")
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()
        counts = await page_counts(store)
        assert len(counts) == 3
        assert max(counts[1:]) < 5, "a start published the whole database"


async def test_stopped_writer_goes_on_although_the_wal_was_restarted_meanwhile(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await database(app)
        for i in range(4):
            await publish_once(app.database, store)
            await app("INSERT INTO t VALUES (?)", i)
            await app("INSERT INTO t VALUES (?)", -i)
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()
        assert max((await page_counts(store))[1:]) < 5


async def test_stopped_writer_goes_on_although_the_application_has_ended(tmp_path: Path) -> None:
    """Closing its last connection, SQLite deletes a WAL that is all in the database."""
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await database(app)
        await publish_once(app.database, store)
    assert not (tmp_path / "app.db-wal").exists()
    assert await publish_once(tmp_path / "app.db", store) == 0
    with Application(tmp_path / "app.db") as app:
        await app("INSERT INTO t VALUES (1)")
        assert await publish_once(tmp_path / "app.db", store) == 1
        assert await fold(store) == await app.image()
    assert (await page_counts(store))[1] < 5


async def test_checkpoint_while_stopped_leads_to_one_file_of_what_differs(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await database(app)
        await publish_once(app.database, store)
        for i in range(500):
            await app("INSERT INTO t VALUES (?)", i)
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
        await app("INSERT INTO t VALUES ('last')")
        await publish_once(app.database, store)
        assert await txids(store) == [1, 2]
        assert await fold(store) == await app.image()
        assert (await page_counts(store))[1] < 10


async def test_transaction_that_the_wal_has_lost_is_not_taken_for_the_one_that_replaced_it(tmp_path: Path) -> None:
    """After a loss of power the WAL may end before what was published, and go on differently with the same salts."""
    store = memory_store()
    path, wal = tmp_path / "app.db", tmp_path / "app.db-wal"
    with Application(path) as app:
        await database(app)
        before = wal.read_bytes()
        await app("INSERT INTO t VALUES ('lost')")
        await publish_and_vanish(path, store, app)
        app.kill()
    wal.write_bytes(before)
    (tmp_path / "app.db-shm").unlink()
    with Application(path) as app:
        await app("INSERT INTO t VALUES ('kept')")
        await publish_once(path, store)
        assert await txids(store) == [1, 2]
        assert await fold(store) == await app.image()


async def test_lost_transaction_is_told_from_one_that_leaves_the_same_last_page(tmp_path: Path) -> None:
    """As above, with pages of the same size and number, of which only the first differs."""
    store = memory_store()
    path, wal = tmp_path / "app.db", tmp_path / "app.db-wal"
    with Application(path) as app:
        for table in "abc":  # a page each, ascending
            await app(f"CREATE TABLE {table} (x)")
            await app(f"INSERT INTO {table} VALUES (0)")
        await publish_and_vanish(path, store, app)
        before = wal.read_bytes()
        await app.script("BEGIN; UPDATE a SET x = 1; UPDATE c SET x = 1; COMMIT")
        await publish_and_vanish(path, store, app)
        app.kill()
    wal.write_bytes(before)
    (tmp_path / "app.db-shm").unlink()
    with Application(path) as app:
        await app.script("BEGIN; UPDATE b SET x = 1; UPDATE c SET x = 1; COMMIT")
        await publish_once(path, store)
        assert await fold(store) == await app.image()
    assert await txids(store) == [1, 2, 3]


async def test_deleted_state_directory_costs_no_snapshot(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await database(app)
        await publish_once(app.database, store)
        for item in (tmp_path / ".app.db-litereplica").iterdir():
            item.unlink()
        await app("INSERT INTO t VALUES (1)")
        await publish_once(app.database, store)
        assert await txids(store) == [1, 2]
        assert await fold(store) == await app.image()
        assert (await page_counts(store))[1] < 10


@pytest.mark.logs("publishing it as the newest state")
async def test_copy_that_is_behind_the_replica_is_refused_and_taken_over_on_demand(tmp_path: Path) -> None:
    """Its content becomes the next TXID only with `take_over`; from then on it is the writer that goes on."""
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await database(app)
        await publish_once(app.database, store)
        old = await app.image()
        await app("DELETE FROM t")
        await publish_once(app.database, store)
    (tmp_path / "restored.db").write_bytes(old)
    with Application(tmp_path / "restored.db") as app:
        with pytest.raises(ConflictError, match="newest TXID 0000000000000002 was published by another writer"):
            await publish_once(app.database, store)
        assert await txids(store) == [1, 2]
        await publish_once(app.database, store, take_over=True)
        assert await txids(store) == [1, 2, 3]
        assert await fold(store) == await app.image()
        await app("INSERT INTO t VALUES (1)")
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()


@pytest.mark.parametrize("is_empty", [True, False])
@pytest.mark.parametrize("lost", ["", "pages.sums", "checkpoint.json"])
async def test_an_outdated_listing_is_not_believed(tmp_path: Path, lost: str, is_empty: bool) -> None:
    storage = OutdatedListings()
    store = LTXStore(storage, Layout.S3)
    with Application(tmp_path / "app.db") as app:
        await database(app)
        await publish_once(app.database, store)
        shown = await storage.list("")
        for number in range(3):
            await app("INSERT INTO t VALUES (?)", number)
            await publish_once(app.database, store)
        if lost:
            (tmp_path / ".app.db-litereplica" / lost).unlink()
        await app("INSERT INTO t VALUES (3)")
        storage.shown = [] if is_empty else shown
        with pytest.raises(TransientStorageError, match="the listing is out of date"):
            await publish_once(app.database, store)
        storage.shown = None
        assert await txids(store) == [1, 2, 3, 4]
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()


@pytest.mark.logs("published up to TXID 0000000000000001, is gone: beginning anew")
async def test_a_replica_that_somebody_has_deleted_is_begun_anew(tmp_path: Path) -> None:
    storage = MemoryStorage()
    store = LTXStore(storage, Layout.S3)
    with Application(tmp_path / "app.db") as app:
        await database(app)
        await publish_once(app.database, store)
        first = await store.open((await store.list_level(0))[0])
        storage.objects.clear()
        await publish_once(app.database, store)
        again = await store.open((await store.list_level(0))[0])
        assert again.header.node_id != first.header.node_id, "readers must not take it for the one that they know"
        assert await fold(store) == await app.image()


async def test_replica_of_another_page_size_is_refused(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "a.db") as a, Application(tmp_path / "b.db", page_size=512) as b:
        await a("CREATE TABLE t (x)")
        await b("CREATE TABLE t (x)")
        await publish_once(a.database, store)
        with pytest.raises(UsageError, match=r"pages of 512 bytes, the replica .* of 4096"):
            await publish_once(b.database, store)


@pytest.mark.logs("publishing it as the newest state")
async def test_second_writer_takes_over_and_the_first_stops_with_a_conflict(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "a.db") as a, Application(tmp_path / "b.db") as b:
        await a("CREATE TABLE t (x)")
        await b("CREATE TABLE u (x)")
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with replicating(a.database, store):
                await publish_once(b.database, store, take_over=True)
                await a("INSERT INTO t VALUES (1)")
                await trio.sleep(5)
        assert caught.group_contains(ConflictError, match="another writer has published TXID 0000000000000002")
        assert await txids(store) == [1, 2]
        assert await fold(store) == await b.image()


async def test_two_writers_of_one_database_are_refused(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await database(app)
        async with replicating(app.database, store):
            with pytest.raises(ConflictError, match="by this process"):
                await publish_once(app.database, store)
            command = [litereplica_binary(), "replicate", str(app.database), f"file://{tmp_path}/replica", "--once"]
            done = await trio.run_process(command, capture_stderr=True, check=False)
            assert done.returncode == 7
            assert b"another process replicates" in done.stderr
            await app("INSERT INTO t VALUES (1)")
            await until_published(store, app)


class LateStorage(MemoryStorage):
    """Its first put of a file fails, and takes effect only when the next one comes."""

    late: tuple[str, bytes] | None = None
    armed = False

    async def put_if_absent(self, key: str, body: bytes | Path, *, modified_ms: int | None = None) -> str:
        if not key.endswith(".ltx"):  # a probe of what the store can do
            return await super().put_if_absent(key, body, modified_ms=modified_ms)
        if self.armed:
            assert isinstance(body, bytes)
            self.armed, self.late = False, (key, body)
            raise TransientStorageError("timeout")
        if self.late is not None:
            await super().put_if_absent(*self.late)
            self.late = None
        return await super().put_if_absent(key, body, modified_ms=modified_ms)


@pytest.mark.logs("was already in the store")
async def test_own_file_that_arrives_after_a_restart_is_recognised(tmp_path: Path) -> None:
    storage = LateStorage()
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await database(app)
        await publish_and_vanish(app.database, store, app)
        await app("INSERT INTO t VALUES (1)")
        storage.armed = True
        with pytest.raises(TransientStorageError):
            await publish_once(app.database, store)
        await app("INSERT INTO t VALUES (2)")
        assert await publish_once(app.database, store) == 2
        assert await txids(store) == [1, 2, 3]
        assert await fold(store) == await app.image()


async def test_snapshot_at_another_level_counts_as_published(tmp_path: Path) -> None:
    """TXIDs are not used again when level 0 has been pruned below a snapshot."""
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await database(app)
        await publish_once(app.database, store)
        blob = await store.get(FileInfo(0, 1, 1, 0))
        await store.put(FileInfo(9, 1, 1, blob.size), blob.data, timestamp_ms=1)
        await store.delete([FileInfo(0, 1, 1, 0)])
        await app("INSERT INTO t VALUES (1)")
        await publish_once(app.database, store)
        assert await txids(store) == [2]
        assert await fold(store) == await app.image()


def test_exit_of_the_writer_leaves_the_wal_to_the_application(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    subprocess.run(["sqlite3", path, "PRAGMA journal_mode=wal; CREATE TABLE t (x)"], check=True, capture_output=True)
    url = f"file://{tmp_path}/replica"
    subprocess.run([litereplica_binary(), "replicate", path, url, "--once"], check=True, capture_output=True)
    out = subprocess.run(
        ["sqlite3", path, "INSERT INTO t VALUES (7); SELECT * FROM t"], check=True, capture_output=True
    )
    assert out.stdout == b"7\n"


async def test_a_large_wal_without_a_commit_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litereplica.writer.resume.resume_point.SCAN_UNDER_BARRIER_BYTES", 1000)
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await database(app)
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
        await app("PRAGMA cache_size = 5")
        await app("BEGIN")
        await app("INSERT INTO t VALUES (zeroblob(400000))")
        await app("ROLLBACK")
        assert (tmp_path / "app.db-wal").stat().st_size > 100_000
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()
        await app("INSERT INTO t VALUES (1)")
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()
