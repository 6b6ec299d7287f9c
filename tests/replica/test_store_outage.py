"""How long readers wait for a silent store: no longer in all than one of them would, and not at all once it is back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
import trio
import trio.testing

from litereplica.errors import TransientStorageError
from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.replica import second_try
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.second_try import PATIENCE_S
from litereplica.replica.store_outage import PROBE_INTERVAL_S, PROBE_WAIT_S, SHORT_WAIT_S
from litereplica.storage.wrappers.delegate import Call, WrapperStorage
from litereplica.testing.faults import Fault, FaultStorage, Request
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage
from tests.helpers.history import History
from tests.replica.test_database import large, read_one

T = TypeVar("T")

TIMEOUT_S = 10.0
ROUND_TRIP_S = 0.05
KERNEL_QUEUE = 12
READS = 150


class Bench:
    """A replica whose store can be silent. `requests` counts what was sent while it was."""

    def __init__(self) -> None:
        self.history = History()
        self.near = LatencyStorage(self.history.storage, ROUND_TRIP_S)
        self.storage = LatencyStorage(self.near, 0.0)

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Replica]:
        await large(self.history)
        async with open_replica(
            LTXStore(self.storage, Layout.S3), memory_size=1 << 20, read_timeout_s=TIMEOUT_S
        ) as replica:
            yield replica

    def fall_silent(self) -> None:
        self.storage._inner = LatencyStorage(MemoryStorage(), 1e9)

    def come_back(self) -> None:
        self.storage._inner = self.near


async def read_all(replica: Replica, limiter: trio.CapacityLimiter, failed: list[float]) -> None:
    """150 reads at once, of which so many reach the daemon at a time as the kernel's queue lets through."""

    async def one(pgno: int) -> None:
        async with limiter:
            started = trio.current_time()
            try:
                await read_one(replica, pgno)
            except TransientStorageError:
                failed.append(trio.current_time() - started)

    async with trio.open_nursery() as nursery:
        for pgno in range(2, 2 + READS):
            nursery.start_soon(one, pgno)


async def test_the_kernels_queue_does_not_multiply_the_read_timeout(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    async with bench.replica() as replica:
        bench.fall_silent()
        started = trio.current_time()
        failed: list[float] = []
        await read_all(replica, trio.CapacityLimiter(KERNEL_QUEUE), failed)
        assert len(failed) == READS
        rounds = READS // KERNEL_QUEUE
        assert trio.current_time() - started <= TIMEOUT_S + 2 * PROBE_WAIT_S + rounds * SHORT_WAIT_S
        assert sorted(failed)[READS - KERNEL_QUEUE - 1] <= PROBE_WAIT_S


async def test_a_read_that_begins_late_shares_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    async with bench.replica() as replica:
        bench.fall_silent()
        started = trio.current_time()

        async def late(delay_s: float) -> None:
            await trio.sleep(delay_s)
            with pytest.raises(TransientStorageError, match="no answer"):
                await read_one(replica, 2 + int(delay_s))

        async with trio.open_nursery() as nursery:
            for delay_s in (0.0, 3.0, 9.0):
                nursery.start_soon(late, delay_s)
        assert trio.current_time() - started <= TIMEOUT_S + PROBE_WAIT_S


async def test_the_first_answer_ends_the_outage_for_all(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    async with bench.replica() as replica:
        bench.fall_silent()
        for pgno in range(2, 22):  # more than there are requests at the same time
            with pytest.raises(TransientStorageError):
                await read_one(replica, pgno)
        bench.come_back()
        back = trio.current_time()
        right = bench.history.at(1)
        while True:
            try:
                page = await read_one(replica, 400)
                break
            except TransientStorageError:
                assert trio.current_time() - back < PROBE_INTERVAL_S + SHORT_WAIT_S
        assert page == right[400]
        bench.storage._inner = LatencyStorage(bench.near, 3.0)  # slow, but not silent
        assert await read_one(replica, 900) == right[900]


async def test_an_outage_long_ago_shortens_no_wait(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    async with bench.replica() as replica:
        bench.fall_silent()
        with pytest.raises(TransientStorageError):
            await read_one(replica, 2)
        await trio.sleep(2 * TIMEOUT_S)
        bench.storage._inner = LatencyStorage(bench.near, 3.0)
        assert await read_one(replica, 900) == bench.history.at(1)[900]


async def test_a_store_that_answers_others_is_not_silent(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request that is lost says nothing about the store."""
    monkeypatch.setattr(second_try, "PATIENCE_S", 1e9)
    bench = Bench()
    async with bench.replica() as replica, trio.open_nursery() as nursery:
        bench.fall_silent()

        async def lost() -> None:
            with pytest.raises(TransientStorageError):
                await read_one(replica, 2)

        nursery.start_soon(lost)
        await trio.sleep(1.0)
        bench.storage._inner = LatencyStorage(bench.near, 1.0)
        started = trio.current_time()
        for pgno in range(300, 1200, 60):
            assert await read_one(replica, pgno) == bench.history.at(1)[pgno]
        assert trio.current_time() - started > TIMEOUT_S


async def test_requests_that_nobody_waits_for_any_more_are_not_sent(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    async with bench.replica() as replica:
        bench.fall_silent()
        await read_all(replica, trio.CapacityLimiter(READS), [])
        bench.come_back()
        sent = 0
        get = bench.near.get

        async def counted(*args: object) -> object:
            nonlocal sent
            sent += 1
            return await get(*args)  # type: ignore[arg-type]

        bench.near.get = counted  # type: ignore[method-assign, assignment]
        await trio.sleep(TIMEOUT_S)
        assert sent == 0


class LossyStorage(WrapperStorage):
    """Never answers its first request."""

    requests = 0

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        self.requests += 1
        if self.requests == 1:
            await trio.sleep_forever()
        return await perform()


async def test_a_request_that_is_lost_is_made_again_long_before_the_time_is_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    async with bench.replica() as replica:
        lossy = LossyStorage(bench.near)
        bench.storage._inner = lossy
        started = trio.current_time()
        assert await read_one(replica, 300) == bench.history.at(1)[300]
        assert trio.current_time() - started < PATIENCE_S + 1
        assert lossy.requests == 2
        assert await read_one(replica, 400) == bench.history.at(1)[400]
        assert lossy.requests == 3, "no second try of what is answered in time"


async def test_a_read_outlives_errors_of_the_store_that_end_in_time(autojump_clock: trio.testing.MockClock) -> None:
    """A store that restarts answers 503 or resets connections: to fail is not better than to be silent."""
    bench = Bench()
    async with bench.replica() as replica:
        began = trio.current_time()

        def plan(request: Request) -> Fault | None:
            return Fault() if trio.current_time() < began + 0.8 * TIMEOUT_S else None

        bench.storage._inner = FaultStorage(bench.near, plan)
        await read_one(replica, 7)
        assert trio.current_time() >= began + 0.8 * TIMEOUT_S
        bench.storage._inner = FaultStorage(bench.near, lambda request: Fault())
        began = trio.current_time()
        with pytest.raises(TransientStorageError, match="as planned"):
            await read_one(replica, 8)
        assert 0.8 * TIMEOUT_S < trio.current_time() - began <= TIMEOUT_S


async def test_a_past_state_is_opened_although_the_store_fails_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    async with bench.replica() as replica:
        await bench.history.commit({1: b"newer"})
        await replica.poll()
        began = trio.current_time()

        def plan(request: Request) -> Fault | None:
            return Fault() if trio.current_time() < began + 0.8 * TIMEOUT_S else None

        bench.storage._inner = FaultStorage(bench.near, plan)
        past = await replica.past_snapshots(patience_s=TIMEOUT_S).open(1)
        assert past.snapshot.pos.txid == 1
        assert trio.current_time() >= began + 0.8 * TIMEOUT_S
