"""A replica that the real Litestream and we write in turns: whoever comes next goes on where the other has stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.restore.restore import restore
from litereplica.testing.litestream import LitestreamProcess, litestream_restore
from litereplica.writer.database.litestream_guard import LitestreamWatch, state_directory
from tests.conftest import S3Bucket
from tests.helpers.app import Application
from tests.writer.programs import Process, processes
from tests.writer.running import until_published

pytestmark = pytest.mark.slow

IN_THREAD = trio.to_thread.run_sync
TURNS = 5
"""Of each program."""
ROWS = 300


async def restores_agree(
    store: LTXStore, url: str, app: Application, directory: Path, environment: Mapping[str, str] | None
) -> None:
    """Litestream's and our own restore are the primary, byte for byte."""
    theirs, ours = directory / "theirs.db", directory / "ours.db"
    theirs.unlink(missing_ok=True)
    await IN_THREAD(lambda: litestream_restore(url, theirs, environment=environment))
    await restore(store, ours, force=True)
    expected = await app.image()
    assert await IN_THREAD(ours.read_bytes) == expected
    assert await IN_THREAD(theirs.read_bytes) == expected


async def commits(app: Application, turn: int, who: str) -> None:
    """A turn's worth of changes, among them growth and a shrink."""
    for number in range(10):
        await app("INSERT INTO t VALUES (?, randomblob(3000))", f"{who} {turn} {number}")
    await app("UPDATE t SET x = randomblob(500) WHERE rowid % 7 = ?", turn)
    if turn % 2:
        await app("DELETE FROM t WHERE rowid % 3 = 0")
        await app("VACUUM")


async def hand_over(directory: Path, url: str, *, environment: Mapping[str, str] | None = None) -> None:
    store = open_ltx_store(url)
    with Application(directory / "app.db") as app, processes() as started:
        await app("CREATE TABLE t (n, x)")
        await app(
            "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "SELECT i, randomblob(3000) FROM n",
            ROWS,
        )
        for turn in range(TURNS):
            litestream = LitestreamProcess(app.database, url, environment=environment)
            await IN_THREAD(litestream.start)
            try:
                await commits(app, turn, "litestream")
                await IN_THREAD(litestream.sync)
                await app("INSERT INTO t VALUES ('the last of a turn', ?)", turn)
            finally:
                await IN_THREAD(litestream.stop)  # it publishes what is left
            await restores_agree(store, url, app, directory, environment)

            await app("INSERT INTO t VALUES ('while nobody writes', ?)", turn)
            started.append(ours := Process(app.database, url))
            await ours.until_said("replicating")
            await commits(app, turn, "litereplica")
            await until_published(store, app)
            await app("INSERT INTO t VALUES ('the last of a turn', ?)", turn)
            assert await ours.stop() == ExitCode.OK, ours.log.read_text()
            await restores_agree(store, url, app, directory, environment)
            await app("INSERT INTO t VALUES ('while nobody writes', ?)", -turn)
        published = [info.max_txid for info in await store.list_level(0)]
        assert published == list(range(1, len(published) + 1))
    await store.aclose()


@pytest.mark.slow
async def test_each_goes_on_where_the_other_has_stopped_in_a_directory(tmp_path: Path) -> None:
    await hand_over(tmp_path, f"file://{tmp_path}/replica")


@pytest.mark.slow
async def test_each_goes_on_where_the_other_has_stopped_in_an_s3_store(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    await hand_over(tmp_path, s3_bucket.url, environment=s3_bucket.server.environment())


@pytest.mark.slow
@pytest.mark.parametrize("same_replica", [True, False])
async def test_litestream_that_is_started_beside_us_makes_us_stop_and_loses_nothing(
    tmp_path: Path, same_replica: bool
) -> None:
    url = f"file://{tmp_path}/replica"
    theirs = url if same_replica else f"file://{tmp_path}/theirs"
    store = open_ltx_store(url)
    with Application(tmp_path / "app.db") as app, processes() as started:
        await app("CREATE TABLE t (n, x)")
        started.append(ours := Process(app.database, url))
        await ours.until_said("published")
        await commits(app, 0, "litereplica")
        await until_published(store, app)
        litestream = LitestreamProcess(app.database, theirs)
        await IN_THREAD(litestream.start)
        try:
            await app("INSERT INTO t VALUES ('for both', 1)")
            assert await ours.ended() == ExitCode.CONFLICT
            assert f"replicated by Litestream (process {litestream.pid}) as well: stop one of the two" in ours.error
            started.append(again := Process(app.database, url))
            assert await again.ended() == ExitCode.USAGE
            assert f"is being replicated by Litestream (process {litestream.pid})" in again.error
            await commits(app, 1, "litestream")
            await IN_THREAD(litestream.sync)
        finally:
            await IN_THREAD(litestream.stop)
        started.append(ours := Process(app.database, url))
        await ours.until_said("replicating")
        await until_published(store, app)
        assert await ours.stop() == ExitCode.OK
        await restores_agree(store, url, app, tmp_path, None)
    await store.aclose()


def test_state_directory_that_is_tidied_up_does_not_stop_us(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    left = state_directory(database) / "ltx" / "0"
    left.mkdir(parents=True)
    watch = LitestreamWatch(database)
    (left / "file").touch()
    watch.check()
    shutil.rmtree(state_directory(database))
    watch.check()
    assert not state_directory(database).exists()
