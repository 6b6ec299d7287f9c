"""The files that a live database reads from stay known, however many come and go.

A real replica over a store in memory, below a live database without a kernel. The load updates the same pages again and
again, so that each file is soon used by the base alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from litereplica.fuse.kernel_cache import LiveFile, Store
from litereplica.fuse.live import LiveDatabase
from litereplica.replica.database import Replica
from tests.replica.test_database import Bench

FORGET_EVERY = 5


class NoKernel:
    """A kernel that caches nothing."""

    async def store(self, stores: Iterable[Store]) -> None:
        for _ in stores:
            pass

    async def invalidate(self, file: LiveFile) -> None:
        pass


@asynccontextmanager
async def live_database(bench: Bench) -> AsyncIterator[tuple[Replica, LiveDatabase]]:
    async with bench.replica() as replica:
        live = LiveDatabase(replica, NoKernel())
        with tempfile.TemporaryFile() as shm:
            await live.activate(shm.fileno())
            yield replica, live


async def page(live: LiveDatabase, pgno: int, page_size: int) -> bytes:
    return await live.read(LiveFile.DATABASE, (pgno - 1) * page_size, page_size)


def require_known(replica: Replica, live: LiveDatabase) -> None:
    """Every location that can be reached names a file of the table, and the table has no file besides."""
    named = set(live.files.base.files().tolist()) | set(live.files.wal.files().tolist())
    named |= set(replica.snapshot.pages.files().tolist())
    files = replica._current.files
    assert all(files.get(file_id) is not None for file_id in named)
    assert named <= files.holders.files()


async def test_a_base_keeps_its_files_while_many_more_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litereplica.fuse.live.CHECKPOINT_FRAMES", 7)
    bench = Bench(memory_size=0, forget_every=FORGET_EVERY)
    await bench.history.commit({pgno: b"first %d" % pgno for pgno in range(1, 9)})
    async with live_database(bench) as (replica, live):
        page_size = replica.snapshot.page_size
        for n in range(100):
            await bench.history.commit({1 + n % 3: b"%d" % n, 5: b"%d" % n})
            await live.apply(await replica.poll())
            require_known(replica, live)
            for pgno in range(2, 9):
                await page(live, pgno, page_size)
            assert replica.statistics().heals == 0, "nothing has vanished, so nothing is to be looked for"
        assert live.statistics().backfills > 10
        assert replica.statistics().files <= 100 // 2
