"""Exit codes of `replicate` for what happens while it runs."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio

from litereplica.errors import ExitCode, Unpublished
from litereplica.ltxstore.store import open_ltx_store
from litereplica.writer.fleet.groups import FleetError
from litereplica.writer.fleet.supervisor import open_fleet
from litereplica.writer.settings import DatabaseTarget, WriterSettings
from tests.helpers.app import Application
from tests.helpers.waiting import wait_until
from tests.writer.programs import Process, processes
from tests.writer.running import txids, until_published

pytestmark = pytest.mark.slow


@contextmanager
def unwritable(replica: Path) -> Iterator[None]:
    """Level 0 of a replica is a file, so that nothing can be put there."""
    level = replica / "ltx" / "0"
    level.rename(replica / "away")
    level.touch()
    try:
        yield
    finally:
        level.unlink()
        (replica / "away").rename(level)


async def test_stop_that_leaves_commits_unpublished_says_how_many_and_the_next_start_publishes_them(
    tmp_path: Path,
) -> None:
    store = open_ltx_store(f"file://{tmp_path}/replica")
    with Application(tmp_path / "app.db") as app, processes() as started:
        await app("CREATE TABLE t (x)")
        started.append(writer := Process(app.database, store.url))
        await writer.until_said("published")
        await until_published(store, app)
        with unwritable(tmp_path / "replica"):
            for i in range(3):
                await app("INSERT INTO t VALUES (?)", i)
            await writer.until_said("cannot publish")
            assert await writer.stop() == ExitCode.UNPUBLISHED
        assert f"error: stopped with 3 transaction(s), {3 * 4120} bytes of WAL, of {app.database} unpub" in writer.error
        started.append(again := Process(app.database, store.url))
        await until_published(store, app)
        assert await again.stop() == ExitCode.OK, again.log.read_text()


@pytest.mark.parametrize("change", ["moved", "replaced"])
async def test_database_that_is_moved_or_replaced_ends_its_writer_with_a_code_of_its_own(
    tmp_path: Path, change: str
) -> None:
    store = open_ltx_store(f"file://{tmp_path}/replica")
    with Application(tmp_path / "app.db") as app, processes() as started:
        await app("CREATE TABLE t (x)")
        started.append(writer := Process(app.database, store.url))
        await until_published(store, app)
        app.database.rename(tmp_path / "moved.db")
        if change == "replaced":
            with closing(sqlite3.connect(app.database)) as other:
                other.execute("CREATE TABLE another (x)")
        assert await writer.ended() == ExitCode.SOURCE_REPLACED
        assert "deleted or replaced" in writer.error


@pytest.mark.logs("cannot (publish|replicate) .*Not a directory")
async def test_fleet_names_each_database_that_it_leaves_unpublished(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    targets = [
        DatabaseTarget(tmp_path / f"{name}.db", f"file://{tmp_path}/{name}", WriterSettings(sync_interval_s=0.01))
        for name in names
    ]
    stores = {name: open_ltx_store(f"file://{tmp_path}/{name}") for name in names}
    for target in targets:
        with closing(sqlite3.connect(target.path)) as connection:
            connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x)")
    stop = trio.Event()
    with pytest.raises(FleetError) as caught:  # noqa: PT012 - the fleet fails when it is stopped
        async with open_fleet(targets) as fleet:
            error: Exception | None = None
            async with trio.open_nursery() as nursery:

                async def run() -> None:
                    nonlocal error
                    try:
                        await fleet.run(stop)
                    except FleetError as exc:
                        error = exc

                nursery.start_soon(run)
                for name in names:
                    await wait_until(lambda name=name: (tmp_path / name / "ltx/0").is_dir())  # type: ignore[misc]
                with unwritable(tmp_path / "a"), unwritable(tmp_path / "b"):
                    for name in names:
                        with Application(tmp_path / f"{name}.db") as app:
                            await app("INSERT INTO t VALUES (1)")
                    while len(await txids(stores["c"])) < 2:  # noqa: ASYNC110 - another task publishes
                        await trio.sleep(0.01)
                    stop.set()
                    await wait_until(lambda: error is not None)
            assert error is not None
            raise error
    assert {path.name for path in caught.value.errors} == {"a.db", "b.db"}
    assert all(isinstance(each, Unpublished) for each in caught.value.errors.values())
    assert caught.value.exit_code == ExitCode.UNPUBLISHED


@pytest.mark.parametrize(("mode", "expected"), [(0o600, (0o600, 0o700)), (0o640, (0o640, 0o750))])
async def test_objects_are_no_more_readable_than_the_database(
    tmp_path: Path, mode: int, expected: tuple[int, int]
) -> None:
    (tmp_path / "replica").mkdir()
    (tmp_path / "replica").chmod(0o755)
    store = open_ltx_store(f"file://{tmp_path}/replica")
    with Application(tmp_path / "app.db") as app, processes() as started:
        await app("CREATE TABLE t (x)")
        app.database.chmod(mode)
        started.append(writer := Process(app.database, store.url))
        await until_published(store, app)
        assert await writer.stop() == ExitCode.OK, writer.log.read_text()
    files = [path for path in (tmp_path / "replica" / "ltx").rglob("*") if path.is_file()]
    directories = [path for path in (tmp_path / "replica").rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {expected[0]}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {expected[1]}
