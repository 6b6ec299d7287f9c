"""Maintenance among failures: of the store, of this machine, of the lease; cancelled, killed, and twice at a time."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from litereplica.compaction import merge
from litereplica.compaction.levels import Levels
from litereplica.compaction.retention import RetentionPolicy
from litereplica.errors import LeaseLost, TransientStorageError
from litereplica.format.decoder import decode_file
from litereplica.format.names import Layout
from litereplica.ltxstore.lease import Identity, ReplicaLease
from litereplica.ltxstore.lease_record import LOCK_KEY, Lease
from litereplica.ltxstore.plan import reachable_txids
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.file import FileStorage
from litereplica.storage.wrappers.delegate import Call, WrapperStorage
from litereplica.testing.faults import Fault, FaultAt, FaultStorage, Request, When
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage, StoredObject
from litereplica.times import HOUR_MS
from litereplica.types import FileInfo
from litereplica.writer import maintenance
from litereplica.writer.publish.lease_keeper import DatabaseLease, RootLease, clocks
from tests.helpers.waiting import wait_until
from tests.ltxstore.replicas import History, memory_store, publish
from tests.writer.simulated import Simulation

pytestmark = pytest.mark.slow

PRUNING = RetentionPolicy(l0_ms=1000, snapshot_ms=1000)
DEADLINE_S = 20.0
LEVELS = Levels((30_000, 60_000), 120_000)


async def assert_all_is_right(store: LTXStore, history: History) -> None:
    """Everything advertised can be restored and is what the database was; every file is a valid one."""
    files = await store.list_levels()
    assert set(reachable_txids(files)) == {info.max_txid for info in files}
    assert max(info.max_txid for info in files) == history.txid
    for info in files:
        file = decode_file((await store.get(info)).data)
        if info.min_txid == 1:
            assert b"".join(file.pages) == history.database(info.max_txid), str(info)
        else:
            assert (await store.get(info)).data == history.file(info.min_txid, info.max_txid), str(info)


def keys(replica: Simulation, level: int) -> list[str]:
    """Of a level's files, seen by the back door."""
    storage = replica.storage
    while isinstance(storage, WrapperStorage):
        storage = storage._inner
    assert isinstance(storage, MemoryStorage)
    return [key for key in storage.objects if key.startswith(f"{level:04x}/")]


async def filled(replica: Simulation, txids: int = 12) -> Simulation:
    for _ in range(txids):
        await replica.publish(noted=False)
    replica.time.true_ms += HOUR_MS
    return replica


# --- the store -------------------------------------------------------------------------------


@pytest.mark.parametrize("when", When)
async def test_request_that_fails_is_made_up_for(when: When) -> None:
    """Every request of two rounds in turn."""
    failures = 0
    for number in range(1, 90):
        storage = MemoryStorage()
        faults = FaultStorage(storage, lambda request: None)
        replica = Simulation(levels=LEVELS, policy=PRUNING, storage=faults)
        await filled(replica, 6)
        faults.plan = FaultAt(number + 6, fault=Fault(when, TransientStorageError))
        for _ in range(2):
            try:
                await replica.maintenance.run_due()
            except TransientStorageError:
                failures += 1
                await assert_all_is_right(memory_store(storage), replica.history)
                await replica.maintenance.run_due()
            faults.plan = lambda request: None
            await replica.publish()
            await replica.advance(200)
        await replica.advance(600)
        assert replica.maintenance.is_settled
        assert [len(await replica.files(level)) for level in (0, 1, 2, 9)] == [1, 1, 1, 1], number
        await assert_all_is_right(memory_store(storage), replica.history)
    assert failures >= 25


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "RETRY_S", 0.002)
    monkeypatch.setattr(maintenance, "RETRY_MAX_S", 0.02)


@pytest.mark.usefixtures("impatient")
async def test_trouble_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "litereplica.writer.maintenance")
    faults = FaultStorage(MemoryStorage(), lambda request: None)
    replica = await filled(Simulation(storage=faults))
    tries = 0

    def away(request: Request) -> Fault | None:
        nonlocal tries
        tries += 1
        return Fault() if request.call.key.startswith("0000/") else None

    faults.plan = away
    async with trio.open_nursery() as nursery:
        await nursery.start(replica.maintenance.run)
        await wait_until(lambda: tries > 60)
        assert keys(replica, 1) == []
        assert replica.maintenance.statistics().error != ""
        faults.plan = lambda request: None
        await wait_until(lambda: keys(replica, 3) != [] and replica.maintenance.statistics().error == "")
        nursery.cancel_scope.cancel()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot compact memory://test: list 0000/ failed before its effect, as planned; retrying",
        "maintenance of memory://test has recovered",
    ]


async def test_files_that_vanish_between_listing_and_merge_are_got_around(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ls#1270, ls#1307: somebody else has compacted and deleted since."""
    replica = await filled(Simulation(levels=Levels((30_000,), None)))
    list_levels, moved = LTXStore.list_levels, False

    async def stale(self: LTXStore, *, after: int = 0) -> list[FileInfo]:
        nonlocal moved
        files = await list_levels(self, after=after)
        if not moved:
            moved = True
            await publish(self, replica.history, 1, 1, 8)
            await self.delete([info for info in files if info.max_txid < 9])
        return files

    monkeypatch.setattr(LTXStore, "list_levels", stale)
    await replica.maintenance.run_due()
    assert await replica.files(1) == [(1, 8), (9, 12)]
    await assert_all_is_right(replica.store, replica.history)
    assert caplog.records == []


async def test_file_that_is_another_than_was_told_is_looked_at_again() -> None:
    replica = await filled(Simulation(levels=Levels((30_000,), None)))
    await replica.maintenance.run_due()
    told = await replica.publish(noted=False)
    replica.maintenance.note_published(FileInfo(0, told.min_txid, told.max_txid, told.size - 1))
    await replica.advance(60)
    assert await replica.files(1) == [(1, 12), (13, 13)]


@pytest.mark.usefixtures("impatient")
async def test_damaged_file_is_said_and_what_lies_before_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that depends on it is deleted; when it is a good one again, all goes on."""
    caplog.set_level("INFO", "litereplica.writer.maintenance")
    storage = MemoryStorage()
    replica = await filled(Simulation(storage=storage, levels=LEVELS, policy=PRUNING))
    key = f"0000/{7:016x}-{7:016x}.ltx"
    whole = storage.objects[key]
    storage.objects[key] = StoredObject(whole.data[:-1] + b"?", whole.modified_ms)
    async with trio.open_nursery() as nursery:
        await nursery.start(replica.maintenance.run)
        await wait_until(lambda: keys(replica, 9) != [])
        assert await replica.files(1) == [(1, 6)]
        assert [low for low, _ in await replica.files(0)][-6:] == [7, 8, 9, 10, 11, 12]
        assert replica.maintenance.statistics().error.startswith(key)
        nursery.cancel_scope.cancel()
    storage.objects[key] = whole
    replica.time.true_ms += 2 * HOUR_MS
    await replica.publish()
    await replica.advance(600)
    assert (await replica.files(9))[-1] == (1, 13)
    assert [record.levelname for record in caplog.records] == [
        "INFO",
        "WARNING",
        "WARNING",
        "INFO",
    ]  # read again, nothing after it can be restored, damaged, recovered
    assert not replica.maintenance.wants_snapshot
    await assert_all_is_right(replica.store, replica.history)


@pytest.mark.usefixtures("impatient")
async def test_no_room_for_temporary_files_is_said_and_tried_again(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "SPOOL_MEMORY_BYTES", 100)
    replica = await filled(Simulation(levels=Levels((30_000,), None)))
    spool_dir = tmp_path / "spool"
    replica.maintenance._spool_dir = spool_dir
    async with trio.open_nursery() as nursery:
        await nursery.start(replica.maintenance.run)
        await wait_until(lambda: replica.requests().get("get", 0) >= 5 * 12)
        assert "spool" in replica.maintenance.statistics().error
        spool_dir.mkdir()
        await wait_until(lambda: keys(replica, 1) != [])
        nursery.cancel_scope.cancel()
    assert await replica.files(1) == [(1, 12)]
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert list(spool_dir.iterdir()) == []


# --- the lease -------------------------------------------------------------------------------


def leased(storage: MemoryStorage) -> tuple[DatabaseLease, ReplicaLease]:
    lease = RootLease(storage, Identity("here:1", "h"), waits=False)
    return DatabaseLease(lease), lease


def take_away(storage: MemoryStorage) -> None:
    """Another writer has the lease from now on."""
    storage.objects[LOCK_KEY] = StoredObject(Lease(99, clocks().wall_ms + 60_000, "there:2", "t").encode(), 0)


async def test_without_the_lease_nothing_is_merged_or_deleted() -> None:
    storage = MemoryStorage()
    keeper, lease = leased(storage)
    replica = await filled(Simulation(storage=storage, lease=keeper, policy=PRUNING))
    await lease.ensure()
    lease._held = None  # it has lapsed while we were idle
    take_away(storage)
    before = dict(storage.objects)
    with trio.fail_after(DEADLINE_S), pytest.raises(LeaseLost):
        await replica.maintenance.run()
    assert storage.objects == before


async def test_lease_lost_in_the_middle_of_a_merge_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReplicaLease, "renewal_due_s", lambda self: 0.01)
    storage = MemoryStorage()
    keeper, lease = leased(storage)
    replica = await filled(Simulation(storage=LatencyStorage(storage, 0.05), lease=keeper, policy=PRUNING))

    async def lose() -> None:
        while LOCK_KEY not in storage.objects:  # noqa: ASYNC110 - another's store
            await trio.sleep(0.001)
        await trio.sleep(0.02)
        lease._held = None
        take_away(storage)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        with trio.fail_after(DEADLINE_S), pytest.raises(LeaseLost):
            await replica.maintenance.run()
    assert await replica.files(1) == []


async def test_files_are_listed_anew_when_another_may_have_had_the_lease() -> None:
    """It has compacted and pruned, to the point that what is in memory here would lead to wrong deletions."""
    storage = MemoryStorage()
    keeper, lease = leased(storage)
    replica = await filled(Simulation(storage=storage, lease=keeper))
    await replica.maintenance.run_due()
    for _ in range(5):
        await replica.publish()
    other = memory_store(storage)
    await publish(other, replica.history, 9, 1, 15)
    await other.delete([info for info in await other.list_levels() if info.max_txid < 15])
    lease._held = None
    del storage.objects[LOCK_KEY]  # given back
    listings = replica.requests()["list"]
    await replica.advance(60)
    assert lease.epoch > 1
    assert replica.requests()["list"] >= listings + 10
    assert replica.maintenance.statistics().files == len(await replica.all_files())
    await assert_all_is_right(memory_store(storage), replica.history)


# --- several at a time -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
async def test_two_maintainers_without_a_lease_do_no_harm(seed: int) -> None:
    """Interleaved at random at every request, each with its own idea of what there is."""
    rng = random.Random(seed)

    class Yielding(WrapperStorage):
        async def _around(self, call: Call, perform: Callable[[], Awaitable[object]]) -> object:  # type: ignore[override]
            for _ in range(rng.randint(0, 6)):
                await trio.lowlevel.checkpoint()
            return await perform()

    storage = MemoryStorage()
    one = Simulation(storage=Yielding(storage), levels=LEVELS, policy=PRUNING)
    two = Simulation(storage=Yielding(storage), levels=LEVELS, policy=PRUNING, time=one.time, history=one.history)
    for _ in range(12):
        for _ in range(rng.randint(1, 4)):
            info = await one.publish(noted=rng.random() < 0.9)
            if rng.random() < 0.9:
                two.maintenance.note_published(info)
        one.time.true_ms += rng.choice((5_000, 31_000, 125_000))
        async with trio.open_nursery() as nursery:
            for each in (one, two):
                nursery.start_soon(each.maintenance.run_due)
        await assert_all_is_right(memory_store(storage), one.history)
    assert one.maintenance.statistics().merges + two.maintenance.statistics().merges > 10


# --- the end of a process --------------------------------------------------------------------


async def test_cancelled_at_any_request_leaves_complete_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "SPOOL_MEMORY_BYTES", 100)
    spool_dir = tmp_path / "spool"
    spool_dir.mkdir()
    cancelled = 0
    for number in range(1, 60):
        scope = trio.CancelScope()

        class Cancelling(WrapperStorage):
            calls = 0

            async def _around(self, call: Call, perform: Callable[[], Awaitable[object]]) -> object:  # type: ignore[override]
                self.calls += 1
                if self.calls == number + 6:  # noqa: B023
                    scope.cancel()  # noqa: B023
                    await trio.lowlevel.checkpoint()
                return await perform()

        storage = MemoryStorage()
        replica = await filled(Simulation(levels=LEVELS, policy=PRUNING, storage=Cancelling(storage)), 6)
        replica.maintenance._spool_dir = spool_dir
        with scope:
            await replica.maintenance.run_due()
        cancelled += scope.cancelled_caught
        assert list(spool_dir.iterdir()) == []
        await assert_all_is_right(memory_store(storage), replica.history)
        await replica.maintenance.run_due()
        await assert_all_is_right(memory_store(storage), replica.history)
    assert cancelled >= 25


VICTIM = """
import os, signal, sys
from pathlib import Path
import trio
from litereplica.format.names import Layout
from litereplica.compaction import merge
from litereplica.compaction.levels import Levels
from litereplica.compaction.retention import RetentionPolicy
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.file import FileStorage
from litereplica.storage.wrappers.delegate import WrapperStorage
from litereplica.writer.maintenance import Maintenance
from litereplica.types import FileInfo
from litereplica.writer import maintenance
from litereplica.writer.publish.lease_keeper import LeaseKeeper

merge.SPOOL_MEMORY_BYTES = 100
root, spool, numbers = Path(sys.argv[1]), Path(sys.argv[2]), [int(each) for each in sys.argv[3:]]

class Killing(WrapperStorage):
    def __init__(self, inner, left):
        super().__init__(inner)
        self.left = left
    async def _around(self, call, perform):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return await perform()

for number in numbers:
    if os.fork() == 0:
        store = LTXStore(Killing(FileStorage(root), number), Layout.FILE)
        maintenance = Maintenance(
            store, levels=Levels((30_000, 60_000), 120_000), policy=RetentionPolicy(1, 1), lease=LeaseKeeper(),
            limiter=trio.CapacityLimiter(1), spool_dir=spool,
        )
        async def main():
            await maintenance.run_due()
        trio.run(main)
        os._exit(0)
    _, status = os.wait()
    left = {each.name for each in spool.iterdir()} - {"checked.json"}
    print(number, os.waitstatus_to_exitcode(status), len(left), flush=True)
"""
"""Maintains a replica in forks of its own, each killed at its n-th request."""


async def test_killed_at_any_request_leaves_nothing_behind(tmp_path: Path) -> None:
    history, store = History(), LTXStore(FileStorage(tmp_path / "replica"), Layout.FILE)
    spool_dir = tmp_path / "spool"
    spool_dir.mkdir()
    for txid in range(1, 9):
        history.commit(3, 1 + txid % 3)
        await publish(store, history, 0, txid, txid)
    numbers = [*range(11, 50, 2), 10_000]
    done = await trio.run_process(
        [sys.executable, "-c", VICTIM, str(tmp_path / "replica"), str(spool_dir), *map(str, numbers)],
        capture_stdout=True,
    )
    ends = [tuple(map(int, line.split())) for line in done.stdout.decode().splitlines()]
    assert [number for number, _, _ in ends] == numbers
    killed = [left for _, code, left in ends if code == -signal.SIGKILL]
    assert len(killed) >= 5
    assert max(killed) == 0
    assert ends[-1] == (10_000, 0, 0)
    assert [len(await store.list_level(level)) for level in (0, 1, 2, 9)] == [1, 1, 1, 1]
    await assert_all_is_right(store, history)
