"""A replicator of ours running beside a test's application, and what a test waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Storage
from litereplica.testing.memory import MemoryStorage
from litereplica.writer.replicator import Replicator, open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from litereplica.writer.sync_requests import SyncRequests
from tests.helpers.app import Application
from tests.helpers.fold import fold

SYNC_INTERVAL_S = 0.02
DEADLINE_S = 10.0


def memory_store(storage: Storage | None = None) -> LTXStore:
    return LTXStore(storage or MemoryStorage(), Layout.S3)


@asynccontextmanager
async def replicating(
    database: Path, store: LTXStore, *, sync_interval_s: float = SYNC_INTERVAL_S, syncs: SyncRequests | None = None
) -> AsyncIterator[Replicator]:
    """A replicator that has published once; stopped in the ordinary way at the end."""
    stop = trio.Event()
    options = ReplicatorOptions(sync_interval_s=sync_interval_s, syncs=syncs or SyncRequests())
    async with (
        open_replicator(database, store, options) as replicator,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(replicator.run, stop)
        yield replicator
        stop.set()


async def publish_once(database: Path, store: LTXStore, *, take_over: bool = False) -> int:
    """Publish what there is; the number of files that it took."""
    async with open_replicator(database, store, ReplicatorOptions(take_over=take_over)) as replicator:
        await replicator.publish_once()
        return replicator.statistics().files


async def until_published(store: LTXStore, app: Application) -> bytes:
    """Wait until the replica's newest state is the application's; returns it."""
    expected, found = await app.image(), b""
    with trio.move_on_after(DEADLINE_S):
        while True:
            found = await fold(store) if await txids(store) else b""
            if found == expected:
                return found
            await trio.sleep(0.01)
    raise AssertionError(f"the replica stays at {len(found)} bytes, the database has {len(expected)}")


async def txids(store: LTXStore) -> list[int]:
    """TXIDs of level 0, ascending."""
    return [info.max_txid for info in await store.list_level(0)]


async def page_counts(store: LTXStore) -> list[int]:
    """Number of pages in each file of level 0."""
    return [len((await store.open(info)).index) for info in await store.list_level(0)]
