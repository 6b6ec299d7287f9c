"""Requests to publish now: what was committed before is in the replica when they are answered."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from litereplica.storage.wrappers import Operation
from litereplica.testing.faults import Fault, FaultStorage, Request
from litereplica.testing.memory import MemoryStorage
from litereplica.writer.replicator import open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from litereplica.writer.sync_requests import SyncRequests
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.writer.running import memory_store, publish_once, replicating, txids

AN_HOUR_S = 3600.0


@pytest.mark.slow
async def test_request_is_answered_when_all_that_was_committed_before_is_published(tmp_path: Path) -> None:
    store, syncs = memory_store(), SyncRequests()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, store, sync_interval_s=AN_HOUR_S, syncs=syncs):
            for value in range(20):
                await app("INSERT INTO t VALUES (?)", value)
                request = syncs.add()
                with trio.fail_after(10):
                    await request.done.wait()
                assert await fold(store) == await app.image()
                assert (await txids(store))[-1] == request.txid == value + 2
            again = syncs.add()
            await again.done.wait()
            assert again.txid == request.txid, "nothing new"


def fail_puts(request: Request) -> Fault | None:
    is_put = request.call.operation is Operation.PUT_IF_ABSENT and (request.call.key or "").endswith(".ltx")
    return Fault() if is_put else None


@pytest.mark.slow
@pytest.mark.logs("trying again")
async def test_file_that_was_prepared_before_is_not_taken_for_what_was_committed_since(tmp_path: Path) -> None:
    """The first put of a start fails, the application commits more, and a request is made."""
    storage, syncs, stop = FaultStorage(MemoryStorage(), lambda request: None), SyncRequests(), trio.Event()
    store = memory_store(storage)
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        await publish_once(app.database, store)
        await app("INSERT INTO t VALUES (1)")
        storage.plan = fail_puts
        options = ReplicatorOptions(syncs=syncs)
        async with open_replicator(app.database, store, options) as replicator, trio.open_nursery() as nursery:
            nursery.start_soon(replicator.run, stop)
            with trio.fail_after(10):
                while not replicator.statistics().unpublished_bytes:  # noqa: ASYNC110 - nothing tells
                    await trio.sleep(0.01)
                await trio.sleep(0.05)  # it looks at the WAL once more, for the statistics
                await app("INSERT INTO t VALUES (2)")
                storage.plan = lambda request: None
                request = syncs.add()  # ends the pause as well
                await request.done.wait()
            assert await fold(store) == await app.image()
            stop.set()


async def test_requests_that_could_not_be_answered_come_first_and_settled_ones_are_gone() -> None:
    syncs = SyncRequests()
    first, second = syncs.add(), syncs.add()
    taken = syncs.take()
    third = syncs.add()
    syncs.put_back(taken)
    syncs.settle(second, 5)
    assert (second.done.is_set(), second.txid) == (True, 5)
    assert list(syncs.take()) == [first, third]
    syncs.settle(third, 6)
    assert not third.done.is_set(), "somebody has taken it"
    assert not syncs.is_wanted
    syncs.wake()
    await syncs.until_wakened()
    with trio.move_on_after(0) as scope:
        await syncs.until_wakened()
    assert scope.cancelled_caught
