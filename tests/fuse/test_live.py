"""The daemon's half of the WAL protocol without a kernel: whatever readers do between any two of its steps, each read
transaction sees exactly one TXID, and nothing stale stays in the kernel's cache.

`simulation.py` has the kernel, the locks, the readers and the replica. A failing example prints its seed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from litereplica.errors import ReplicaError, StorageError, TransientStorageError
from litereplica.format import walindex
from litereplica.format.wal import FRAME_HEADER_SIZE, HEADER_SIZE
from litereplica.fuse import live as live_module
from litereplica.fuse.kernel_cache import LiveFile, Store
from litereplica.fuse.live import LiveDatabase
from tests.fuse.simulation import (
    PAGE_SIZE,
    Chance,
    DaemonLocks,
    FakeKernel,
    FakeReplica,
    History,
    LockTable,
    ProtocolError,
    Reader,
    View,
    page_of,
)

EXAMPLES = int(os.environ.get("LIVE_MODEL_EXAMPLES", "60"))
STEPS = 30
MAX_PAGES = 12


@dataclass(slots=True)
class World:
    """A live database between a replica and its readers."""

    chance: Chance
    history: History = field(default_factory=History)
    locks: LockTable = field(default_factory=LockTable)
    errors: int = 0
    transactions: int = 0
    failures_expected: bool = False
    replica: FakeReplica = field(init=False)
    kernel: FakeKernel = field(init=False)
    live: LiveDatabase = field(init=False)
    done: bool = False
    blocks: list[tuple[NDArray[np.uint32], NDArray[np.void], list[bytes]]] = field(default_factory=list)

    async def start(self, pages: int) -> None:
        self.history.commit([], pages=pages)
        self.replica = FakeReplica(self.history, self.chance)
        self.kernel = FakeKernel(self.chance, self.locks)
        self.live = self.kernel.live = LiveDatabase(self.replica, self.kernel)  # type: ignore[arg-type]
        self.kernel.know_files()
        self.kernel.daemon = DaemonLocks(self.locks)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(live_module, "OFDLocks", lambda fd: self.kernel.daemon)
            await self.live.activate(-1)

    def commit(self, changed: set[int], *, pages: int | None = None) -> None:
        pages = pages or len(self.history.databases[self.history.txid])
        if min(changed) > pages and self.history.has(pages=pages):
            changed = {1}  # each TXID has a content of its own
        supplied = self.history.commit(changed, pages=pages)
        self.replica.supplied[self.history.txid] = supplied

    async def advance(self) -> None:
        """Poll and apply."""
        await self.live.apply(self.replica.poll())

    async def check(self) -> None:
        """Nothing stale is cached, and a new reader is at the newest."""
        for inode in (LiveFile.DATABASE, LiveFile.SHM):
            await self.kernel.check_cached(inode)
        await self.kernel.check_frames(self.live.statistics().wal_frames)
        for inode in (LiveFile.DATABASE, LiveFile.SHM):
            assert await self.kernel.fstat_size(inode) == self.live.size(inode), inode.name
        assert await self.look() == self.live.pos.txid

    async def look(self) -> int:
        """The TXID that a new reader sees."""
        reader = Reader(self.kernel, self.locks, self.chance)
        view = await reader.begin()
        try:
            return self.txid_of(await self.content(reader, view))
        finally:
            reader.end(view)

    async def content(self, reader: Reader, view: View) -> dict[int, bytes]:
        pgnos = list(range(1, view.commit + 1))
        self.chance.random.shuffle(pgnos)
        return {pgno: await reader.page(view, pgno) for pgno in pgnos}

    def txid_of(self, content: dict[int, bytes]) -> int:
        for txid in range(self.history.txid, 0, -1):
            if self.history.databases[txid] == content:
                return txid
        short = {pgno: page[:16].split(b".")[0].decode(errors="replace") for pgno, page in sorted(content.items())}
        raise ProtocolError(f"a read transaction saw a database that never was: {short}")

    async def read_for_ever(self) -> None:
        """A client: transactions of all lengths, each of which must see one TXID, and never go back."""
        reader = Reader(self.kernel, self.locks, self.chance)
        last = 0
        while not self.done:
            published = self.live.pos.txid
            view = await reader.begin()
            try:
                seen = {
                    self.txid_of(await self.content(reader, view)) for _ in range(self.chance.random.choice(PASSES))
                }
                assert len(seen) == 1, f"one transaction saw the TXIDs {seen}"
                assert min(seen) >= max(last, published), f"saw {seen} after {last}, when {published} was published"
                last = max(seen)
                self.transactions += 1
            except (StorageError, ReplicaError):  # what a client gets as EIO
                self.errors += 1
                assert self.failures_expected, "a client got EIO"
            finally:
                reader.end(view)
            for _ in range(self.chance.random.choice(REST)):
                await trio.lowlevel.checkpoint()


REST = (1, 1, 10, 300, 1000)
"""Chances to run that a reader leaves to others between two transactions; while all of them rest, a WAL restarts."""

PASSES = (1, 1, 1, 2, 8)
"""How often a reader reads the whole database in one transaction."""


@contextmanager
def tuned(random: Random) -> Iterator[None]:
    """Limits so low that everything happens often; checkpoints do not wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_module, "CHECKPOINT_FRAMES", random.choice([1, 5, 20]))
        patch.setattr(live_module, "CHECKPOINT_RETRY_S", 0.0)
        patch.setattr(live_module, "CHECKPOINT_PATIENCE_S", 0.0)
        patch.setattr(live_module, "IDLE_CHECKPOINT_S", random.choice([0.0, 1e9]))
        patch.setattr(live_module, "PUSH_LIMIT", PAGE_SIZE * random.choice([2, 4, 1000]))
        patch.setattr(live_module, "WAL_KEEP_SIZE", random.choice([1000, 1 << 30]))
        yield


async def writer_step(world: World) -> None:
    """Something happens in the store, or at the daemon."""
    random = world.chance.random
    kind = random.choices(["commit", "push", "compact", "vanish", "fail", "idle", "evict"], [12, 4, 1, 1, 1, 2, 1])[0]
    if kind == "commit":
        for _ in range(random.choice([1, 1, 1, 3])):
            pages = random.randint(1, MAX_PAGES) if world.chance.happens(0.3) else None
            world.commit(set(random.sample(range(1, MAX_PAGES + 1), random.randint(1, 4))), pages=pages)
        world.replica.is_behind = world.chance.happens(0.2)
        await world.advance()
    elif kind == "push":
        await push_some(world)
    elif kind == "compact":
        world.failures_expected = True  # those who are at older positions lose their files
        await world.live.apply(world.replica.compact())
    elif kind == "vanish":
        world.failures_expected = True
        world.replica.compact_later()
    elif kind == "fail":
        await fail_once(world)
    elif kind == "evict":
        world.kernel.evict()
    else:
        await world.live.apply(None)


async def push_some(world: World) -> None:
    """A block that is fetched now arrives later, when the base may have moved."""
    base = world.live.files.base
    pgnos = np.array(sorted(world.chance.random.sample(range(1, base.commit + 1), min(4, base.commit))), np.uint32)
    locations = base.lookup(pgnos)
    with suppress(StorageError):
        world.blocks.append((pgnos, locations, await world.replica.read(pgnos, locations)))
    if len(world.blocks) > 3:
        await world.live.push(*world.blocks.pop(0))


async def fail_once(world: World) -> None:
    """The store is away for one transaction; the next poll brings nothing, and yet the database goes on."""
    world.failures_expected = True
    world.replica.failing = True
    world.commit({world.chance.random.randint(1, MAX_PAGES)})
    with suppress(StorageError):
        await world.advance()
    world.replica.failing = False
    await world.live.apply(None)


async def simulate(seed: int, *, readers: int = 4, steps: int = STEPS) -> World:
    random = Random(seed)
    world = World(Chance(random, patience=random.choice([1, 3, 10])))
    with tuned(random):
        await world.start(pages=random.randint(1, MAX_PAGES))
        async with trio.open_nursery() as nursery:
            for _ in range(readers):
                nursery.start_soon(world.read_for_ever)
            for _ in range(steps):
                await writer_step(world)
                if world.live.pos != world.replica.snapshot.pos:  # a healing went on by itself
                    await world.live.apply(None)
            world.done = True
        world.replica.is_behind = False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(live_module, "IDLE_CHECKPOINT_S", 0.0)
            await world.live.apply(None)
        assert world.live.statistics().wal_frames == 0, "nobody reads, and yet the WAL was not emptied"
        await world.check()
        assert world.live.pos.txid == world.history.txid
    return world


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(seed=st.integers(0, 2**32))
async def test_whatever_readers_do_meanwhile_each_transaction_sees_exactly_one_txid(seed: int) -> None:
    world = await simulate(seed)
    assert world.live.pos.txid == world.history.txid


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `apply` tries to backfill, and waits for nobody."""
    monkeypatch.setattr(live_module, "IDLE_CHECKPOINT_S", 0.0)
    monkeypatch.setattr(live_module, "CHECKPOINT_PATIENCE_S", 0.0)


async def quiet_world(*, pages: int) -> World:
    world = World(Chance(Random(0), patience=1))
    await world.start(pages=pages)
    return world


@pytest.mark.usefixtures("eager")
async def test_a_reader_that_is_pinned_keeps_its_snapshot_and_new_ones_are_at_the_newest() -> None:
    world = await quiet_world(pages=5)
    world.commit({2})
    await world.advance()
    reader = Reader(world.kernel, world.locks, world.chance)
    view = await reader.begin()
    assert world.txid_of(await world.content(reader, view)) == 2
    for i in range(200):
        world.commit({1 + i % 5}, pages=5 + i % 3)
        await world.advance()
        if i % 20 == 0:
            assert await world.look() == world.history.txid
    assert world.txid_of(await world.content(reader, view)) == 2
    assert world.live.statistics().base.txid <= 2
    reader.end(view)
    await world.live.apply(None)
    statistics = world.live.statistics()
    assert (statistics.wal_frames, statistics.base.txid) == (0, world.history.txid)
    await world.check()


@pytest.mark.usefixtures("eager")
async def test_readers_of_the_database_file_alone_hold_off_the_backfill_but_not_the_advance() -> None:
    world = await quiet_world(pages=3)
    reader = Reader(world.kernel, world.locks, world.chance)
    view = await reader.begin()
    assert view.lock == 0
    for _ in range(3):
        world.commit({1, 3})
        await world.advance()
    assert world.live.statistics().backfilled_frames == 0
    assert world.txid_of(await world.content(reader, view)) == 1
    assert await world.look() == 4
    reader.end(view)
    await world.live.apply(None)
    assert world.live.statistics().base.txid == 4


@pytest.mark.usefixtures("eager")
async def test_frames_are_found_in_every_block_of_the_wal_index() -> None:
    world = await quiet_world(pages=700)
    pinned = Reader(world.kernel, world.locks, world.chance)
    view = await pinned.begin()
    for _ in range(14):
        world.commit(set(range(1, 701)))
        await world.advance()
    assert world.live.size(LiveFile.SHM) == 3 * walindex.BLOCK_SIZE
    assert await world.look() == 15
    assert world.txid_of(await world.content(pinned, view)) == 1
    pinned.end(view)
    await world.live.apply(None)
    world.commit({7})
    await world.advance()
    await world.check()


async def test_without_readers_a_wal_is_backfilled_only_when_it_is_long_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "CHECKPOINT_FRAMES", 10)
    world = await quiet_world(pages=5)
    for _ in range(9):
        world.commit({1})
        await world.advance()
    assert world.live.statistics().backfills == 0
    world.commit({1})
    await world.advance()
    assert world.live.statistics().restarts == 1
    world.commit({1})
    await world.advance()
    assert world.live.statistics().restarts == 1
    monkeypatch.setattr(live_module, "IDLE_CHECKPOINT_S", 0.0)
    await world.live.apply(None)
    assert world.live.statistics().restarts == 2


async def test_steps_on_the_way_to_the_newest_are_not_pushed_and_backfilled_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_module, "CHECKPOINT_FRAMES", 2)
    monkeypatch.setattr(live_module, "BEHIND_CHECKPOINT_FRAMES", 30)
    world = await quiet_world(pages=5)
    world.replica.is_behind = True
    for step in range(1, 10):
        world.commit({1, 2, 3})
        await world.advance()
        assert world.replica.reads == 0
        assert world.live.statistics().wal_frames == 3 * step
    world.replica.is_behind = False
    world.commit({1})
    await world.advance()
    assert (world.live.statistics().backfills, world.live.statistics().restarts) == (1, 1)
    assert world.replica.reads > 0
    await world.check()


async def test_a_read_is_answered_while_apply_waits_for_the_kernel() -> None:
    world = await quiet_world(pages=5)
    world.commit({1, 2})
    go_on, waiting = trio.Event(), trio.Event()
    store = world.kernel.store

    async def slow_store(stores: Iterable[Store]) -> None:
        waiting.set()
        await go_on.wait()
        await store(stores)

    world.kernel.store = slow_store  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.advance)
        await waiting.wait()
        with trio.fail_after(5):
            for inode in (LiveFile.DATABASE, LiveFile.WAL, LiveFile.SHM):
                assert len(await world.live.read(inode, 0, 4096)) == 4096
        assert world.live.pos.txid == 1
        go_on.set()
    assert world.live.pos.txid == 2


async def test_frames_of_one_read_may_hold_page_1_several_times() -> None:
    world = await quiet_world(pages=2)
    for _ in range(3):
        world.commit({1})
        await world.advance()
    frame = FRAME_HEADER_SIZE + PAGE_SIZE
    data = await world.live.read(LiveFile.WAL, HEADER_SIZE, 3 * frame)
    pages = [data[i * frame + FRAME_HEADER_SIZE :][:PAGE_SIZE] for i in range(3)]
    assert pages == [page_of(1, txid) for txid in (2, 3, 4)]


async def test_a_store_that_is_away_for_one_transaction_delays_it_and_loses_nothing() -> None:
    world = await quiet_world(pages=3)
    world.commit({2})
    world.replica.failing = True
    with pytest.raises(TransientStorageError):
        await world.advance()
    assert world.live.pos.txid == 1
    world.replica.failing = False
    await world.live.apply(None)
    assert world.live.pos.txid == 2
    await world.check()


async def test_the_size_follows_the_commit_when_the_database_shrinks_and_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "IDLE_CHECKPOINT_S", 0.0)
    world = await quiet_world(pages=5)
    for pages in (3, 9, 1, 12, 11):
        world.commit({1}, pages=pages)
        await world.advance()
        assert world.live.size(LiveFile.DATABASE) == pages * PAGE_SIZE
        await world.check()


@pytest.mark.parametrize("changed", [{9, 100}, {9}, {1, 9}, {100}])
async def test_pages_that_were_too_many_to_push_are_read_anew(
    changed: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "IDLE_CHECKPOINT_S", 0.0)
    monkeypatch.setattr(live_module, "PUSH_LIMIT", 10 * PAGE_SIZE)
    world = await quiet_world(pages=9)
    assert await world.look() == 1
    world.commit({9}, pages=100)
    await world.advance()
    world.commit(changed)
    await world.advance()
    await world.check()
