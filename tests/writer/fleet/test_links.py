"""Databases of a fleet whose paths lead through symbolic links."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.errors import UsageError
from litereplica.ltxstore.store import open_ltx_store
from litereplica.writer.database.sqlite_database import open_database
from litereplica.writer.fleet.statistics import State
from litereplica.writer.settings import DatabaseTarget
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.helpers.waiting import wait_until
from tests.writer.fleet.fleets import (
    SETTINGS,
    create,
    directory,
    of,
    replica,
    running,
    soon_at_rest,
    states,
)
from tests.writer.running import until_published

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures(soon_at_rest.__name__)
@pytest.mark.logs("was replaced while it was not replicated", "and not by its WAL")
async def test_parked_database_behind_a_link_is_woken_by_commits_and_by_another_target(tmp_path: Path) -> None:
    """Its WAL lies beside the file, not beside the link."""
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    first, second, other = tmp_path / "1/real.db", tmp_path / "2/real.db", tmp_path / "other.db"
    create([first, second, other])
    link = tmp_path / "link.db"
    link.symlink_to(first)
    urls = [f"file://{tmp_path}/{name}" for name in ("a", "b")]
    targets = [DatabaseTarget(path, url, SETTINGS) for path, url in zip((link, other), urls, strict=True)]
    store = open_ltx_store(urls[0])
    async with running(targets) as fleet:
        with Application(first) as app:
            await wait_until(lambda: of(fleet, "link.db").state is State.DORMANT)
            await app("INSERT INTO t VALUES ('in the WAL')")
            await until_published(store, app)
        await wait_until(lambda: of(fleet, "link.db").state is State.DORMANT)
        with closing(sqlite3.connect(second)) as connection, connection:
            connection.execute("INSERT INTO t VALUES ('another')")
        link.unlink()
        link.symlink_to(second)
        with Application(second) as app:
            await until_published(store, app)


@pytest.mark.usefixtures(soon_at_rest.__name__)
@pytest.mark.logs("leads to .*out of", "leads to .* now", "No such file or directory")
async def test_directory_is_not_left_through_a_link_that_takes_the_place_of_a_subdirectory(tmp_path: Path) -> None:
    target = directory(tmp_path, recursive=True)
    (target.path / "sub").mkdir()
    (tmp_path / "outside").mkdir()
    create([target.path / "sub/app.db", tmp_path / "outside/app.db"])
    async with running([target]) as fleet:
        with Application(target.path / "sub/app.db") as app:
            await app("INSERT INTO t VALUES (2)")
            await until_published(replica(tmp_path, "sub/app.db"), app)
            before = await app.image()
        (target.path / "sub").rename(tmp_path / "away")
        (target.path / "sub").symlink_to(tmp_path / "outside")
        await wait_until(lambda: states(fleet).get("app.db") in (None, State.GONE, State.FAILED))
        with closing(sqlite3.connect(tmp_path / "outside/app.db")) as connection, connection:
            connection.execute("INSERT INTO t VALUES ('not to be published')")
    assert await fold(replica(tmp_path, "sub/app.db")) == before
    with pytest.raises(UsageError, match=r"leads to .*outside/app.db, out of"):
        async with open_database(target.path / "sub/app.db", within=target.path):
            raise AssertionError
