"""An answer that is damaged once is requested again, by everything that reads LTX files whole or in part."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from litereplica.compaction.compaction import snapshot
from litereplica.errors import DamagedFile
from litereplica.history.timeline import find_txid
from litereplica.history.verify import verify
from litereplica.ltxstore import store as store_module
from litereplica.ltxstore.store import LTXStore
from litereplica.restore import plan_reader
from litereplica.restore.restore import restore
from litereplica.storage.base import Blob, Range
from litereplica.storage.wrappers.delegate import WrapperStorage
from litereplica.testing.memory import MemoryStorage
from tests.ltxstore.replicas import TIMESTAMP_MS, History, memory_store, publish

Work = Callable[[LTXStore, Path], Awaitable[object]]

PAGES = 700


class FlippingOnce(WrapperStorage):
    """Flips a bit in the middle of the first answer for each object, or of every one of them."""

    def __init__(self, inner: MemoryStorage, *, for_good: bool = False) -> None:
        super().__init__(inner)
        self.flipped: set[str] = set()
        self._for_good = for_good

    async def get(self, key: str, range: Range | None = None) -> Blob:
        blob = await super().get(key, range)
        if key in self.flipped and not self._for_good:
            return blob
        self.flipped.add(key)
        data = bytearray(blob.data)
        data[len(data) // 2] ^= 1
        return replace(blob, data=bytes(data))


@pytest.fixture
async def inner() -> MemoryStorage:
    memory = MemoryStorage()
    made = History()
    made.commit(PAGES)
    for pgno in range(1, 4):
        made.commit(PAGES, pgno)
    store = memory_store(memory)
    for txid in range(1, made.txid + 1):
        await publish(store, made, 0, txid, txid)
    return memory


async def restored(store: LTXStore, directory: Path) -> None:
    await restore(store, directory / "restored.db")
    assert (directory / "restored.db").stat().st_size == PAGES * 512


async def verified(store: LTXStore, directory: Path, *, quick: bool) -> None:
    report = await verify(store, quick=quick)
    assert report.errors == 0, report.problems


async def found_by_time(store: LTXStore, directory: Path) -> None:
    assert await find_txid(store, await store.list_levels(), before_ms=TIMESTAMP_MS + 1) == 4


async def merged(store: LTXStore, directory: Path) -> None:
    assert await snapshot(store, spool_dir=directory) is not None


EVERY: list[Work] = [restored, partial(verified, quick=False), partial(verified, quick=True), found_by_time, merged]


@pytest.mark.parametrize("limit", [1000, 256 * 1024])
@pytest.mark.parametrize("work", EVERY)
async def test_answer_that_is_damaged_once_is_requested_again(
    inner: MemoryStorage, tmp_path: Path, work: Work, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files that are read whole in one request, and of larger ones."""
    for module in (store_module, plan_reader):
        monkeypatch.setattr(module, "WHOLE_FILE_LIMIT", limit)
    flipping = FlippingOnce(inner)
    await work(memory_store(flipping), tmp_path)
    assert flipping.flipped


async def test_file_that_stays_damaged_is_said(inner: MemoryStorage, tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match="ltx"):
        await restore(memory_store(FlippingOnce(inner, for_good=True)), tmp_path / "restored.db")
