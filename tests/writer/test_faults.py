"""A store that fails: everything arrives, in order, once."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from litereplica.errors import AccessDenied, Unpublished
from litereplica.storage.base import Storage
from litereplica.storage.wrappers.delegate import Call, Operation, WrapperStorage
from litereplica.testing.faults import Fault, FaultAt, FaultStorage, Request, When
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.writer import backoff
from litereplica.writer.database import checkpoint
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.publish import outage_log
from litereplica.writer.replicator import open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from tests.helpers.app import Application
from tests.helpers.waiting import wait_until
from tests.writer.running import memory_store, publish_once, replicating, txids, until_published

T = TypeVar("T")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.logs("as planned")
async def test_every_commit_arrives_once_although_puts_fail_before_and_after_their_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(backoff, "RETRY_S", 0.01)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FRAMES", 20)
    rng = random.Random(seed)

    def plan(request: Request) -> Fault | None:
        if request.call.operation is not Operation.PUT_IF_ABSENT or rng.random() > 0.4:
            return None
        return Fault(rng.choice(list(When)))

    storage = FaultStorage(MemoryStorage(), lambda request: None)
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as replicator:
            storage.plan = plan
            for i in range(60):
                await app("INSERT INTO t VALUES (?)", i)
            await until_published(store, app)
            storage.plan = lambda request: None
            published = await txids(store)
            assert published == list(range(1, len(published) + 1))
            await wait_until(lambda: replicator.statistics().files == len(published))
        assert await txids(store) == published


async def test_store_that_is_away_is_told_of_and_commits_wait_in_the_wal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backoff, "RETRY_S", 0.05)
    storage = FaultStorage(MemoryStorage(), lambda request: None)
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as replicator:
            storage.plan = FaultAt(1, operation=Operation.PUT_IF_ABSENT, for_good=True)
            for i in range(20):
                await app("INSERT INTO t VALUES (?)", i)
            await wait_until(lambda: "cannot publish" in caplog.text)
            assert replicator.statistics().files == 1
            storage.plan = lambda request: None
            await until_published(store, app)


async def test_silent_store_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(outage_log, "SILENCE_S", 0.1)
    monkeypatch.setattr(outage_log, "LOOK_INTERVAL_S", 0.01)
    store = memory_store(LatencyStorage(MemoryStorage(), 0.3))
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store):
            assert "has not answered" in caplog.text
            await wait_until(lambda: "answers again" in caplog.text)


class SilentStorage(WrapperStorage):
    """Answers no put between `close` and `open`."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.waiting = 0  # puts that wait
        self._opened = trio.Event()
        self._opened.set()

    def close(self) -> None:
        self._opened = trio.Event()

    def open(self) -> None:
        self._opened.set()

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        if call.sent_bytes:
            self.waiting += 1
            try:
                await self._opened.wait()
            finally:
                self.waiting -= 1
        return await perform()


async def test_checkpoint_gives_up_the_barrier_when_the_store_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commits return while the store is silent: they cannot have waited for it."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_FRAMES", 20)
    storage = SilentStorage(MemoryStorage())
    store = memory_store(storage)
    slow, begin, armed = 0, SQLiteDatabase.begin_barrier, False
    record = checkpoint.Schedule.record

    def recorded(schedule: checkpoint.Schedule, now_s: float, outcome: checkpoint.Outcome) -> None:
        nonlocal slow
        record(schedule, now_s, outcome)
        slow += outcome is checkpoint.Outcome.SLOW

    def begin_and_commit_behind_it(database: SQLiteDatabase) -> bool:
        """The last commit before the barrier is published under it, and the store becomes silent."""
        nonlocal armed
        if armed:
            armed = False
            other.call("INSERT INTO t VALUES ('under the barrier')")
            trio.from_thread.run_sync(storage.close)
        return begin(database)

    monkeypatch.setattr(checkpoint.Schedule, "record", recorded)
    monkeypatch.setattr(SQLiteDatabase, "begin_barrier", begin_and_commit_behind_it)
    with Application(tmp_path / "app.db") as app, Application(tmp_path / "app.db") as other:
        await app("CREATE TABLE t (x)")
        await app("PRAGMA busy_timeout = 30000")
        async with replicating(app.database, store) as replicator:
            armed = True
            await app("INSERT INTO t VALUES (randomblob(100000))")
            await wait_until(lambda: storage.waiting > 0, within_s=30)
            await app.commits(20)  # raises if the barrier is held
            await wait_until(lambda: slow == 1, within_s=30)
            storage.open()
            await wait_until(lambda: replicator.statistics().checkpoints > 0, within_s=30)
            await until_published(store, app)


async def test_refusal_at_the_start_ends_it_at_once(tmp_path: Path) -> None:
    fault = Fault(error=AccessDenied)
    store = memory_store(FaultStorage(MemoryStorage(), FaultAt(1, fault=fault)))
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        with pytest.raises(ExceptionGroup) as caught:
            async with replicating(app.database, store):
                pytest.fail("it has started")
        assert caught.group_contains(AccessDenied)


async def test_stop_does_not_wait_for_a_store_that_is_silent(tmp_path: Path) -> None:
    storage = SilentStorage(MemoryStorage())
    storage.close()
    store = memory_store(storage)
    stop = trio.Event()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("INSERT INTO t VALUES (randomblob(1000000))")
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with (
                open_replicator(app.database, store, ReplicatorOptions(stop_limit_s=0.1)) as replicator,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(replicator.run, stop)
                await wait_until(lambda: storage.waiting > 0)
                stop.set()  # the store never answers
        (error,) = caught.value.exceptions
        assert isinstance(error, Unpublished)
        assert error.transactions is None, "nothing was published, so the number is not known"
        assert "out of time" in error.message
        store = memory_store()
        await publish_once(app.database, store)
        await until_published(store, app)


async def test_large_file_goes_by_way_of_the_disk_and_leaves_nothing_there(tmp_path: Path) -> None:
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await app("INSERT INTO t VALUES (randomblob(20000000))")
        await publish_once(app.database, store)
        await until_published(store, app)
    left = {item.name for item in (tmp_path / ".app.db-litereplica").iterdir()}
    assert left == {"lock", "checkpoint.json", "lineage.json", "pages.sums"}


async def test_huge_wal_is_cut_at_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from litereplica.writer.publish import publisher

    monkeypatch.setattr(publisher, "MAX_BATCH_BYTES", 100_000)
    store = memory_store()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await publish_once(app.database, store)
        for _ in range(30):
            await app("INSERT INTO t VALUES (randomblob(20000))")
        files = await publish_once(app.database, store)
        assert files > 5
        for info in await store.list_level(0):
            assert (await store.open(info)).header.wal_size <= 100_000 or info.max_txid == 1
        await until_published(store, app)
