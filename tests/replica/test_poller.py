"""The polling loop: its schedule, its patience with a failing store, and what it says."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from litereplica.errors import PageSizeChanged, TransientStorageError
from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.next_files import LIST_INTERVAL_S
from litereplica.replica.poll_schedule import PollSchedule
from litereplica.replica.poller import MAX_BACK_OFF_S, run_poller
from litereplica.replica.snapshot import Update
from litereplica.storage.wrappers import MeteredStorage, Operation
from litereplica.testing.faults import Fault, FaultStorage
from tests.helpers.history import History


class Bench:
    def __init__(self) -> None:
        self.history = History()
        self.faults = FaultStorage(self.history.storage, lambda request: None)
        self.meter = MeteredStorage(self.faults)
        self.updates: list[Update] = []

    @asynccontextmanager
    async def polling(self, interval_s: float = 1.0) -> AsyncIterator[Replica]:
        await self.history.commit({1: b"a"})
        async with open_replica(LTXStore(self.meter, Layout.S3)) as replica, trio.open_nursery() as nursery:

            async def start(task_status: trio.TaskStatus[None]) -> None:
                await run_poller(replica, self.apply, schedule=PollSchedule(interval_s), task_status=task_status)

            await nursery.start(start)
            yield replica
            nursery.cancel_scope.cancel()

    async def apply(self, update: Update | None) -> None:
        if update is not None:
            self.updates.append(update)

    def fail(self, failing: bool) -> None:
        self.faults.plan = lambda request: Fault() if failing else None

    def gets(self) -> int:
        return self.meter.statistics().by_operation[Operation.GET].requests


async def test_each_update_is_applied_within_an_interval(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    async with bench.polling() as replica:
        for n in range(3):
            await bench.history.commit({1: b"%d" % n})
            await trio.sleep(1.1)
            assert bench.updates[-1].snapshot.pos.txid == n + 2
        assert bench.updates[-1].snapshot is replica.snapshot
        assert len(bench.updates) == 3


async def test_the_next_poll_waits_until_the_update_has_been_applied(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    running = 0

    async def slow(update: Update | None) -> None:
        nonlocal running
        if update is None:
            return
        running += 1
        assert running == 1
        await trio.sleep(5)
        bench.updates.append(update)
        running -= 1

    bench.apply = slow  # type: ignore[method-assign]
    async with bench.polling():
        for n in range(4):
            await bench.history.commit({1: b"%d" % n})
            await trio.sleep(2)
        await trio.sleep(20)
        assert [update.snapshot.pos.txid for update in bench.updates] == [2, 5]


async def test_what_is_left_from_before_can_be_applied_when_a_poll_brings_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    brought: list[Update | None] = []

    async def apply(update: Update | None) -> None:
        brought.append(update)

    bench.apply = apply  # type: ignore[method-assign]
    async with bench.polling():
        await trio.sleep(3.5)
    assert brought == [None] * 4


@pytest.mark.parametrize("outage_s", [2.5, 10.0, 60.3, 600.7, 601.4])
@pytest.mark.logs("polling fails")
async def test_after_an_outage_all_is_well_within_two_polls(
    autojump_clock: trio.testing.MockClock, outage_s: float
) -> None:
    bench = Bench()
    async with bench.polling():
        bench.fail(True)
        await trio.sleep(outage_s)
        await bench.history.commit({1: b"b"})
        bench.fail(False)
        await trio.sleep(2.1)
        assert bench.updates[-1].snapshot.pos.txid == 2


async def test_a_failing_store_is_asked_on_and_on_and_said_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench()
    async with bench.polling():
        caplog.clear()
        bench.fail(True)
        await trio.sleep(600)
        before = bench.gets()
        await trio.sleep(600)
        assert 600 / MAX_BACK_OFF_S - 1 <= bench.gets() - before <= 600 / MAX_BACK_OFF_S + 1
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        await bench.history.commit({1: b"b"})
        bench.fail(False)
        await trio.sleep(2.1)  # two intervals
        assert bench.updates[-1].snapshot.pos.txid == 2
        assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
        before = bench.gets()
        await trio.sleep(10)
        assert bench.gets() - before >= 9


async def test_the_first_failure_is_the_callers(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    async with open_replica(LTXStore(bench.meter, Layout.S3)) as replica:
        bench.fail(True)
        with pytest.raises(TransientStorageError):
            await run_poller(replica, bench.apply, schedule=PollSchedule(1))


async def test_no_progress_although_there_is_more_is_said_once_with_the_reason(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench()
    async with bench.polling():
        caplog.clear()
        for n in range(3):
            await bench.history.commit({1: b"%d" % n}, publish=n > 0)
        await trio.sleep(3 * LIST_INTERVAL_S)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "0000000000000001" in record.getMessage()
        assert "0000000000000004" in record.getMessage()
        await bench.history.publish(1, 2, 3)
        await trio.sleep(LIST_INTERVAL_S + 1)
        assert bench.updates[-1].snapshot.pos.txid == 4
        assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


async def test_a_change_of_the_page_size_ends_the_loop(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()

    async def run() -> None:
        async with bench.polling():
            bench.history.page_size = 1024
            await bench.history.commit({1: b"b"})
            await trio.sleep(2)

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert caught.group_contains(PageSizeChanged, depth=None)


@pytest.mark.logs("polling fails")
async def test_an_error_of_the_store_while_applying_is_tried_again_like_one_while_polling(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    calls: list[Update | None] = []

    async def fails_twice(update: Update | None) -> None:
        calls.append(update)
        if 2 <= len(calls) <= 3:
            raise TransientStorageError("no page")

    bench.apply = fails_twice  # type: ignore[method-assign]
    async with bench.polling():
        await bench.history.commit({1: b"b"})
        await trio.sleep(30)
        assert calls[1] is not None
        assert len(calls) > 10
