"""The pages of many databases: shared tiers of a bounded size, and no database that evicts all the others'."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio

from litereplica.replica.page_key import PageKey, page_key
from litereplica.replica.page_pool import PagePool, open_page_pool
from litereplica.replica.page_store import PageStore
from litereplica.replica.slot_index import SlotIndex

SLOTS = 512
PAGE_SIZE = 512
SMALL = 32


def pages(database: int, numbers: range, *, page_size: int = PAGE_SIZE) -> dict[PageKey, bytes]:
    return {page_key(1 << 63 | database, n): random.Random(n).randbytes(page_size) for n in numbers}


@asynccontextmanager
async def pool_of(directory: Path, *, slots: int = SLOTS) -> AsyncIterator[PagePool]:
    async with open_page_pool(directory, size=slots * PAGE_SIZE * 8 // 7, memory_size=0) as pool:
        yield pool


async def keep(store: PageStore, content: dict[PageKey, bytes]) -> None:
    """Put pages, and wait until they are on disk."""
    await store.keep(content)
    assert store._disk is not None
    while store._disk._pending:  # noqa: ASYNC110
        await trio.sleep(0.001)


async def count(store: PageStore, content: dict[PageKey, bytes]) -> int:
    found = await store.load(list(content))
    assert all(content[key] == page for key, page in found.items())
    return len(found)


async def test_a_scan_does_not_evict_what_others_have(tmp_path: Path) -> None:
    async with (
        pool_of(tmp_path) as pool,
        pool.pages("small", PAGE_SIZE) as small,
        pool.pages("large", PAGE_SIZE) as large,
    ):
        held = pages(1, range(1, SMALL + 1))
        await keep(small, held)
        scanned = pages(2, range(1, 8 * SLOTS))
        await keep(large, scanned)
    async with pool_of(tmp_path) as pool, pool.pages("small", PAGE_SIZE) as small:
        assert await count(small, held) == SMALL
        assert await count(small, scanned) >= SLOTS - SMALL - 1


async def test_a_database_alone_has_the_whole_disk(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as pool:
        async with pool.pages("one", PAGE_SIZE) as one, pool.pages("two", PAGE_SIZE):
            await keep(one, pages(1, range(1, 2 * SLOTS)))
        async with pool.pages("two", PAGE_SIZE) as two:
            content = pages(2, range(1, SLOTS + 1))
            await keep(two, content)
    async with pool_of(tmp_path) as pool, pool.pages("two", PAGE_SIZE) as two:
        assert await count(two, content) >= SLOTS - SMALL


async def test_page_sizes_have_tiers_of_their_own_and_one_budget(tmp_path: Path) -> None:
    size = 1 << 20
    async with open_page_pool(tmp_path, size=size, memory_size=1 << 16) as pool:
        for page_size in (4096, 1024, 65536):
            async with pool.pages("x", page_size) as store:
                content = pages(1, range(1, 2 * size // page_size), page_size=page_size)
                await keep(store, content)
                assert await count(store, content) > 0
    used = sum(file.stat().st_size for file in tmp_path.glob("pages-*/pages"))  # noqa: ASYNC240
    assert size // 2 < used <= size + 65536  # each tier has one page at least


@pytest.mark.parametrize("seed", range(3))
def test_owners_above_their_share_reuse_their_own_slots(seed: int) -> None:
    chance = random.Random(seed)
    index = SlotIndex(np.zeros(100, np.uint64))
    held: dict[int, tuple[int, PageKey]] = {}
    for step in range(2000):
        owner = chance.choice([1, 2, 2, 2, 3])
        wanted = chance.randrange(1, 8)
        before = {slot: each for slot, (each, _) in held.items()}
        mine = sum(each == owner for each in before.values())
        slots = index.take(wanted, owner=owner, share=33)
        assert 0 < len(slots) == len(set(slots)) <= wanted
        taken = sum(before.get(slot, owner) != owner for slot in slots)
        assert taken <= max(0, 33 - mine) or len(before) < 100
        keys = [page_key(owner, step * 10 + i) for i in range(len(slots))]
        index.insert(slots, keys, owner=owner)
        held |= {slot: (owner, key) for slot, key in zip(slots, keys, strict=True)}
        for slot, (_, key) in chance.sample(sorted(held.items()), min(5, len(held))):
            assert slot in index.find(key)
            index.mark_read(slot)
    assert min(sum(each == owner for each, _ in held.values()) for owner in (1, 2, 3)) >= 25
