"""Bugs that users of Litestream met when they restored, each as a test of ours. `ls` are threads of
benbjohnson/litestream.
"""

from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import MockClock as Clock

from litereplica.compaction.compaction import compact_level
from litereplica.history.timeline import timestamps
from litereplica.ltxstore.plan import reachable_txids
from litereplica.ltxstore.store import open_ltx_store
from litereplica.restore.restore import restore
from litereplica.storage.wrappers import MeteredStorage
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.s3_proxy import Exchange, Misbehaviour, Trouble, s3_proxy
from tests.conftest import S3Bucket
from tests.helpers.history import FIRST_TIMESTAMP_MS, History
from tests.ltxstore.replicas import memory_store

SECONDS = 60
OBJECTS = 5000


async def test_ls_771_1038_1084_every_second_is_restored_before_and_after_level_0_is_deleted(tmp_path: Path) -> None:
    """One write a second, compacted every 10, level 0 deleted: all that is still a point is exactly what it was."""
    history = History()
    store = history.store
    out = tmp_path / "out.db"

    async def require_each_second() -> int:
        points = reachable_txids(await store.list_levels())
        for second in range(1, history.txid + 1):
            result = await restore(store, out, before_ms=FIRST_TIMESTAMP_MS + second + 1, force=True)
            assert result.txid == max(point for point in points if point <= second)
            pages = history.at(result.txid)
            assert out.read_bytes() == b"".join(pages[pgno] for pgno in sorted(pages))
        return len(points)

    await history.commit({1: b"first"})
    await history.snapshot()
    while history.txid < SECONDS:
        await history.commit({1: b"%d" % history.txid, history.txid % 7 + 2: b"x%d" % history.txid})
        if history.txid % 10 == 0:
            assert await compact_level(store, 1) is not None
    assert await require_each_second() == SECONDS
    await store.delete((await store.list_level(0))[:-1])
    assert await require_each_second() == 1 + SECONDS // 10


async def test_ls_930_a_time_among_5000_objects_is_restored_with_few_requests(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    history = History()
    await history.commit({1: b"0", 2: b"0"})
    while history.txid < OBJECTS:
        await history.commit({1: b"%d" % history.txid})
        history.databases.pop(history.txid - 2)
        if history.txid % 500 == 0:
            await history.snapshot()
    meter = MeteredStorage(history.storage)
    distant = memory_store(LatencyStorage(meter, 0.02))
    before, started = meter.statistics().requests, trio.current_time()
    result = await restore(distant, tmp_path / "out.db", before_ms=FIRST_TIMESTAMP_MS + 3_011)
    assert result.txid == 3_010
    assert trio.current_time() - started < 2
    assert meter.statistics().requests - before < 10 + 40 + len(result.files)
    infos = await distant.list_level(0)
    started = trio.current_time()
    assert len(await timestamps(distant, infos)) == OBJECTS
    assert trio.current_time() - started < 20


async def test_ls_1077_connections_that_are_cut_in_the_middle_of_a_restore_are_made_again(
    tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    """Every third request is reset instead of answered; the restore is exact all the same."""
    history = History()
    await history.commit({1: b"first", 60: b"last"})
    for number in range(20):
        await history.commit({1: b"%d" % number, number + 2: b"x"})
    direct = open_ltx_store(s3_bucket.url)
    for info in await history.store.list_levels():
        await direct.put(info, (await history.store.get(info)).data, timestamp_ms=FIRST_TIMESTAMP_MS)
    await direct.aclose()
    count = 0

    def plan(exchange: Exchange) -> Misbehaviour | None:
        nonlocal count
        count += 1
        return Misbehaviour(Trouble.RESET) if count % 3 == 0 else None

    with s3_proxy(s3_bucket.server) as proxy:
        proxy.plan = plan
        store = open_ltx_store(proxy.url(s3_bucket.name))
        await restore(store, tmp_path / "out.db")
        await store.aclose()
    pages = history.at(history.txid)
    assert (tmp_path / "out.db").read_bytes() == b"".join(pages[pgno] for pgno in sorted(pages))
    assert count > 30
