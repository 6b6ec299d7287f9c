"""What the publisher makes of a WAL that is restarted while its frames are read, and of a file that is overwritten.

The held read of `SQLiteDatabase` prevents a restart. The tests of it do without the read, as if its lock had been lost.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trio

from litereplica.errors import SourceChanged
from litereplica.ltxstore.store import LTXStore
from litereplica.times import wall_clock_ms
from litereplica.writer.database.sqlite_database import open_database
from litereplica.writer.database.state_directory import StateDirectory
from litereplica.writer.database.wal_follower import WalChange, WalFollower
from litereplica.writer.publish.context import WriterContext
from litereplica.writer.publish.lease_keeper import LeaseKeeper
from litereplica.writer.publish.outage_log import OutageLog
from litereplica.writer.publish.page_checksums import PageChecksums
from litereplica.writer.publish.publisher import Publisher, WalMoved
from litereplica.writer.resume.resume_point import take_hold
from tests.helpers.app import Application
from tests.writer.running import memory_store, txids

pytestmark = pytest.mark.slow


class RestartedWal(WalFollower):
    """Has the application restart the WAL, over the frames that were scanned, before the first page is read."""

    def __init__(self, app: Application) -> None:
        super().__init__(app.database.with_name("app.db-wal"))
        self._app = app
        self._restarted = False

    def read_page(self, frame: int) -> bytes:
        if not self._restarted:
            self._restarted = True
            assert self._app.call("PRAGMA wal_checkpoint(RESTART)")[0][0] == 0
            self._app.call("UPDATE t SET x = randomblob(3000)")
        return super().read_page(frame)


@dataclass(frozen=True, slots=True)
class Setting:
    publisher: Publisher
    store: LTXStore
    pages: int


@asynccontextmanager
async def publisher_without_held_read(tmp_path: Path) -> AsyncIterator[Setting]:
    store = memory_store()
    with Application(tmp_path / "app.db") as app, StateDirectory(app.database) as state:
        await app("CREATE TABLE t (x)")
        await app("INSERT INTO t VALUES (zeroblob(9000))")
        pages = len(await app.image()) // 4096
        async with open_database(app.database) as database:
            await database.run(database.connect)
            checksums = PageChecksums(state.page_checksums)
            checksums.open(inode=database.identity().inode, page_size=database.page_size)
            wal = RestartedWal(app)
            wal.reopen()
            wal.attach()
            context = WriterContext(
                database, wal, store, state, checksums, LeaseKeeper(), OutageLog(store.url), wall_clock_ms
            )
            yield Setting(Publisher(context), store, pages)
            wal.close()
            checksums.close()


async def test_transactions_are_not_published_from_a_wal_that_was_restarted_meanwhile(tmp_path: Path) -> None:
    async with publisher_without_held_read(tmp_path) as setting:
        with pytest.raises(WalMoved):
            await setting.publisher.publish_next()
        assert await txids(setting.store) == []


async def test_whole_database_is_not_published_from_a_wal_that_was_restarted_meanwhile(tmp_path: Path) -> None:
    async with publisher_without_held_read(tmp_path) as setting:
        with pytest.raises(WalMoved):
            await setting.publisher.publish_whole(commit=None)
        assert await txids(setting.store) == []


async def test_difference_is_not_published_from_a_wal_that_was_restarted_meanwhile(tmp_path: Path) -> None:
    async with publisher_without_held_read(tmp_path) as setting:
        with pytest.raises(WalMoved):
            await setting.publisher.publish_difference(np.zeros(setting.pages, np.uint64), commit=None)
        assert await txids(setting.store) == []


async def test_comparison_with_a_wal_that_was_restarted_meanwhile_has_no_result(tmp_path: Path) -> None:
    async with publisher_without_held_read(tmp_path) as setting:
        with pytest.raises(WalMoved):
            await setting.publisher.differs(np.zeros(setting.pages, np.uint64), commit=None)


async def test_frames_are_not_published_over_a_file_that_was_overwritten(tmp_path: Path) -> None:
    """Also if the file was overwritten and a transaction committed since the writer last looked."""
    store = memory_store()
    with Application(tmp_path / "app.db") as app, StateDirectory(app.database) as state:
        await app("CREATE TABLE t (x)")
        await app("INSERT INTO t VALUES (zeroblob(50000))")
        await app("PRAGMA wal_checkpoint(TRUNCATE)")
        async with open_database(app.database) as database:
            await database.run(database.connect)
            checksums = PageChecksums(state.page_checksums)
            checksums.open(inode=database.identity().inode, page_size=database.page_size)
            wal = WalFollower(app.database.with_name("app.db-wal"))
            context = WriterContext(
                database, wal, store, state, checksums, LeaseKeeper(), OutageLog(store.url), wall_clock_ms
            )
            hold = await database.run(lambda: take_hold(database, wal))
            publisher = Publisher(context)
            await publisher.publish_whole(commit=hold.page_count)
            command = ["dd", "if=/dev/urandom", f"of={app.database}", "bs=4096", "count=1", "seek=5", "conv=notrunc"]
            await trio.run_process(command, stderr=subprocess.DEVNULL)
            await app("INSERT INTO t VALUES (1)")
            assert wal.look() is WalChange.FRAMES
            with pytest.raises(SourceChanged, match="page 6 is not as it was published"):
                await publisher.publish_next()
            assert database.is_distrusted
            wal.close()
    assert await txids(store) == [1]
