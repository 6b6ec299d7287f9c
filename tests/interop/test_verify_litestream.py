"""`verify` finds nothing wrong with what the real Litestream has published, compacted, snapshotted and pruned,
alone and in turns with us; and what it says is lost, Litestream cannot restore.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.compaction.compaction import compact_level, snapshot
from litereplica.compaction.pruner import Pruner
from litereplica.compaction.retention import RetentionPolicy
from litereplica.history.verify import Severity, verify
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.testing.litestream import NEVER, LitestreamProcess, run_litestream
from litereplica.times import DAY_MS, SteadyClock
from tests.conftest import S3Bucket
from tests.helpers.pruning import prune_due

pytestmark = pytest.mark.slow

DEADLINE_S = 20.0

COMPACTING: dict[str, Any] = {
    "levels": [{"interval": "200ms"}, {"interval": "500ms"}],
    "snapshot": {"interval": "700ms", "retention": "1500ms"},
    "l0-retention": "300ms",
    "l0-retention-check-interval": "200ms",
}

IDLE: dict[str, Any] = {
    "levels": [{"interval": NEVER}, {"interval": NEVER}],
    "snapshot": {"interval": NEVER, "retention": NEVER},
    "l0-retention": NEVER,
}


def sql(db: Path, statements: str) -> None:
    subprocess.run(["sqlite3", "-bail", str(db)], input=statements, check=True, capture_output=True, text=True)


def make_database(db: Path) -> None:
    sql(db, "PRAGMA auto_vacuum=2; PRAGMA journal_mode=wal; CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB);")


def workload() -> Iterator[str]:
    """Grows, rewrites, shrinks, regrows; for ever."""
    insert = "INSERT INTO t (body) SELECT randomblob(900) FROM generate_series(1, {rows});"
    while True:
        yield insert.format(rows=60)
        yield "UPDATE t SET body = randomblob(20) WHERE id % 3 = 0;"
        yield "DELETE FROM t WHERE id % 5; PRAGMA incremental_vacuum;"
        yield insert.format(rows=30)
        yield "VACUUM;"


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/replica"
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    return bucket.url


def publish(litestream: LitestreamProcess, db: Path, statements: Iterator[str], count: int) -> None:
    for each in itertools.islice(statements, count):
        sql(db, each)
        litestream.sync()


async def assert_sound(store: LTXStore) -> None:
    report = await verify(store)
    assert [problem for problem in report.problems if problem.severity is not Severity.NOTE] == []
    assert report.points > 0


async def publish_until(
    store: LTXStore,
    litestream: LitestreamProcess,
    db: Path,
    statements: Iterator[str],
    done: Callable[[set[int]], bool],
) -> None:
    """Go on writing, and verifying while files come and go, until the levels that have files are as they should."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        publish(litestream, db, statements, 1)
        await assert_sound(store)
        levels = {info.level for info in await store.list_levels()}
        lowest = min(info.min_txid for info in await store.list_level(0))
        if done(levels) and lowest > 1:
            return
        assert time.monotonic() < deadline, levels


async def test_replica_of_litestream_is_sound_while_it_compacts_and_prunes_and_afterwards(
    tmp_path: Path, url: str
) -> None:
    db, statements = tmp_path / "app.db", workload()
    make_database(db)
    store = open_ltx_store(url)
    with LitestreamProcess(db, url, settings=COMPACTING) as litestream:
        await publish_until(store, litestream, db, statements, lambda levels: levels >= {0, 1, 2, 9})
    await assert_sound(store)
    await store.aclose()


async def test_replica_that_litestream_and_we_compacted_in_turns_is_sound(tmp_path: Path, url: str) -> None:
    db, statements = tmp_path / "app.db", workload()
    make_database(db)
    store = open_ltx_store(url)
    for _ in range(2):
        with LitestreamProcess(db, url, settings=COMPACTING) as litestream:
            await publish_until(store, litestream, db, statements, lambda levels: levels >= {0, 1, 2, 9})
        with LitestreamProcess(db, url, sync_interval=NEVER, settings=IDLE) as litestream:
            publish(litestream, db, statements, 6)
            for level in (1, 2):
                await compact_level(store, level)
            await snapshot(store)
            await assert_sound(store)
            clock = SteadyClock(lambda: time.time_ns() // 1_000_000 + 90 * DAY_MS)
            assert await prune_due(Pruner(store, RetentionPolicy(l0_ms=1, snapshot_ms=1), clock))
            await assert_sound(store)
    await store.aclose()


async def test_what_is_said_to_be_lost_litestream_cannot_restore_and_the_rest_it_can(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/replica"
    db, statements = tmp_path / "app.db", workload()
    make_database(db)
    store = open_ltx_store(url)
    with LitestreamProcess(db, url, sync_interval=NEVER, settings=IDLE) as litestream:
        publish(litestream, db, statements, 4)
        await compact_level(store, 1)
        await snapshot(store)
        publish(litestream, db, statements, 4)
    files = await store.list_level(0)
    await store.delete([info for info in files if info.max_txid == files[-2].max_txid])
    report = await verify(store)
    (problem,) = [problem for problem in report.problems if problem.severity is Severity.ERROR]
    lost = files[-1].max_txid
    assert problem.lost == (lost, lost)
    for txid, code in ((lost, 1), (files[-3].max_txid, 0)):
        out = tmp_path / f"{txid}.db"
        restoring = ("restore", "-txid", f"{txid:016x}", "-o", out, url)
        done = await trio.to_thread.run_sync(partial(run_litestream, *restoring))
        assert done.code == code, done.stderr
    await store.aclose()
