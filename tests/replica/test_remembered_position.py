"""A mount that is started again does not go back in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from litereplica.errors import TransientStorageError
from litereplica.ltxstore.outdated_listing import is_gone
from litereplica.replica import remembered_position
from litereplica.replica.remembered_position import FILE_NAME, WRITE_INTERVAL_S, RememberedPosition
from litereplica.storage.base import ObjectInfo
from tests.helpers.history import History
from tests.helpers.outdated_listings import OutdatedListings
from tests.replica.test_database import Bench, Clock, content, made_anew


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(remembered_position, "LISTING_PAUSE_S", 0.0)
    return Bench(history=History(storage=OutdatedListings()))


async def serve_three(bench: Bench, cache: Path) -> list[ObjectInfo]:
    """Two transactions at the start and one by a poll; returns the listing of before the last one."""
    await bench.history.commit({1: b"a"})
    await bench.history.commit({1: b"b"})
    shown = await bench.history.storage.list("")
    async with bench.replica(cache) as replica:
        await bench.history.commit({1: b"c"})
        assert await replica.poll() is not None
    return shown


async def test_an_outdated_listing_is_not_served_again(bench: Bench, tmp_path: Path) -> None:
    shown = await serve_three(bench, tmp_path)
    assert isinstance(bench.history.storage, OutdatedListings)
    bench.history.storage.shown = shown
    with pytest.raises(TransientStorageError, match="lists no file beyond TXID 0000000000000002, but has"):
        async with bench.replica(tmp_path):
            pass
    bench.history.storage.shown = None
    async with bench.replica(tmp_path) as replica:
        assert replica.snapshot.pos.txid == 3


@pytest.mark.logs("0000000000000003 was served from it before: it was rolled back or made anew")
async def test_a_replica_that_was_rolled_back_or_made_anew_is_served(bench: Bench, tmp_path: Path) -> None:
    await serve_three(bench, tmp_path)
    made_anew(bench.history)
    await bench.history.commit({1: b"other"})
    async with bench.replica(tmp_path) as replica:
        assert await content(replica) == bench.history.at(1)
    async with bench.replica(tmp_path) as replica:  # said once
        assert replica.snapshot.pos.txid == 1


async def test_one_outdated_listing_does_not_take_it_back_although_its_file_was_pruned(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that ends at the remembered TXID has gone into a merged one, which the first listing does not show."""
    shown = await serve_three(bench, tmp_path)
    storage = bench.history.storage
    assert isinstance(storage, OutdatedListings)
    await bench.history.commit({1: b"d"})
    await bench.history.compact(1, 1, 4)
    await bench.history.delete(0, 3)
    storage.shown = shown

    async def is_gone_and_the_listing_recovers(*args: Any, **options: Any) -> bool:
        gone = await is_gone(*args, **options)
        storage.shown = None
        return gone

    monkeypatch.setattr(remembered_position, "is_gone", is_gone_and_the_listing_recovers)
    with pytest.raises(TransientStorageError, match="was out of date"):
        async with bench.replica(tmp_path):
            pass
    async with bench.replica(tmp_path) as replica:
        assert replica.snapshot.pos.txid == 4


@pytest.mark.parametrize("damage", [b"", b"not a TXID at all", b"\xff" * 16])
async def test_a_damaged_note_is_none(bench: Bench, tmp_path: Path, damage: bytes) -> None:
    await serve_three(bench, tmp_path)
    (tmp_path / FILE_NAME).write_bytes(damage)
    async with bench.replica(tmp_path) as replica:
        assert replica.snapshot.pos.txid == 3
    assert RememberedPosition(tmp_path, clock=Clock()).read() == 3


async def test_it_is_written_once_a_second_at_most_and_never_through_a_link(tmp_path: Path) -> None:
    clock = Clock()
    remembered = RememberedPosition(tmp_path, clock=clock)
    for txid in range(1, 5):
        remembered.note(txid)
    assert remembered.read() == 1
    clock.now += WRITE_INTERVAL_S
    remembered.note(5)
    assert remembered.read() == 5
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    remembered.note(6)
    remembered.flush()
    assert not (tmp_path / "elsewhere").exists()
