"""Writers with a lease: one publishes, the others stay away, and a standby takes over."""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from litereplica.errors import ConditionsIgnored, ConflictError, LeaseHeld, LeaseLost
from litereplica.ltxstore import lease as lease_module
from litereplica.ltxstore.lease import TERM_MS, Identity, Moment
from litereplica.ltxstore.lease_record import LOCK_KEY, Lease
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.wrappers import MeteredStorage, Operation
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage, StoredObject
from litereplica.writer.database.state_directory import StateDirectory
from litereplica.writer.publish import lease_keeper
from litereplica.writer.publish.lease_keeper import DatabaseLease, LeaseMode, RootLease
from litereplica.writer.replicator import Replicator, open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from tests.helpers.app import Application
from tests.helpers.careless import Careless
from tests.helpers.waiting import wait_until
from tests.writer.running import memory_store, txids, until_published

pytestmark = pytest.mark.slow

DEADLINE_S = 20.0
SHORT_TERM_MS = 300
"""A lease that lapses while a test waits."""


@pytest.fixture
def short_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "TERM_MS", SHORT_TERM_MS)
    monkeypatch.setattr(lease_module, "RENEW_BEFORE_MS", 2 * SHORT_TERM_MS // 3)
    monkeypatch.setattr(lease_keeper, "STAND_BY_INTERVAL_S", 0.05)


@asynccontextmanager
async def replicating(
    database: Path, store: LTXStore, *, mode: LeaseMode = LeaseMode.HOLD
) -> AsyncIterator[tuple[Replicator, list[Exception]]]:
    """A replicator that runs, and the error that ended it."""
    stop, errors = trio.Event(), list[Exception]()

    async def run(replicator: Replicator) -> None:
        try:
            await replicator.run(stop)
        except Exception as exc:
            errors.append(exc)

    async with (
        open_replicator(database, store, ReplicatorOptions(lease=mode, sync_interval_s=0.01)) as replicator,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run, replicator)
        yield replicator, errors
        stop.set()


def lease_in(storage: MemoryStorage) -> Lease:
    return Lease.decode(storage.objects[LOCK_KEY].data)


def foreign_lease(*, left_s: float) -> StoredObject:
    expires_ms = time.time_ns() // 1_000_000 + round(left_s * 1000)
    return StoredObject(Lease(7, expires_ms, "elsewhere:1").encode(), 0)


# --- one replicator


async def test_holder_and_generation_are_told_and_the_lease_is_gone_after_a_clean_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    storage = MemoryStorage()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, memory_store(storage)) as (replicator, errors):
            await wait_until(lambda: replicator.statistics().files == 1)
            lease = replicator.statistics().lease
            assert lease == lease_in(storage)
            assert lease.owner.endswith(f":{os.getpid()}")
            assert f"holding the lease of memory://test as {lease.owner}, generation 1" in caplog.text
    assert not errors
    assert LOCK_KEY not in storage.objects
    assert "released the lease" in caplog.text


@pytest.mark.usefixtures("short_term")
async def test_idle_writer_makes_no_request_and_takes_its_lapsed_lease_with_the_next_change(tmp_path: Path) -> None:
    memory = MemoryStorage()
    storage = MeteredStorage(memory)
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as (replicator, errors):
            await wait_until(lambda: replicator.statistics().files == 1)
            requests = storage.statistics().requests
            await wait_until(lambda: replicator.statistics().lease is None)
            await trio.sleep(2 * SHORT_TERM_MS / 1000)
            assert storage.statistics().requests == requests
            await app("INSERT INTO t VALUES (1)")
            await wait_until(lambda: replicator.statistics().files == 2)
            assert storage.statistics().requests == requests + 2, "the lease and the file"
            assert lease_in(memory).generation == 2
    assert not errors


@pytest.mark.usefixtures("short_term")
async def test_writer_that_has_lost_its_lease_puts_nothing_more_and_stops(tmp_path: Path) -> None:
    storage = MemoryStorage()
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as (replicator, errors):
            await wait_until(lambda: replicator.statistics().files == 1 and replicator.statistics().lease is None)
            storage.objects[LOCK_KEY] = foreign_lease(left_s=30)
            await app("INSERT INTO t VALUES (1)")
            await wait_until(lambda: bool(errors))
        assert await txids(store) == [1]
    (error,) = errors
    assert isinstance(error, LeaseLost)
    assert "elsewhere:1 (generation 7)" in str(error)
    assert lease_in(storage).owner == "elsewhere:1"


@pytest.mark.usefixtures("short_term")
async def test_writer_that_slept_does_not_reuse_a_txid_whose_file_was_compacted_meanwhile(tmp_path: Path) -> None:
    """Another took over, published, compacted, deleted its L0 files, and went: the name of our next file is free."""
    storage = MemoryStorage()
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as (replicator, errors):
            await wait_until(lambda: replicator.statistics().files == 1 and replicator.statistics().lease is None)
            storage.objects["0001/0000000000000001-0000000000000005.ltx"] = StoredObject(b"", 0)
            del storage.objects[LOCK_KEY]
            await app("INSERT INTO t VALUES (1)")
            await wait_until(lambda: bool(errors))
        assert await txids(store) == [1]
    assert isinstance(errors[0], ConflictError)
    assert "another writer has published TXID 0000000000000005" in str(errors[0])


@pytest.mark.usefixtures("short_term")
async def test_writer_goes_on_when_another_held_the_lease_and_published_nothing(tmp_path: Path) -> None:
    storage = MemoryStorage()
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store) as (replicator, errors):
            await wait_until(lambda: replicator.statistics().files == 1 and replicator.statistics().lease is None)
            storage.objects[LOCK_KEY] = foreign_lease(left_s=-1)
            await app("INSERT INTO t VALUES (1)")
            await until_published(store, app)
            assert lease_in(storage).generation == 8
    assert not errors


async def test_store_that_ignores_conditions_is_refused_before_anything_is_published(tmp_path: Path) -> None:
    storage = MemoryStorage()
    store = memory_store(Careless(storage, Operation.PUT_IF_MATCH))
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with open_replicator(app.database, store, ReplicatorOptions(lease=LeaseMode.HOLD)) as replicator:
            with pytest.raises(ConditionsIgnored, match="--no-lease"):
                await replicator.publish_once()
        assert not storage.objects
        async with open_replicator(app.database, store, ReplicatorOptions(lease=LeaseMode.OFF)) as replicator:
            await replicator.publish_once()
        assert await txids(store) == [1]
        assert LOCK_KEY not in storage.objects


async def test_lease_of_another_keeps_a_writer_from_its_database(tmp_path: Path) -> None:
    storage = MemoryStorage()
    storage.objects[LOCK_KEY] = foreign_lease(left_s=30)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with open_replicator(
            app.database, memory_store(storage), ReplicatorOptions(lease=LeaseMode.HOLD)
        ) as replicator:
            with pytest.raises(LeaseHeld, match="elsewhere:1"):
                await replicator.publish_once()
    assert list(storage.objects) == [LOCK_KEY]


@pytest.mark.usefixtures("short_term")
async def test_standby_begins_when_the_lease_has_expired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    storage = MemoryStorage()
    storage.objects[LOCK_KEY] = foreign_lease(left_s=3)
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store, mode=LeaseMode.WAIT) as (replicator, errors):
            await wait_until(lambda: "standing by: memory://test is leased to elsewhere:1" in caplog.text)
            assert not await txids(store)
            await until_published(store, app)
            assert replicator.statistics().lease is not None
    assert not errors
    assert caplog.text.count("standing by") == 1


async def test_standby_that_is_stopped_ends_at_once(tmp_path: Path) -> None:
    storage = MemoryStorage()
    storage.objects[LOCK_KEY] = foreign_lease(left_s=30)
    with Application(tmp_path / "app.db") as app, trio.fail_after(20):
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, memory_store(storage), mode=LeaseMode.WAIT) as (_, errors):
            await trio.sleep(0.1)
    assert not errors
    assert list(storage.objects) == [LOCK_KEY]


def test_writer_keeps_its_id_and_a_copy_of_its_state_does_not(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "app.db") as state:
        first = state.writer_id()
    with StateDirectory(tmp_path / "app.db") as state:
        assert state.writer_id() == first
    copy = tmp_path / ".copy.db-litereplica"
    copy.mkdir()
    (copy / "writer.json").write_bytes((state.path / "writer.json").read_bytes())
    with StateDirectory(tmp_path / "copy.db") as state:
        assert state.writer_id() != first
        (state.path / "writer.json").write_text("{")
        assert re.fullmatch("[0-9a-f]{32}", state.writer_id())


# --- a lease alone, in trio's virtual time


def virtual_now() -> Moment:
    return Moment(round(trio.current_time() * 1000), trio.current_time())


async def nothing() -> None:
    """Publishes nothing, and finds nothing wrong."""


async def test_lease_is_renewed_during_a_put_that_takes_minutes(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    lease = RootLease(storage, Identity("here:1", "a"), waits=False, now=virtual_now)
    right = DatabaseLease(lease)
    generations = set()

    async def slow() -> None:
        for _ in range(300):
            await trio.sleep(1)
            held = right.held()
            assert held is not None, "it has lapsed"
            generations.add(held.generation)

    await right.begin()
    async with right.kept():
        await slow()
        await right.put(slow, verify=trio.sleep_forever)  # nobody can have published since it began
    assert generations == {1}
    await right.end()
    assert not storage.objects


async def test_put_is_given_up_when_the_lease_is_lost_meanwhile(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    lease = RootLease(storage, Identity("here:1", "a"), waits=False, now=virtual_now)
    right = DatabaseLease(lease)
    await right.begin()
    other = Lease(2, round(trio.current_time() * 1000) + 10 * TERM_MS, "there:1", "b")
    storage.objects[LOCK_KEY] = StoredObject(other.encode(), 0)
    started_s = trio.current_time()
    with pytest.raises(LeaseLost):
        await right.put(trio.sleep_forever, verify=nothing)
    assert trio.current_time() - started_s <= TERM_MS / 1000
    await right.end()
    assert lease_in(storage) == other


async def test_error_of_a_put_arrives_as_it_is(autojump_clock: MockClock) -> None:
    storage = LatencyStorage(MemoryStorage(), 0.1)
    lease = RootLease(storage, Identity("here:1", "a"), waits=False, now=virtual_now)
    right = DatabaseLease(lease)

    async def refused() -> None:
        await trio.sleep(25)
        raise ConflictError("as it is")

    with pytest.raises(ConflictError, match="as it is"):
        async with right.kept():
            await right.put(refused, verify=nothing)
