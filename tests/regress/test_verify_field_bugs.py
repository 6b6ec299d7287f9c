"""Bugs that users of other tools met, as replicas that `verify` looks at: what it must find, and what it must not.

The numbers are threads of benbjohnson/litestream.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from litereplica.format.names import Layout
from litereplica.history.points import Point, read_points, select_points
from litereplica.history.verify import Severity, verify
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.restore import restore
from litereplica.storage.file import FileStorage
from litereplica.types import FileInfo
from tests.ltxstore.replicas import History, publish


@pytest.fixture
def store(tmp_path: Path) -> LTXStore:
    return LTXStore(FileStorage(tmp_path / "replica"), Layout.FILE)


@pytest.fixture
def history() -> History:
    made = History()
    sizes = (6, 9, 4, 12, 12, 20, 20, 25, 25)
    changes = ((), (1, 3), (2,), (1,), (1, 5), (2, 12), (1,), (3,), (9,))
    for size, changed in zip(sizes, changes, strict=True):
        made.commit(size, *changed)
    return made


async def fill(store: LTXStore, history: History, *files: tuple[int, int, int]) -> None:
    for file in files:
        await publish(store, history, *file)


async def points(store: LTXStore) -> list[int]:
    found: list[int] = []

    async def keep(point: Point) -> None:
        found.append(point.txid)

    await read_points(store, await select_points(store), keep)
    return found


async def assert_restored(store: LTXStore, history: History, txids: list[int], directory: Path) -> None:
    for txid in txids:
        await restore(store, directory / f"{txid}.db", target=txid)
        assert (directory / f"{txid}.db").read_bytes() == history.database(txid), txid


async def test_ls_847_overlapping_files_in_a_level_lose_nothing(
    store: LTXStore, history: History, tmp_path: Path
) -> None:
    """1-5, 3-7, 6-9: each point is there, and is what it was."""
    await fill(store, history, (1, 1, 5), (1, 3, 7), (1, 6, 9))
    report = await verify(store)
    keys = [store.key(FileInfo(1, *ends, 0)) for ends in ((3, 7), (6, 9))]
    assert [problem.severity for problem in report.problems] == [Severity.WARNING] * 2
    assert [problem.key for problem in report.problems] == keys
    assert await points(store) == [5, 7, 9]
    await assert_restored(store, history, [5, 7, 9], tmp_path)


@pytest.mark.parametrize("kept", [True, False])
async def test_ls_1460_and_1464_a_straddling_file_is_told_of_and_loses_nothing(
    store: LTXStore, history: History, tmp_path: Path, kept: bool
) -> None:
    """Level 1 has a file across the end of level 2, with and without the level 0 below it."""
    level0 = [(0, txid, txid) for txid in range(1, 10)] if kept else [(0, 9, 9)]
    await fill(store, history, *level0, (1, 1, 2), (1, 3, 8), (2, 1, 5))
    report = await verify(store)
    (problem,) = report.problems
    assert (problem.severity, problem.key) == (Severity.WARNING, store.key(FileInfo(1, 3, 8, 0)))
    assert "where level 2 ends" in problem.what
    expected = list(range(1, 10)) if kept else [2, 5, 8, 9]
    assert await points(store) == expected
    await assert_restored(store, history, expected, tmp_path)


async def test_ls_1515_a_gap_that_only_a_snapshot_bridges_is_crossed_and_told_of(
    store: LTXStore, history: History, tmp_path: Path
) -> None:
    """Files are missing at 3 and 4; the snapshot at 7 leads on. What lies in between is lost, and nothing else."""
    await fill(store, history, (0, 1, 1), (0, 2, 2), (0, 5, 5), (0, 6, 6), (0, 7, 7), (0, 8, 8), (9, 1, 7))
    report = await verify(store)
    errors = [problem for problem in report.problems if problem.severity is Severity.ERROR]
    assert [problem.lost for problem in errors] == [(5, 6)]
    assert await points(store) == [1, 2, 7, 8]
    await assert_restored(store, history, [1, 2, 7, 8], tmp_path)
