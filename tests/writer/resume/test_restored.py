"""A writer beside a database that was just restored does not read the replica again, and only then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from litereplica.restore.provenance import read_provenance, write_provenance
from litereplica.restore.restore import restore
from litereplica.storage.wrappers import MeteredStorage
from litereplica.storage.wrappers.delegate import Operation
from litereplica.testing.memory import MemoryStorage
from litereplica.writer.replicator import open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.writer.running import memory_store, page_counts, publish_once

pytestmark = pytest.mark.slow

ROWS = 3000


class Failover:
    """A replica of some 250 pages that a primary has left, and the standby's database restored from it."""

    def __init__(self, directory: Path) -> None:
        self.meter = MeteredStorage(MemoryStorage())
        self.store = memory_store(self.meter)
        self.database = directory / "standby" / "app.db"
        self._primary = directory / "primary" / "app.db"

    async def restore(self) -> None:
        self._primary.parent.mkdir()
        with Application(self._primary) as app:
            await app("CREATE TABLE t (x)")
            await app(
                "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
                "SELECT randomblob(300) FROM n",
                ROWS,
            )
            await publish_once(self._primary, self.store)
            await app("UPDATE t SET x = randomblob(300) WHERE rowid < 20")
            await publish_once(self._primary, self.store)
        await restore(self.store, self.database)

    @property
    def received(self) -> int:
        """Bytes of all GETs so far."""
        return self.meter.statistics().by_operation[Operation.GET].bytes_received


@pytest.fixture
async def failover(tmp_path: Path) -> Failover:
    made = Failover(tmp_path)
    await made.restore()
    return made


async def test_the_replica_is_read_once_in_a_failover(failover: Failover) -> None:
    """The restore reads the pages; the writer reads headers and trailers, and publishes nothing."""
    before = failover.received
    size = failover.database.stat().st_size
    assert await publish_once(failover.database, failover.store) == 0
    first = failover.received - before
    assert first < size / 10 < before
    with Application(failover.database) as app:
        await app("INSERT INTO t VALUES ('of the standby')")
        await publish_once(failover.database, failover.store)
        assert await fold(failover.store) == await app.image()
    assert (await page_counts(failover.store))[-1] < 10, "the checksums are kept"


async def test_what_is_in_the_wal_of_a_restored_database_is_published_without_a_second_reading(
    failover: Failover,
) -> None:
    with Application(failover.database) as app:
        await app("UPDATE t SET x = 'of the standby' WHERE rowid = 1500")
        before = failover.received
        await publish_once(failover.database, failover.store)
        assert failover.received - before < failover.database.stat().st_size / 10
        assert await fold(failover.store) == await app.image()
        assert (await page_counts(failover.store))[-1] < 10


async def checkpointed(failover: Failover) -> None:
    with Application(failover.database) as app:
        await app("UPDATE t SET x = 'of the standby' WHERE rowid = 1500")
        await app("PRAGMA wal_checkpoint(TRUNCATE)")


async def overwritten(failover: Failover) -> None:
    """In place, within the same tick of the clock as far as a file system can tell."""
    with failover.database.open("r+b") as file:
        file.seek(100 * 4096 + 2000)
        file.write(b"overwritten")


async def copied(failover: Failover) -> None:
    copy = failover.database.with_name("copy.db")
    copy.write_bytes(failover.database.read_bytes())
    copy.replace(failover.database)


async def noted_for_another_file(failover: Failover) -> None:
    """The replica was rolled back and its TXID published anew since."""
    status, proof = failover.database.stat(), read_provenance(failover.database)
    assert proof is not None
    other = type(proof)(proof.url, proof.txid, proof.lineage, proof.checksum ^ 1, proof.modified_ns)
    write_provenance(failover.database, other)
    assert failover.database.stat().st_mtime_ns == status.st_mtime_ns


@pytest.mark.parametrize("change", [checkpointed, overwritten, copied, noted_for_another_file])
async def test_a_file_that_is_not_proved_to_be_the_restored_state_is_compared_with_the_replica(
    change: Callable[[Failover], object], failover: Failover
) -> None:
    proof = read_provenance(failover.database)
    assert proof is not None
    assert proof.is_untouched(failover.database)
    await change(failover)  # type: ignore[misc] # all of them are coroutine functions
    before = failover.received
    await publish_once(failover.database, failover.store)
    assert failover.received - before > ROWS * 300
    with Application(failover.database) as app:
        assert await fold(failover.store) == await app.image()


async def test_the_second_reading_is_done_on_demand(failover: Failover) -> None:
    before = failover.received
    options = ReplicatorOptions(verify_source=True)
    async with open_replicator(failover.database, failover.store, options) as replicator:
        await replicator.publish_once()
    assert failover.received - before > ROWS * 300
