"""A replica and its maintenance in simulated time: nothing sleeps, and days take seconds.

The writer is a `History` that publishes when the test says so; time is a number. `advance` does what falls due on the
way, when it falls due, as `Maintenance.run` would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import trio

from litereplica.compaction.levels import Levels
from litereplica.compaction.retention import RetentionPolicy
from litereplica.ltxstore.plan import plan_newest
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Storage
from litereplica.storage.wrappers import MeteredStorage, Operation
from litereplica.testing.memory import MemoryStorage
from litereplica.times import SteadyClock
from litereplica.types import FileInfo
from litereplica.writer.maintenance import Maintenance
from litereplica.writer.publish.lease_keeper import LeaseKeeper
from tests.ltxstore.replicas import History, memory_store

NOON_MS = 1_700_000_000_000 - 1_700_000_000_000 % 86_400_000 + 43_200_000
SOME_ROUNDS = 10_000


@dataclass(slots=True)
class Time:
    """True time, and a wall clock that somebody may set."""

    true_ms: int = NOON_MS
    error_ms: int = 0

    def wall_ms(self) -> int:
        return self.true_ms + self.error_ms

    def steady_clock(self) -> SteadyClock:
        return SteadyClock(self.wall_ms, lambda: self.true_ms - NOON_MS + 4711)


@dataclass(slots=True)
class Simulation:
    """One replica. `storage` is what it lies in; `maintain` begins (anew) to maintain it, as a fresh process does."""

    levels: Levels = field(default_factory=Levels)
    policy: RetentionPolicy = field(default_factory=RetentionPolicy)
    lease: LeaseKeeper = field(default_factory=LeaseKeeper)
    storage: Storage = field(default_factory=MemoryStorage)
    time: Time = field(default_factory=Time)
    history: History = field(default_factory=History)
    metered: MeteredStorage = field(init=False)
    store: LTXStore = field(init=False)
    maintenance: Maintenance = field(init=False)
    rounds: int = 0

    def __post_init__(self) -> None:
        self.metered = MeteredStorage(self.storage)
        self.store = memory_store(self.metered)
        self.maintain()

    def maintain(self) -> None:
        self.maintenance = Maintenance(
            self.store,
            levels=self.levels,
            policy=self.policy,
            lease=self.lease,
            limiter=trio.CapacityLimiter(1),
            clock=self.time.steady_clock(),
        )

    async def publish(self, *, noted: bool = True) -> FileInfo:
        """The next TXID, behind the maintenance's back if it is not `noted`."""
        self.history.commit(3, 1 + self.history.txid % 3)
        txid = self.history.txid
        body = self.history.file(txid, txid)
        info = FileInfo(0, txid, txid, len(body), self.time.wall_ms())
        await memory_store(self.storage).put(info, body, timestamp_ms=self.time.wall_ms())
        if noted:
            self.maintenance.note_published(info)
        return info

    async def advance(self, seconds: float) -> None:
        """Let time pass, and do on the way what falls due."""
        end_ms = self.time.true_ms + round(seconds * 1000)
        for _ in range(SOME_ROUNDS):
            due_s = self.maintenance.next_due_s
            due_ms = (
                self.time.true_ms + math.ceil((math.inf if due_s is None else due_s) * 1000)
                if due_s is not None
                else end_ms + 1
            )
            if due_ms > end_ms:
                self.time.true_ms = end_ms
                return
            self.time.true_ms = due_ms
            self.rounds += 1
            await self.maintenance.run_due()
        raise AssertionError(f"it is never done: next is due in {self.maintenance.next_due_s} s")

    async def files(self, level: int) -> list[tuple[int, int]]:
        """(min, max) of a level's files, by a request that is not counted."""
        return [(info.min_txid, info.max_txid) for info in await memory_store(self.storage).list_level(level)]

    async def all_files(self) -> list[FileInfo]:
        return await memory_store(self.storage).list_levels()

    async def newest(self) -> int:
        """The TXID that a restore reaches."""
        return plan_newest(await self.all_files())[-1].max_txid

    def requests(self) -> dict[str, int]:
        """Requests of the maintenance so far, by operation."""
        counts = self.metered.statistics().by_operation
        return {str(operation): counts[operation].requests for operation in Operation if counts[operation].requests}
