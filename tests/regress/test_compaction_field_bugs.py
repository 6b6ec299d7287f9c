"""Bugs that users of Litestream met in compaction and retention, each as a test of ours; `ls` are threads of
benbjohnson/litestream.

Others of them are shown where they belong: files that straddle a level's end (ls#1460, ls#1464) and overlapping ones
(ls#847) in `tests/compaction/test_levels.py` and `test_compaction.py`, files of a few bytes (ls#1431) in
`test_compaction_refusals.py`, those that vanish between plan and read (ls#1270, ls#1307) in `test_compaction_races.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from litereplica.compaction.levels import Levels
from litereplica.ltxstore.plan import reachable_txids
from litereplica.restore.restore import restore
from litereplica.types import FileInfo
from tests.helpers.app import Application
from tests.ltxstore.replicas import memory_store, publish
from tests.writer.running import replicating, txids, until_published
from tests.writer.simulated import Simulation

DAY_S = 86_400
CYCLES = 100


async def test_ls927_ls997_ls1197_idle_checkpoint_cycles_leave_one_file_a_level(tmp_path: Path) -> None:
    replica = Simulation()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with replicating(app.database, memory_store(replica.storage)):
            await until_published(replica.store, app)
            published = await txids(memory_store(replica.storage))
            for info in await memory_store(replica.storage).list_level(0):
                replica.maintenance.note_published(info)
            for cycle in range(CYCLES):
                await app("PRAGMA wal_checkpoint(PASSIVE)")
                if cycle % 10 == 0:
                    await replica.advance(DAY_S / 10)
        await replica.advance(3 * DAY_S)
    assert replica.maintenance.is_settled
    files = await replica.all_files()
    assert sorted(info.level for info in files) == [0, 1, 2, 3, 9]
    assert {info.max_txid for info in files} == {published[-1]}


async def test_ls771_ls1038_ls1084_each_second_can_be_restored_while_its_file_is_kept(tmp_path: Path) -> None:
    """A write a second, compaction and deletion as they are due; whatever is deleted, each of the last 300 seconds."""
    replica = Simulation(levels=Levels((30_000, 60_000), 120_000))
    for second in range(1, 421):
        await replica.publish()
        await replica.advance(1)
        if second % 60 == 0:
            ends = {info.max_txid for info in await replica.all_files()}
            assert ends >= set(range(max(1, second - 299), second + 1))
            assert set(reachable_txids(await replica.all_files())) == ends
    assert replica.maintenance.statistics().deletions > 50
    for txid in range(421 - 300, 421, 7):
        await restore(replica.store, tmp_path / "out.db", target=txid, force=True)
        assert (tmp_path / "out.db").read_bytes() == replica.history.database(txid), txid


@pytest.mark.logs("has lost files")
async def test_ls1515_levels_go_on_behind_a_gap_that_only_a_snapshot_bridges(tmp_path: Path) -> None:
    """Files of level 0 are lost before they were merged. Once there is a snapshot behind the gap, all goes on."""
    replica = Simulation()
    for _ in range(20):
        await replica.publish()
        await replica.advance(1)
    other = memory_store(replica.storage)
    await other.delete([FileInfo(0, txid, txid, 0) for txid in (8, 9, 10)])
    await replica.advance(60)
    assert (await replica.files(1))[-1][1] <= 7
    await publish(other, replica.history, 9, 1, 12)
    for _ in range(100):
        await replica.publish()
        await replica.advance(60)
    assert (await replica.files(2))[-1][1] > 100
    assert [low for low, _ in (await replica.files(0))[:2]] == [11, 12]  # the snapshot has them, for a day at least
    assert (await replica.files(0))[2][0] > 100
    for txid in reachable_txids(await replica.all_files()):
        await restore(replica.store, tmp_path / "out.db", target=txid, force=True)
        assert (tmp_path / "out.db").read_bytes() == replica.history.database(txid), txid
    assert await replica.newest() == 120
    await replica.advance(3 * DAY_S)
    assert await replica.files(0) == [(120, 120)]
