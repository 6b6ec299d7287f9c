"""Levels, snapshots and deletions of ours and of the real Litestream, on top of each other's.

After each turn Litestream itself restores the replica, at its newest TXID and at all others that the files still
lead to; the results are ours, byte for byte.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.compaction.compaction import Compacted, compact_level, snapshot
from litereplica.compaction.pruner import Pruner
from litereplica.compaction.retention import RetentionPolicy
from litereplica.ltxstore.plan import plan_restore, reachable_txids
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.restore.restore import restore
from litereplica.testing.litestream import NEVER, LitestreamProcess, litestream_plan, litestream_restore, run_litestream
from litereplica.testing.ltx_files import read_file
from litereplica.times import DAY_MS, SteadyClock
from tests.conftest import S3Bucket
from tests.helpers.pruning import prune_due

pytestmark = pytest.mark.slow

DEADLINE_S = 20.0

IDLE: dict[str, Any] = {
    "levels": [{"interval": NEVER}, {"interval": NEVER}],
    "snapshot": {"interval": NEVER, "retention": NEVER},
    "l0-retention": NEVER,
}
"""Litestream publishes, and leaves the rest to us. (It compacts once when it starts.)"""

COMPACTING: dict[str, Any] = {
    "levels": [{"interval": "200ms"}, {"interval": "500ms"}],
    "snapshot": {"interval": "700ms", "retention": "10s"},
    "l0-retention": "300ms",
    "l0-retention-check-interval": "200ms",
}


def sql(db: Path, statements: str) -> str:
    done = subprocess.run(["sqlite3", "-bail", str(db)], input=statements, check=True, capture_output=True, text=True)
    return done.stdout


def make_database(db: Path) -> None:
    sql(
        db,
        "PRAGMA auto_vacuum=2; PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB, word TEXT);",
    )


def workload() -> Iterator[str]:
    """Grows, rewrites, shrinks, regrows; for ever."""
    insert = "INSERT INTO t (body, word) SELECT randomblob(900), 'w' || value FROM generate_series(1, {rows});"
    while True:
        yield insert.format(rows=60)
        yield "UPDATE t SET body = randomblob(20) WHERE id % 3 = 0;"
        yield "DELETE FROM t WHERE id % 5; PRAGMA incremental_vacuum;"
        yield insert.format(rows=30)
        yield "VACUUM;"
        yield "UPDATE t SET word = 'x' WHERE id % 7 = 1;"


async def assert_all_is_restored_alike(url: str, store: LTXStore, db: Path, directory: Path) -> None:
    """Every point that the files lead to, by Litestream and by us; the newest is the database."""
    ours, theirs = directory / "ours.db", directory / "theirs.db"
    points = reachable_txids(await store.list_levels())
    for txid in points:
        theirs.unlink(missing_ok=True)
        if txid == points[-1]:
            litestream_restore(url, theirs)
        else:
            done = run_litestream("restore", "-txid", f"{txid:016x}", "-o", theirs, url)
            assert done.code == 0, (txid, done.stderr)
        await restore(store, ours, target=txid, force=True)
        assert ours.read_bytes() == theirs.read_bytes(), txid
    assert sql(theirs, "PRAGMA integrity_check") == "ok\n"
    assert sql(theirs, ".dump t") == sql(db, ".dump t")


async def assert_levels_have_no_gaps(store: LTXStore, *levels: int) -> None:
    """What Litestream's own check of a level asks for: each file begins right behind the one before."""
    for level in levels:
        files = await store.list_level(level)
        assert files
        for before, after in itertools.pairwise(files):
            assert after.min_txid == before.max_txid + 1, level


async def prune(store: LTXStore, *, snapshot_ms: int | None = 1) -> int:
    """Delete all that may go, as if months had passed."""
    clock = SteadyClock(lambda: time.time_ns() // 1_000_000 + 90 * DAY_MS)
    return len(await prune_due(Pruner(store, RetentionPolicy(l0_ms=1, snapshot_ms=snapshot_ms), clock)))


def publish(litestream: LitestreamProcess, db: Path, statements: Iterator[str], count: int) -> int:
    txid = 0
    for each in itertools.islice(statements, count):
        sql(db, each)
        txid = litestream.sync()
    return txid


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/replica"
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    return bucket.url


async def test_litestream_restores_what_we_compacted_snapshotted_and_pruned(tmp_path: Path, url: str) -> None:
    db, statements = tmp_path / "app.db", workload()
    make_database(db)
    store = open_ltx_store(url)
    with LitestreamProcess(db, url, sync_interval=NEVER, settings=IDLE) as litestream:

        async def merged(*merges: Callable[[], Awaitable[Compacted | None]]) -> None:
            """Publish until there is something for us to merge: Litestream may come first when it starts."""
            with trio.fail_after(DEADLINE_S):
                for number, merge in enumerate(merges):
                    while await merge() is None:
                        publish(litestream, db, statements, 1)
                        for before in merges[:number]:
                            await before()

        publish(litestream, db, statements, 3)
        to_level_1, to_level_2 = partial(compact_level, store, 1), partial(compact_level, store, 2)
        await merged(to_level_1)
        publish(litestream, db, statements, 2)
        await merged(to_level_1, to_level_2)
        await assert_all_is_restored_alike(url, store, db, tmp_path)
        await assert_levels_have_no_gaps(store, 1)
        assert await prune(store, snapshot_ms=None) > 0
        await assert_all_is_restored_alike(url, store, db, tmp_path)
        publish(litestream, db, statements, 2)  # it goes on, although level 0 was pruned meanwhile
        await merged(partial(snapshot, store))
        publish(litestream, db, statements, 1)
        assert await prune(store) > 0
        await assert_all_is_restored_alike(url, store, db, tmp_path)
        assert litestream_plan(url)[0]["level"] == 9
    await store.aclose()


@pytest.mark.slow
async def test_levels_are_handed_over_both_ways(tmp_path: Path, url: str) -> None:
    """Litestream compacts and deletes; then we; then Litestream on top of ours; three times."""
    db, statements = tmp_path / "app.db", workload()
    make_database(db)
    store = open_ltx_store(url)
    for turn in range(3):
        with LitestreamProcess(db, url, sync_interval=NEVER, settings=COMPACTING) as litestream:
            txid = publish(litestream, db, statements, 2)
            with trio.fail_after(DEADLINE_S):
                while max((info.max_txid for info in await store.list_level(2)), default=0) < txid:
                    await trio.sleep(0.05)
                    sql(db, "UPDATE t SET word = 'on' WHERE id = 1")
                    litestream.sync()
            txid = publish(litestream, db, statements, 2)
            assert "compaction failed" not in litestream.log
        await assert_all_is_restored_alike(url, store, db, tmp_path)
        for level in (1, 2, 3):
            await compact_level(store, level)
        if turn != 1:
            await snapshot(store)
        await prune(store, snapshot_ms=None if turn == 0 else 1)
        await assert_all_is_restored_alike(url, store, db, tmp_path)
        await assert_levels_have_no_gaps(store, 1, 2)
        assert plan_restore(await store.list_levels())[-1].max_txid >= txid
    await store.aclose()


async def test_compacted_file_of_ours_is_the_one_that_litestream_makes(tmp_path: Path) -> None:
    """The same inputs: we find Litestream's result to be ours. Without it, ours takes its place."""
    db, url, statements = tmp_path / "app.db", f"file://{tmp_path}/replica", workload()
    make_database(db)
    store = open_ltx_store(url)
    keeping = COMPACTING | {"l0-retention": "1h", "snapshot": {"interval": NEVER, "retention": NEVER}}
    with LitestreamProcess(db, url, sync_interval=NEVER, settings=keeping) as litestream:
        publish(litestream, db, statements, 4)
        with trio.fail_after(DEADLINE_S):
            while len(await store.list_level(1)) < 2:
                publish(litestream, db, statements, 1)
                await trio.sleep(0.05)
    theirs = (await store.list_level(1))[-1]
    before = await read_file(store, theirs)
    await store.delete(
        [info for level in (1, 2) for info in await store.list_level(level) if info.max_txid >= theirs.max_txid]
    )
    await store.delete([info for info in await store.list_level(0) if info.max_txid > theirs.max_txid])
    await store.delete([info for info in await store.list_level(2) if info.max_txid >= theirs.min_txid])
    done = await compact_level(store, 1)
    assert done is not None
    assert (done.info.min_txid, done.info.max_txid) == (theirs.min_txid, theirs.max_txid)
    after = await read_file(store, done.info)
    assert after.header == before.header
    assert (after.index.pgno.tolist(), after.pages) == (before.index.pgno.tolist(), before.pages)
    await store.aclose()
