"""How often a replica is polled while nobody has a file open, and what an open then waits for."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from litereplica.format.names import Layout
from litereplica.fuse.live_service import schedule_of
from litereplica.fuse.options import MountOptions
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.patience import MAX_INTERVAL_S
from litereplica.replica.poll_schedule import (
    FRESHEN_LIMIT_S,
    GRACE_S,
    PAUSE_AFTER_S,
    PollSchedule,
    PollState,
    pause_s,
)
from litereplica.replica.poller import run_poller
from litereplica.replica.snapshot import Update
from litereplica.storage.wrappers import MeteredStorage, Operation
from litereplica.testing.faults import FaultStorage, Request
from litereplica.testing.latency import LatencyStorage
from tests.helpers.history import History


@pytest.mark.parametrize(
    ("idle_s", "interval_s", "max_interval_s", "expected"),
    [
        (0, 1, 30, 1),
        (GRACE_S - 1, 1, 30, 1),
        (GRACE_S, 1, 30, 6),
        (GRACE_S, 10, 30, 10),
        (200, 1, 30, 20),
        (500, 1, 30, 30),
        (500, 40, 30, 40),
        (PAUSE_AFTER_S, 1, 30, math.inf),
        (PAUSE_AFTER_S, 1, 1, 1),
        (PAUSE_AFTER_S, 1, 0.5, 1),
    ],
)
def test_the_pause_grows_with_the_time_that_nobody_has_looked(
    idle_s: float, interval_s: float, max_interval_s: float, expected: float
) -> None:
    assert pause_s(idle_s, interval_s, max_interval_s=max_interval_s, pause_after_s=PAUSE_AFTER_S) == expected


class Bench:
    """A replica polled every second, with `handles` open files."""

    def __init__(self) -> None:
        self.history = History()
        self.latency = LatencyStorage(self.history.storage, 0.0)
        self.faults = FaultStorage(self.latency, lambda request: None)
        self.meter = MeteredStorage(self.faults)
        self.handles = 0
        self.schedule = PollSchedule(1.0, in_use=lambda: self.handles > 0)

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[Replica]:
        await self.history.commit({1: b"a"})
        async with open_replica(LTXStore(self.meter, Layout.S3)) as replica, trio.open_nursery() as nursery:

            async def start(task_status: trio.TaskStatus[None]) -> None:
                await run_poller(replica, self.apply, schedule=self.schedule, task_status=task_status)

            await nursery.start(start)
            yield replica
            nursery.cancel_scope.cancel()

    async def apply(self, update: Update | None) -> None:
        await trio.lowlevel.checkpoint()

    async def open_file(self) -> None:
        await self.schedule.freshen()
        self.handles += 1

    def requests(self) -> int:
        counts = self.meter.statistics().by_operation
        return sum(counts[operation].requests for operation in (Operation.GET, Operation.LIST))

    async def polls_in(self, replica: Replica, seconds: float) -> int:
        before = replica.statistics().polls
        await trio.sleep(seconds)
        return replica.statistics().polls - before

    async def requests_in(self, seconds: float) -> int:
        before = self.requests()
        await trio.sleep(seconds)
        return self.requests() - before


async def test_with_a_file_open_every_interval_has_its_poll(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    async with bench.polling() as replica:
        await bench.open_file()
        await trio.sleep(2 * PAUSE_AFTER_S)
        assert await bench.polls_in(replica, 10.5) in (10, 11)
        assert bench.schedule.statistics().state is PollState.ACTIVE


async def test_nobody_looking_makes_polls_rare_and_at_last_there_are_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    async with bench.polling():
        assert await bench.requests_in(GRACE_S - 2) >= GRACE_S - 4
        await trio.sleep(2)
        assert await bench.requests_in(PAUSE_AFTER_S - GRACE_S) < 60
        assert bench.schedule.statistics().state is PollState.SLOWED
        await trio.sleep(MAX_INTERVAL_S)
        assert bench.schedule.statistics().state is PollState.PAUSED
        assert await bench.requests_in(86_400) == 0
        assert bench.schedule.statistics().idle_s > 86_400


@pytest.mark.parametrize("idle_s", [GRACE_S + 20, PAUSE_AFTER_S + 3600])
async def test_who_opens_a_file_then_sees_what_is_new(autojump_clock: trio.testing.MockClock, idle_s: float) -> None:
    bench = Bench()
    async with bench.polling() as replica:
        await trio.sleep(idle_s)
        bench.latency._one_way_s = 0.1
        await bench.history.commit({1: b"new"})
        opened = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(bench.open_file)
        assert trio.current_time() - opened < 2
        assert replica.snapshot.pos.txid == 2
        bench.latency._one_way_s = 0.0
        assert await bench.polls_in(replica, 10.5) in (10, 11)  # and is kept up to date


async def test_many_transactions_that_came_meanwhile_are_there_with_the_first_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also when retention has left only what compaction made of them."""
    bench = Bench()
    async with bench.polling() as replica:
        await trio.sleep(PAUSE_AFTER_S + 86_400)
        for n in range(20):
            await bench.history.commit({n + 1: b"%d" % n})
        await bench.history.compact(1, 2, 20)
        for txid in range(1, 21):
            await bench.history.delete(0, txid)
        await bench.open_file()
        assert replica.snapshot.pos.txid == 21


async def test_a_store_that_does_not_answer_delays_an_open_only_so_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    async with bench.polling():
        await trio.sleep(PAUSE_AFTER_S + 60)
        bench.latency._one_way_s = 3600.0
        opened = trio.current_time()
        await bench.open_file()
        assert trio.current_time() - opened == pytest.approx(FRESHEN_LIMIT_S)


@pytest.mark.parametrize("max_staleness_s", [1.5, 20.0, 600.0])
async def test_with_nobody_looking_a_replica_stays_as_fresh_as_its_readers_will_want_it(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, max_staleness_s: float
) -> None:
    bench = Bench()
    options = MountOptions(url="", path=tmp_path, name="", poll_interval_s=1.0, max_staleness_s=max_staleness_s)
    bench.schedule = schedule_of(options, lambda: False)
    async with bench.polling() as replica:
        for _ in range(2000):
            await trio.sleep(1.3)
            assert replica.staleness_s < max_staleness_s / 2 + 1.0
        assert bench.requests() < 4000


async def test_with_a_file_open_an_open_waits_for_nothing(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    async with bench.polling():
        await bench.open_file()
        await trio.sleep(2 * PAUSE_AFTER_S)
        asked: list[Request] = []
        bench.faults.plan = lambda request: asked.append(request)
        opened = trio.current_time()
        await bench.open_file()
        assert trio.current_time() == opened
        assert not asked


async def test_who_wants_a_poll_now_gets_one_that_began_after_that_and_asks_for_the_next_file_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also while another poll, which began before the file was there, is under way."""
    bench = Bench()
    async with bench.polling() as replica:
        for idle_s in (0.3, GRACE_S + 20, PAUSE_AFTER_S + 60):
            await trio.sleep(idle_s)
            bench.latency._one_way_s = 0.1
            txid = await bench.history.commit({1: b"new"})
            before, began = bench.requests(), trio.current_time()
            with bench.schedule.regular():
                await bench.schedule.poll_now()
            assert replica.snapshot.pos.txid == txid
            assert trio.current_time() - began < 1.5
            assert bench.requests() - before <= 4, "the next file and its index, and the one after it"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.schedule.poll_now)  # finds nothing
                await trio.sleep(0.25)  # its answer is on its way
                txid = await bench.history.commit({1: b"newer"})
                nursery.start_soon(bench.schedule.poll_now)
            assert replica.snapshot.pos.txid == txid
            bench.latency._one_way_s = 0.0


async def test_polls_are_regular_while_somebody_waits_for_a_position(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    async with bench.polling() as replica:
        await trio.sleep(PAUSE_AFTER_S + 60)
        assert bench.schedule.statistics().state is PollState.PAUSED
        with bench.schedule.regular():
            await bench.schedule.poll_now()
            for _ in range(int(GRACE_S) * 2):
                await bench.schedule.next_poll()
            assert await bench.polls_in(replica, 10.5) in (10, 11)
        await trio.sleep(PAUSE_AFTER_S + 60)
        assert bench.schedule.statistics().state is PollState.PAUSED
