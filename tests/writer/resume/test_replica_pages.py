"""After downtime, only the pages that differ from the replica are published, whatever is left of the local state."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from litereplica.compaction.compaction import snapshot
from litereplica.errors import UsageError
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.restore import restore
from litereplica.storage.wrappers.delegate import Operation
from litereplica.testing.faults import Fault, FaultStorage, Request
from litereplica.testing.ltx_files import read_file
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from litereplica.writer.database.published import Version
from litereplica.writer.publish import page_checksums
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.writer.running import memory_store, page_counts, publish_once, replicating, txids, until_published

pytestmark = pytest.mark.slow

ROWS = 2000
SUMS = ".app.db-litereplica/pages.sums"


async def published(app: Application, store: LTXStore) -> None:
    """A database of some 160 pages, published, and then changed a little and checkpointed."""
    await app("CREATE TABLE t (x)")
    await app(
        "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "SELECT randomblob(300) FROM n",
        ROWS,
    )
    await publish_once(app.database, store)
    await change(app)


async def change(app: Application) -> None:
    await app("UPDATE t SET x = randomblob(300) WHERE rowid IN (7, 1500)")
    await app("PRAGMA wal_checkpoint(TRUNCATE)")


async def test_pages_grown_and_freed_while_stopped_arrive(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db", setup="PRAGMA auto_vacuum = full;") as app:
        await published(app, store)
        for statement in ("DELETE FROM t WHERE rowid > 1000", "INSERT INTO t VALUES (randomblob(900000))"):
            await app(statement)
            await app("PRAGMA wal_checkpoint(TRUNCATE)")
            assert await publish_once(app.database, store) == 1
            assert await fold(store) == await app.image()
        assert max((await page_counts(store))[1:]) < 240


def lose(sums: Path) -> None:
    sums.unlink()


def cut(sums: Path) -> None:
    sums.write_bytes(sums.read_bytes()[:500])


def overwrite_header(sums: Path) -> None:
    sums.write_bytes(b"x" * 64 + sums.read_bytes()[64:])


def empty(sums: Path) -> None:
    sums.write_bytes(b"")


@pytest.mark.parametrize("damage", [lose, cut, overwrite_header, empty])
async def test_lost_or_damaged_sums_are_made_from_the_replica(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        damage(tmp_path / SUMS)
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()
        assert (await page_counts(store))[1] < (110 if damage is cut else 10)


async def test_sums_of_an_earlier_version_are_carried_on(tmp_path: Path) -> None:
    store = memory_store()
    sums = tmp_path / SUMS
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        old = sums.read_bytes()
        for _ in range(3):
            await change(app)
            await publish_once(app.database, store)
        sums.write_bytes(old)
        await change(app)
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()
        assert max((await page_counts(store))[1:]) < 10


async def test_sums_that_are_one_file_behind_are_carried_on_at_the_start(tmp_path: Path) -> None:
    """As after a kill between a file's acknowledgement and the writing of its sums."""
    store = memory_store()
    sums = tmp_path / SUMS
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        behind = sums.read_bytes()
        await app("INSERT INTO t VALUES (1)")
        await publish_once(app.database, store)
        caught_up = sums.read_bytes()
        sums.write_bytes(behind)
        await publish_once(app.database, store)
        assert sums.read_bytes() == caught_up != behind


@pytest.mark.logs("publishing it as the newest state", "is gone: beginning anew")
async def test_sums_of_another_replica_with_the_same_txid_are_not_used(tmp_path: Path) -> None:
    one, other = memory_store(), memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, one)
        await publish_once(app.database, one)
        await publish_once(app.database, other)
        await change(app)
        await publish_once(app.database, other)
        await change(app)
        assert await txids(one) == await txids(other) == [1, 2]
        await publish_once(app.database, one, take_over=True)
        assert await fold(one) == await app.image()


@pytest.mark.logs("publishing it as the newest state", "is gone: beginning anew")
async def test_sums_of_another_replica_are_not_carried_on(tmp_path: Path) -> None:
    one, other = memory_store(), memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, one)
        for _ in range(2):
            await publish_once(app.database, one)
            await change(app)
        await publish_once(app.database, other)
        await app("UPDATE t SET x = 1 WHERE rowid = 700")
        await publish_once(app.database, other)
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
        await publish_once(app.database, one, take_over=True)
        assert await fold(one) == await app.image()


async def test_sums_are_not_trusted_after_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = page_checksums.PageChanges(0, np.empty(0, np.uint32), np.empty(0, np.uint64))
    version = Version(1, 7)

    def opened() -> page_checksums.PageChecksums:
        sums = page_checksums.PageChecksums(tmp_path / "pages.sums")
        sums.open(inode=1, page_size=4096)
        return sums

    first = opened()
    first.replace(version, changes)
    assert opened().version == version
    monkeypatch.setattr(page_checksums, "_boot_id", lambda: b"another boot....")
    assert opened().version is None
    first.close()
    assert opened().version == version


async def test_sums_whose_writing_was_cut_short_hold_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = page_checksums.PageChanges(1, np.array([1], np.uint32), np.array([5], np.uint64))
    sums = page_checksums.PageChecksums(tmp_path / "pages.sums")
    sums.open(inode=1, page_size=4096)
    sums.replace(Version(1, 7), changes)

    def killed(fd: int, changes: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(page_checksums, "_write_checksums", killed)
    with pytest.raises(KeyboardInterrupt):
        sums.record(Version(1, 7), Version(2, 8), changes)
    again = page_checksums.PageChecksums(tmp_path / "pages.sums")
    again.open(inode=1, page_size=4096)
    assert again.version is None


async def test_nothing_is_published_when_nothing_differs(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        await publish_once(app.database, store)
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(tmp_path / "app.db", tmp_path / "copy.db")
    assert await publish_once(tmp_path / "copy.db", store) == 0
    with Application(tmp_path / "copy.db") as app:
        await app("INSERT INTO t VALUES (1)")
        assert await publish_once(app.database, store) == 1
        assert await fold(store) == await app.image()
    assert (await page_counts(store))[-1] < 10


async def test_nothing_is_published_when_nothing_differs_from_a_replica_that_shrank(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        await app("DELETE FROM t WHERE rowid > 500")
        await app("VACUUM")
        await publish_once(app.database, store)
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(tmp_path / "app.db", tmp_path / "copy.db")
    assert await publish_once(tmp_path / "copy.db", store) == 0


async def test_next_change_is_small_when_nothing_differed_from_a_replica_without_level_0(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        (tmp_path / ".app.db-litereplica" / "checkpoint.json").unlink()
        await publish_once(app.database, store)
        await move_to_snapshot(store)
        async with replicating(app.database, store):
            assert await txids(store) == []
            await app("INSERT INTO t VALUES (1)")
            await until_published(store, app)
        assert (await page_counts(store))[0] < 10


async def test_start_after_a_difference_goes_on_from_the_wal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Although the page of the WAL's last frame is as it was published."""
    caplog.set_level("INFO")
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        await publish_once(app.database, store)
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
        (tmp_path / ".app.db-litereplica" / "checkpoint.json").unlink()
        await app("CREATE TABLE u AS SELECT x FROM t WHERE rowid = 9")
        await app("UPDATE t SET x = zeroblob(300) WHERE rowid = 9")
        await app("UPDATE t SET x = (SELECT x FROM u) WHERE rowid = 9")
        await publish_once(app.database, store)
        assert "publishing what differs" in caplog.text
        await publish_once(app.database, store)
        assert "resumed from the WAL" in caplog.text


@pytest.mark.logs("was replaced while it was not replicated", "and not by its WAL")
async def test_older_copy_in_the_databases_place_is_published_as_what_differs(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
    shutil.copyfile(tmp_path / "app.db", tmp_path / "old.db")
    with Application(tmp_path / "app.db") as app:
        await change(app)
        await publish_once(app.database, store)
    (tmp_path / "old.db").rename(tmp_path / "app.db")
    (tmp_path / "app.db-wal").unlink(missing_ok=True)
    await publish_once(tmp_path / "app.db", store)
    assert await fold(store) == (tmp_path / "app.db").read_bytes()
    assert max((await page_counts(store))[1:]) < 10


@pytest.mark.logs("was replaced while it was not replicated", "and not by its WAL")
async def test_replaced_database_that_has_the_old_wal_is_compared(tmp_path: Path) -> None:
    """SQLite takes a WAL for that of the file beside it, whatever file that is."""
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        shutil.copyfile(tmp_path / "app.db", tmp_path / "old.db")
        await app("UPDATE t SET x = randomblob(300) WHERE rowid = 900")
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
        await app("UPDATE t SET x = randomblob(300) WHERE rowid = 1800")
        await publish_once(app.database, store)
        app.kill()
    (tmp_path / "old.db").rename(tmp_path / "app.db")
    (tmp_path / "app.db-shm").unlink()
    await publish_once(tmp_path / "app.db", store)
    with Application(tmp_path / "app.db") as app:
        assert await fold(store) == await app.image()


async def test_replica_without_level_0_is_compared(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        await move_to_snapshot(store)
        await publish_once(app.database, store)
        await app("INSERT INTO t VALUES (1)")
        await publish_once(app.database, store)
        assert await txids(store) == [2, 3]
        assert await fold(store) == await app.image()
        assert max(await page_counts(store)) < 10


async def test_replica_without_level_0_and_of_another_page_size_is_refused(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "a.db") as a, Application(tmp_path / "b.db", page_size=512) as b:
        await b("CREATE TABLE t (x)")
        await published(a, store)
        await move_to_snapshot(store)
        with pytest.raises(UsageError, match=r"pages of 512 bytes, the replica .* of 4096"):
            await publish_once(b.database, store)


async def move_to_snapshot(store: LTXStore) -> None:
    await snapshot(store)
    await store.delete(await store.list_level(0))


async def damaged(store: LTXStore) -> None:
    blob = await store.get(FileInfo(0, 1, 1, 0))
    body = bytearray(blob.data)
    body[len(body) // 2] ^= 1
    await store.storage.put(store.key(FileInfo(0, 1, 1, 0)), bytes(body))


async def incomplete(store: LTXStore) -> None:
    await store.delete([FileInfo(0, 1, 1, 0)])


@pytest.mark.parametrize("spoil", [damaged, incomplete])
async def test_whole_database_is_published_when_the_replica_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[LTXStore], Awaitable[None]]
) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        await publish_once(app.database, store)
        (tmp_path / SUMS).unlink()
        await spoil(store)
        await change(app)
        await publish_once(app.database, store)
        whole = await read_file(store, (await store.list_level(0))[-1])
        assert len(whole.index) == whole.header.commit
        assert b"".join(whole.pages) == await app.image()
        assert "cannot read the pages of the replica" in caplog.text


async def test_state_that_cannot_be_written_does_not_keep_from_publishing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = memory_store()
    (tmp_path / SUMS).mkdir(parents=True)
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        await publish_once(app.database, store)
        assert await fold(store) == await app.image()
        assert (await page_counts(store))[1] < 10
    assert "pages.sums: Is a directory" in caplog.text.replace("[Errno 21] ", "").replace(f"{tmp_path}/", "")


async def test_replica_is_read_only_when_a_difference_is_needed(tmp_path: Path) -> None:
    reads: list[str] = []

    def plan(request: Request) -> Fault | None:
        if request.call.operation is Operation.GET:
            reads.append(request.call.key)
        return None

    store = memory_store(FaultStorage(MemoryStorage(), plan))
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        await publish_once(app.database, store)
        (tmp_path / SUMS).unlink()
        await app("INSERT INTO t VALUES (1)")
        reads.clear()
        await publish_once(app.database, store)
        assert {key[-8:] for key in reads} == {"0002.ltx"}
        reads.clear()
        await change(app)
        await publish_once(app.database, store)
        assert "0001.ltx" in {key[-8:] for key in reads}
        assert await fold(store) == await app.image()


async def test_what_was_published_can_be_restored(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await published(app, store)
        await publish_once(app.database, store)
        await restore(store, tmp_path / "restored.db")
        assert (tmp_path / "restored.db").read_bytes() == await app.image()
