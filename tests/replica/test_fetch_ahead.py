"""Fetching ahead of readers: in time, within bounds, and never in the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio
import trio.testing

from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.replica import fetch
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.readahead import IDLE_S
from litereplica.storage.wrappers import MeteredStorage, Operation
from litereplica.testing.latency import LatencyStorage
from tests.helpers.history import History
from tests.replica.observer import Observer

PAGES = 12_000
ROUND_TRIP_S = 1.0


class Far:
    """A database of pages of 4 KiB, an eighth of that compressed, in a store that is a second away."""

    def __init__(self, *, bytes_per_s: float | None = None) -> None:
        self.history = History(page_size=4096)
        self.latency = LatencyStorage(self.history.storage, ROUND_TRIP_S, bytes_per_s)
        self.meter = MeteredStorage(self.latency)

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Replica]:
        filler = np.random.default_rng(1).bytes(4096 + PAGES)
        await self.history.commit({pgno: filler[pgno : pgno + 512] for pgno in range(1, PAGES + 1)})
        async with open_replica(LTXStore(self.meter, Layout.S3)) as replica:
            yield replica

    @property
    def gets(self) -> int:
        return self.meter.statistics().by_operation[Operation.GET].requests

    @property
    def received(self) -> int:
        return self.meter.statistics().by_operation[Operation.GET].bytes_received


async def read(replica: Replica, first: int, last: int) -> list[bytes]:
    pgnos = np.arange(first, last + 1, dtype=np.uint32)
    pages = replica.snapshot.pages
    return await replica.read(pgnos, pages.lookup(pgnos), around=pages)


async def test_a_scan_takes_a_fraction_of_the_round_trips_of_its_requests(
    autojump_clock: trio.testing.MockClock,
) -> None:
    far = Far()
    async with far.replica() as replica:
        before, started = far.gets, trio.current_time()
        for first in range(1, PAGES - 31, 32):
            pages = await read(replica, first, first + 31)
            assert pages[0] == far.history.databases[1][first]
        requests, seconds = far.gets - before, trio.current_time() - started
        assert requests <= 40
        assert seconds <= 12 * ROUND_TRIP_S


async def test_what_was_fetched_ahead_is_there_without_waiting(autojump_clock: trio.testing.MockClock) -> None:
    far = Far()
    async with far.replica() as replica:
        await read(replica, 1, 32)
        await read(replica, 33, 64)
        await trio.sleep(2 * ROUND_TRIP_S)
        before, started = far.gets, trio.current_time()
        await read(replica, 150, 160)
        assert trio.current_time() == started
        assert far.gets >= before


async def test_a_demand_read_never_waits_behind_what_is_fetched_ahead(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PARALLEL_FETCHES", 1)
    far = Far(bytes_per_s=1e6)
    async with far.replica() as replica:
        first = 1
        while len(replica._reader._fetcher._ahead_running) < fetch.PARALLEL_AHEAD:
            await read(replica, first, first + 31)
            first += 32
        started = trio.current_time()
        await read(replica, 11_000, 11_000)
        assert trio.current_time() - started <= ROUND_TRIP_S + 0.6


async def test_a_page_that_waits_to_be_fetched_ahead_is_fetched_at_once_when_it_is_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    far = Far()
    async with far.replica() as replica:
        step = 1
        while not replica._reader._fetcher._queue:
            await read(replica, step, step + 31)
            step += 32
        waiting = replica._reader._fetcher._queue[-1]
        started = trio.current_time()
        pgno = int(waiting.block.pgnos[0])
        assert await read(replica, pgno, pgno) == [far.history.at(1)[pgno]]
        assert trio.current_time() - started <= ROUND_TRIP_S + 0.1


async def test_what_is_fetched_ahead_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    far = Far()
    async with far.replica() as replica:
        most = 0
        for step in range(0, 1600, 32):
            for start in (1, 3000, 6000, 9000):
                await read(replica, start + step, start + step + 31)
                flights = (*replica._reader._fetcher._queue, *replica._reader._fetcher._ahead_running)
                most = max(most, sum(len(flight.keys) for flight in flights) * 4096)
        assert fetch.AHEAD_LIMIT // 2 <= most <= fetch.AHEAD_LIMIT


async def test_what_nobody_waits_for_any_more_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    far = Far()
    async with far.replica() as replica:
        for first in range(1, 1000, 32):
            await read(replica, first, first + 31)
        far.latency._one_way_s = 1000
        first = 1001
        while not replica._reader._fetcher._ahead_running:
            with trio.move_on_after(0.01):
                await read(replica, first, first + 31)
            first += 32
        hanging = next(flight for flight in replica._reader._fetcher._ahead_running if flight.stream is not None)
        pgno = int(hanging.block.pgnos[0])
        await trio.sleep(IDLE_S + 1)
        far.latency._one_way_s = ROUND_TRIP_S / 2
        assert await read(replica, 11_000, 11_000) == [far.history.at(1)[11_000]]
        assert hanging not in replica._reader._fetcher._ahead_running
        assert await read(replica, pgno, pgno) == [far.history.at(1)[pgno]]


async def test_the_first_page_of_what_was_fetched_ahead_is_left_for_the_kernel_to_ask(
    autojump_clock: trio.testing.MockClock,
) -> None:
    far = Far()
    told: list[int] = []
    async with far.replica() as replica:
        replica.subscribe(Observer(on_block=told.extend))
        for first in range(1, 1600, 32):
            await read(replica, first, first + 31)
        await trio.sleep(2 * ROUND_TRIP_S)
        assert len(told) == len(set(told))
        left = sorted(set(range(1, max(told) + 1)) - set(told))
        assert 1 <= len(left) <= 16
        assert left[0] > 64
