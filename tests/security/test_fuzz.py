"""Replicas of files whose structure is wrong and whose checksums are right, so that they get past the checksums.

Every reader must end with a result or one of our errors, within a bound of memory, and two readers that both succeed
must have read the same database. `scripts/fuzz --minutes N` runs this with many more examples.
"""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litereplica.compaction.compaction import compact_level, snapshot
from litereplica.errors import LiteReplicaError
from litereplica.format import ltx
from litereplica.history.verify import verify
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.database import open_replica
from litereplica.restore.restore import restore
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from tests.format.builders import CraftedFile, Frame, block_frame, legacy_frame, make_header, make_page
from tests.ltxstore.replicas import memory_store

T = TypeVar("T")

EXAMPLES = int(os.environ.get("LITEREPLICA_FUZZ_EXAMPLES", "15"))
"""The share of a usual test run."""

MEMORY_BYTES = 64 << 20
MOST = 0xFFFFFFFE

COMMITS = st.one_of(st.integers(1, 6), st.sampled_from([0, 7, 255, 1 << 16, 1 << 31, MOST]))
PGNOS = st.one_of(st.integers(0, 7), st.sampled_from([255, 1 << 21, 1 << 31, MOST]))


@st.composite
def frames(draw: st.DrawFn, pgno: int) -> Frame:
    page = make_page(draw(st.integers(0, 9)))
    kind = draw(st.sampled_from(["block", "block", "block", "legacy", "short", "long", "claim"]))
    if kind == "legacy":
        return legacy_frame(pgno, page)
    if kind == "short":
        return block_frame(pgno, page[: draw(st.integers(0, 511))])
    if kind == "long":
        return block_frame(pgno, page * 2)
    claim = draw(st.integers(0, 1 << 32 - 1)) if kind == "claim" else None
    return block_frame(pgno, page, claim=claim)


@st.composite
def crafted(draw: st.DrawFn, low: int, high: int, level: int) -> bytes:
    """A file for these TXIDs: often sound, otherwise with one or two parts that are not."""
    commit = draw(COMMITS)
    sound = sorted(draw(st.sets(st.integers(1, 6), max_size=6)))
    header = bytearray(make_header(txids=(low, high), commit=max(commit, 1)).encode())
    pgnos = list(range(1, min(max(commit, 1), 6) + 1)) if low == 1 and draw(st.booleans()) else sound
    made = [block_frame(pgno, make_page(pgno + high)) for pgno in pgnos]
    file = CraftedFile(bytes(header), made)
    for _ in range(draw(st.integers(0, 2))):
        match draw(st.sampled_from(["commit", "txids", "page size", "frame", "order", "entries", "index size", "end"])):
            case "commit":
                header[12:16] = draw(COMMITS).to_bytes(4, "big")
            case "txids":
                header[16:32] = b"".join(draw(st.integers(0, (1 << 64) - 1)).to_bytes(8, "big") for _ in range(2))
            case "page size":
                header[8:12] = draw(st.sampled_from([0, 1, 256, 512, 1000, 65536, 1 << 31])).to_bytes(4, "big")
            case "frame":
                file.frames.append(draw(frames(draw(PGNOS))))
            case "order":
                file.frames.reverse()
            case "entries":
                number = st.integers(0, (1 << 64) - 1)
                file.entries = [
                    (draw(PGNOS), draw(number), draw(number)) if draw(st.booleans()) else entry
                    for entry in file.true_entries()
                ]
            case "index size":
                file.index_size = draw(st.integers(0, (1 << 64) - 1))
            case "end":
                file.end = draw(st.binary(max_size=20))
        file.header = bytes(header)
    return file.build()


@st.composite
def replicas(draw: st.DrawFn) -> dict[FileInfo, bytes]:
    """Some files with names that may or may not continue each other."""
    found: dict[FileInfo, bytes] = {}
    for _ in range(draw(st.integers(1, 5))):
        level = draw(st.sampled_from([0, 0, 0, 1, 2, 9]))
        low = 1 if level == 9 else draw(st.integers(1, 4))
        high = low if level == 0 else low + draw(st.integers(0, 3))
        data = draw(crafted(low, high, level))
        found[FileInfo(level, low, high, len(data))] = data
    return found


async def outcome(work: Callable[[], Awaitable[T]]) -> T | None:
    """The result, or None for one of our errors; anything else fails the test."""
    try:
        with trio.fail_after(60):
            return await work()
    except LiteReplicaError:
        return None


async def mounted(store: LTXStore) -> tuple[int, bytes] | None:
    async def read() -> tuple[int, bytes]:
        async with open_replica(store) as replica:
            shown = replica.snapshot
            pgnos = np.arange(1, shown.commit + 1, dtype=np.uint32)
            pages = await replica.read(pgnos, shown.pages.lookup(pgnos), around=shown.pages)
            return shown.pos.txid, b"".join(pages)

    return await outcome(read)


async def restored(store: LTXStore) -> tuple[int, bytes] | None:
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "restored.db"
        done = await outcome(lambda: restore(store, output))
        assert output.exists() == (done is not None)
        return None if done is None else (done.txid, output.read_bytes())


@pytest.mark.logs(".")
@settings(max_examples=EXAMPLES, suppress_health_check=[*HealthCheck], print_blob=True)
@given(files=replicas())
@pytest.mark.slow
def test_every_reader_of_a_hostile_replica_ends_with_a_result_or_an_error_of_ours(files: dict[FileInfo, bytes]) -> None:
    async def attack() -> None:
        store = memory_store(MemoryStorage())
        for info, data in files.items():
            await store.storage.put(store.key(info), data, modified_ms=1)
        from_restore, from_mount = await restored(store), await mounted(store)
        if from_restore is not None and from_mount is not None and from_restore[0] == from_mount[0]:
            assert from_restore[1] == from_mount[1]
        await outcome(lambda: verify(store))
        await outcome(lambda: verify(store, quick=True))
        for level in (1, 2):
            await outcome(partial(compact_level, store, level))
        await outcome(lambda: snapshot(store))
        after = await restored(store)
        if from_restore is not None and after is not None and after[0] == from_restore[0]:
            assert after[1] == from_restore[1], "compaction changed the database"

    tracemalloc.start()
    try:
        trio.run(attack)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
    finally:
        tracemalloc.stop()


def test_sound_replica_gets_through() -> None:
    """Control: what is drawn is not refused for being crafted."""
    header = make_header(txids=(1, 1), commit=2)
    data = CraftedFile(header.encode(), [block_frame(pgno, make_page(pgno)) for pgno in (1, 2)]).build()
    assert ltx.Header.decode(data) == header

    async def read() -> None:
        store = memory_store(MemoryStorage())
        await store.storage.put(store.key(FileInfo(0, 1, 1, len(data))), data)
        expected = (1, make_page(1) + make_page(2))
        assert await restored(store) == expected
        assert await mounted(store) == expected

    trio.run(read)
