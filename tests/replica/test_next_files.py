"""Following a store that changes under us: files that will be deleted, and replicas made anew."""

from __future__ import annotations

import pytest

from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.lineage import goes_on
from litereplica.replica.next_files import LIST_INTERVAL_S, REBASE_INTERVAL_S, left_behind
from litereplica.replica.request_costs import Purpose
from litereplica.storage.prices import S3_PRICES_USD
from litereplica.storage.wrappers import MeteredStorage, Operation
from litereplica.types import FileInfo
from tests.helpers.history import History
from tests.replica.test_database import Bench, content, made_anew


def file(level: int, first: int, last: int) -> FileInfo:
    return FileInfo(level, first, last, 1000)


# --- files that will be deleted ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_use", "lasting", "expected"),
    [
        pytest.param([file(9, 1, 50), file(0, 51, 51)], [file(9, 1, 50)], False, id="the newest snapshot and after it"),
        pytest.param([file(9, 1, 50), file(9, 1, 90)], [file(9, 1, 90)], True, id="an older snapshot"),
        pytest.param([file(3, 1, 50), file(0, 91, 91)], [file(9, 1, 90)], True, id="a compaction before the snapshot"),
        pytest.param([file(9, 1, 50), file(1, 51, 60)], [file(9, 1, 50), file(3, 51, 70)], True, id="L1 in an L3"),
        pytest.param([file(9, 1, 50), file(1, 71, 80)], [file(9, 1, 50), file(3, 51, 70)], False, id="L1 after L3"),
        pytest.param([file(0, 1, 1), file(0, 2, 2)], [], False, id="nothing that lasts"),
        pytest.param([], [file(9, 1, 50)], False, id="nothing in use"),
    ],
)
def test_files_that_retention_deletes_are_left_behind(
    in_use: list[FileInfo], lasting: list[FileInfo], expected: bool
) -> None:
    assert left_behind(in_use, lasting) is expected


async def test_a_mount_that_is_open_for_weeks_does_not_need_its_first_files_again() -> None:
    bench = Bench(memory_size=0)
    await bench.history.commit({n: b"%d" % n for n in range(1, 9)})
    async with bench.replica() as replica:
        for _ in range(5):
            for _ in range(3):
                await bench.history.commit({1: b"at %d" % bench.history.txid})
            await replica.poll()
            await bench.history.snapshot()
            bench.clock.now += REBASE_INTERVAL_S + 1
            update = await replica.poll()
            assert update is not None
            assert update.relocated
            assert update.changed.tolist() == []
            for item in await bench.history.storage.list(""):
                if f"{bench.history.txid:016x}.ltx" not in item.key:
                    await bench.history.storage.delete([item.key])
            assert await content(replica) == bench.history.at(bench.history.txid)
        assert replica.statistics().heals == 0


async def test_looking_for_newer_files_costs_two_listings_and_nothing_when_there_are_none() -> None:
    bench = Bench()
    await bench.history.commit({1: b"a"})
    await bench.history.snapshot()
    async with bench.replica() as replica:
        bench.clock.now += REBASE_INTERVAL_S + 1
        await replica.poll()
        before = replica.snapshot
        for _ in range(3):
            bench.clock.now += LIST_INTERVAL_S - 1
            with bench.spending(get=1, list=0):
                assert await replica.poll() is None
            bench.clock.now += REBASE_INTERVAL_S + 1
            counts = bench.requests()
            assert await replica.poll() is None
            assert bench.requests()["get"] - counts["get"] == 1
        assert replica.snapshot is before


# --- a replica made anew ----------------------------------------------------------------------


async def test_headers_go_on_where_the_wal_does() -> None:
    history = History()
    for n in range(3):
        await history.commit({1: b"%d" % n})
    files = [await history.store.open(info) for info in await history.store.list_level(0)]
    first, second, third = (file.header for file in files)
    assert goes_on(first, second)
    assert goes_on(second, third)
    assert not goes_on(first, third)
    assert not goes_on(second, first)


@pytest.mark.logs("was replaced or restored", "reading the whole database anew")
@pytest.mark.parametrize("lineage", [0, 7])
async def test_a_replica_made_anew_is_noticed_before_its_next_file_is_applied(lineage: int) -> None:
    """Also if it has the same lineage, as after a bucket or a machine was rolled back."""
    bench = Bench()
    bench.history.lineage = lineage
    for n in range(3):
        await bench.history.commit({1: b"%d" % n, 2: b"%d" % n})
    async with bench.replica() as replica:
        made_anew(bench.history)
        bench.history.lineage = lineage
        for n in range(5):
            await bench.history.commit({n + 1: b"other %d" % n})
        update = await replica.poll()
        assert update is not None
        assert replica.snapshot.pos.txid == 5
        assert await content(replica) == bench.history.at(5)


@pytest.mark.logs("reading the whole database anew")
@pytest.mark.parametrize("lineage", [0, 7])
@pytest.mark.parametrize("commits", [3, 4])
async def test_a_replica_made_anew_is_noticed_when_pages_are_looked_for_in_other_files(
    lineage: int, commits: int
) -> None:
    """It has come as far as ours, and the file that we are at has a name that it never had, or another content."""
    bench = Bench(memory_size=0)
    bench.history.lineage = lineage
    for n in range(1, 4):
        await bench.history.commit({1: b"%d" % n, n: b"%d" % n})
    await bench.history.compact(3, 1, 3)
    for n in range(1, 4):
        await bench.history.delete(0, n)
    async with bench.replica() as replica:
        made_anew(bench.history)
        for n in range(1, commits + 1):
            await bench.history.commit({1: b"other %d" % n}, pages=3)
        update = await replica.heal()
        assert update is not None
        assert update.changed.tolist() == [1, 2, 3]
        assert await content(replica) == bench.history.at(3)


@pytest.mark.parametrize("lineage", [0, 7])
async def test_a_restart_of_the_wal_costs_one_small_request_at_most(lineage: int) -> None:
    """Litestream's files have no lineage."""
    bench = Bench()
    bench.history.lineage = lineage
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        await bench.history.commit({1: b"b"})
        with bench.spending(get=2, list=0):
            assert await replica.poll() is not None
        bench.history.wal_salts = (8, 9)
        await bench.history.commit({1: b"c"})
        with bench.spending(get=3, list=0):
            assert await replica.poll() is not None
        assert await content(replica) == bench.history.at(3)


@pytest.mark.parametrize("lineage", [0, 7])
async def test_after_our_file_was_pruned_the_whole_plan_is_read_anew_unless_lineage_is_proof(lineage: int) -> None:
    bench = Bench()
    bench.history.lineage = lineage
    await bench.history.commit({1: b"a"})
    async with bench.replica() as replica:
        bench.history.wal_salts = (8, 9)
        await bench.history.commit({1: b"b"})
        await bench.history.snapshot()
        await bench.history.delete(0, 1)
        update = await replica.poll()
        assert update is not None
        assert bool(update.relocated) == (lineage == 0)
        assert await content(replica) == bench.history.at(2)


@pytest.mark.parametrize("lineage", [0, 7])
@pytest.mark.parametrize("compacted", [(), (4, 8), (1, 8)])
@pytest.mark.logs("was replaced or restored", "reading the whole database anew")
async def test_two_databases_are_not_mixed_where_a_compacted_file_made_our_position(
    compacted: tuple[int, int] | tuple[()], lineage: int
) -> None:
    bench = Bench()
    bench.history.lineage = lineage
    for n in range(5):
        await bench.history.commit({1: b"ours %d" % n, 2: b"ours %d" % n, 3: b"ours %d" % n})
    await bench.history.snapshot()
    for txid in range(1, 6):
        await bench.history.delete(0, txid)
    async with bench.replica() as replica:
        await content(replica)
        made_anew(bench.history)
        await bench.history.commit({1: b"other", 2: b"other", 3: b"other"})
        for n in range(7):
            await bench.history.commit({1: b"other %d" % n})
        if compacted:
            await bench.history.compact(1, *compacted)
            for txid in range(compacted[0], 9):
                await bench.history.delete(0, txid)
        bench.clock.now += LIST_INTERVAL_S + 1
        await replica.poll()
        assert replica.snapshot.pos.txid == 8
        assert await content(replica) == bench.history.at(8)


async def test_two_databases_are_not_mixed_although_our_file_was_pruned() -> None:
    """The replica was made anew from another database and compacted, and our last file pruned, between two polls."""
    bench = Bench()
    for n in range(5):
        await bench.history.commit({1: b"ours %d" % n, 2: b"ours %d" % n, 3: b"ours %d" % n})
    async with bench.replica() as replica:
        await content(replica)
        made_anew(bench.history)
        for n in range(8):
            await bench.history.commit({n % 3 + 1: b"other %d" % n})
        await bench.history.snapshot()
        for txid in range(1, 6):
            await bench.history.delete(0, txid)
        await replica.poll()
        assert replica.snapshot.pos.txid == 8
        assert await content(replica) == bench.history.at(8)


# --- the ledger -------------------------------------------------------------------------------


async def test_requests_are_counted_by_purpose_and_kind_and_have_a_price() -> None:
    history = History()
    await history.commit({n: b"%d" % n for n in range(1, 2000)})
    meter = MeteredStorage(history.storage)
    now = 0.0
    async with open_replica(LTXStore(meter, Layout.S3), memory_size=0, clock=lambda: now) as replica:
        await replica.poll()
        now += LIST_INTERVAL_S
        await replica.poll()
        await content(replica)
        ledger = replica.statistics().ledger
        assert ledger[Purpose.OPEN].by_operation[Operation.LIST].requests == 10
        assert ledger[Purpose.POLL].by_operation[Operation.GET].requests == 2
        assert ledger[Purpose.LIST].by_operation[Operation.LIST].requests == 1
        assert set(ledger) == set(Purpose)
        made = [each for entry in ledger.values() for each in entry.by_operation.values()]
        total = meter.statistics()
        assert sum(each.requests for each in made) == total.requests
        received = sum(each.bytes_received for each in made)
        assert received == sum(each.bytes_received for each in total.by_operation.values())
        prices = {operation: S3_PRICES_USD[operation] * each.requests for operation, each in total.by_operation.items()}
        assert sum(entry.usd for entry in ledger.values()) == pytest.approx(sum(prices.values()))
        assert ledger[Purpose.OPEN].usd == pytest.approx(10 * 0.005 / 1000 + requests_of(replica) * 0.0004 / 1000)


def requests_of(replica: Replica) -> int:
    entry = replica.statistics().ledger[Purpose.OPEN].by_operation
    return entry[Operation.GET].requests


def test_every_kind_of_request_has_a_price() -> None:
    assert set(S3_PRICES_USD) == set(Operation)
