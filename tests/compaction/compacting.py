"""Replicas to be compacted, and what tests look at of the results."""

from __future__ import annotations

import random

from litereplica.ltxstore.store import LTXStore
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from tests.ltxstore.replicas import History, memory_store, publish


def history_of(rng: random.Random, txids: int) -> History:
    """Transactions that grow, shrink and rewrite."""
    history = History()
    for _ in range(txids):
        size = rng.randint(1, 12)
        history.commit(size, *(rng.randint(1, size) for _ in range(rng.randint(0, 3))))
    return history


async def replica(history: History, storage: MemoryStorage | None = None) -> LTXStore:
    """All of it in level 0."""
    store = memory_store(storage)
    for txid in range(1, history.txid + 1):
        await publish(store, history, 0, txid, txid)
    return store


async def replica_of_five() -> tuple[LTXStore, MemoryStorage, History]:
    history, storage = history_of(random.Random(5), 5), MemoryStorage()
    return await replica(history, storage), storage, history


def keys(storage: MemoryStorage, level: int) -> list[str]:
    return sorted(key for key in storage.objects if key.startswith(f"{level:04x}/"))


async def content(store: LTXStore, info: FileInfo) -> bytes:
    return (await store.get(info)).data
