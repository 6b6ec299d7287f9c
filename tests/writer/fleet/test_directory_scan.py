"""The databases of a directory: which they are, and how they are followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from litereplica.writer.database.open_files import looks_like_database
from litereplica.writer.database.sqlite_database import open_database
from litereplica.writer.fleet import directory_scan as directory_module
from litereplica.writer.fleet.directory_scan import Directory
from litereplica.writer.fleet.statistics import State
from tests.helpers.app import Application
from tests.helpers.waiting import wait_until
from tests.writer.fleet.fleets import create, directory, of, replica, running, soon_at_rest, states
from tests.writer.running import txids, until_published

pytestmark = pytest.mark.slow

__all__ = ["soon_at_rest"]


async def scanned(directory: Directory) -> set[str]:
    """Paths below the directory."""
    return {path.relative_to(directory.target.path).as_posix() for path in await directory.scan(())}


def a_database(path: Path) -> None:
    """What looks like one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"SQLite format 3\0" + bytes(496))


# --- which they are


async def test_databases_are_known_by_their_first_bytes_and_the_pattern(tmp_path: Path) -> None:
    target = directory(tmp_path, pattern="*.db")
    for name in ("a.db", "b.db", "c.sqlite", "sub/d.db"):
        a_database(target.path / name)
    (target.path / "text.db").write_text("SQLite format 4, and long enough to be one otherwise" * 10)
    (target.path / "short.db").write_bytes(b"SQLite format 3\0")
    (target.path / "empty.db").touch()
    os.mkfifo(target.path / "pipe.db")
    assert await scanned(Directory(target)) == {"a.db", "b.db"}
    assert await scanned(Directory(directory(tmp_path, pattern="*", recursive=True))) == {
        "a.db", "b.db", "c.sqlite", "sub/d.db",
    }  # fmt: skip


async def test_what_belongs_to_a_database_or_a_writer_is_none(tmp_path: Path) -> None:
    target = directory(tmp_path, pattern="*", recursive=True)
    for name in (
        "a", "a-wal", "a-shm", "a-journal", ".a-litereplica/x", ".a-litestream/ltx/0/x", ".litereplica/x", ".hidden",
    ):  # fmt: skip
        a_database(target.path / name)
    assert await scanned(Directory(target)) == {"a", ".hidden"}


@pytest.mark.logs("link is a link to .*elsewhere outside")
async def test_links_make_neither_loops_nor_doubles_and_lead_nowhere_else(tmp_path: Path) -> None:
    target = directory(tmp_path, pattern="*", recursive=True)
    a_database(target.path / "sub/a")
    a_database(tmp_path / "elsewhere")
    (target.path / "sub/loop").symlink_to(target.path)
    (target.path / "self").symlink_to("self")
    (target.path / "double").symlink_to("sub/a")
    (target.path / "nowhere").symlink_to("missing")
    (target.path / "link").symlink_to(tmp_path / "elsewhere")
    assert await scanned(Directory(target)) == {"sub/a"}


async def test_file_that_was_no_database_is_looked_at_again_when_it_has_changed(tmp_path: Path) -> None:
    found = Directory(directory(tmp_path))
    path = found.target.path / "a.db"
    path.write_bytes(bytes(1000))
    assert await scanned(found) == set()
    a_database(path)
    assert await scanned(found) == {"a.db"}


async def test_look_at_a_database_that_is_open_leaves_its_locks_alone(tmp_path: Path) -> None:
    """Closing any descriptor of the file would drop the locks of the held read, and the WAL be restarted."""
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with open_database(app.database) as source:
            await source.run(source.connect)
            await source.run(source.take_read)
            (tmp_path / "alias.db").hardlink_to(app.database)
            assert looks_like_database(tmp_path / "alias.db")
            assert looks_like_database(app.database)
            await app("PRAGMA busy_timeout = 0")
            await app("INSERT INTO t VALUES (1)")
            assert (await app("PRAGMA wal_checkpoint(TRUNCATE)"))[0][0] == 1, "busy"
            await source.run(source.release_read)
            assert (await app("PRAGMA wal_checkpoint(TRUNCATE)"))[0][0] == 0


# --- following them


async def test_database_that_appears_is_published_below_its_relative_path(tmp_path: Path) -> None:
    target = directory(tmp_path, recursive=True)
    async with running([target]) as fleet:
        assert not fleet.statistics().databases
        (target.path / "sub").mkdir()
        with Application(target.path / "sub" / "app.db") as app:
            await app("CREATE TABLE t (x)")
            await wait_until(lambda: "app.db" in states(fleet) and of(fleet, "app.db").txid > 0)
            await app("INSERT INTO t VALUES (1)")
            await until_published(replica(tmp_path, "sub/app.db"), app)
            assert of(fleet, "app.db").url == f"file://{tmp_path}/replica/sub/app.db"


@pytest.mark.usefixtures("soon_at_rest")
@pytest.mark.parametrize("at_rest", [False, True], ids=["active", "at rest"])
async def test_database_that_vanishes_is_gone_and_the_others_go_on(tmp_path: Path, at_rest: bool) -> None:
    target = directory(tmp_path)
    create([target.path / "a.db"])
    with Application(target.path / "b.db") as app:
        await app("CREATE TABLE t (x)")
        async with running([target]) as fleet:
            if at_rest:
                await wait_until(lambda: set(states(fleet).values()) == {State.DORMANT})
            for name in ("a.db", "a.db-wal", "a.db-shm"):
                (target.path / name).unlink(missing_ok=True)
            await wait_until(lambda: states(fleet)["a.db"] is State.GONE)
            assert of(fleet, "a.db").txid == 1
            await app("INSERT INTO t VALUES (1)")
            await until_published(replica(tmp_path, "b.db"), app)
    assert await txids(replica(tmp_path, "a.db")) == [1]


@pytest.mark.logs("cannot replicate .* by this process")
async def test_renamed_database_goes_on_under_its_new_name(tmp_path: Path) -> None:
    target = directory(tmp_path)
    create([target.path / "old.db"])
    async with running([target]) as fleet:
        for suffix in ("", "-wal", "-shm"):
            if (target.path / f"old.db{suffix}").exists():
                (target.path / f"old.db{suffix}").rename(target.path / f"new.db{suffix}")
        await wait_until(lambda: states(fleet).get("old.db") is State.GONE)
        await wait_until(lambda: "new.db" in states(fleet) and of(fleet, "new.db").txid == 1)
        with Application(target.path / "new.db") as app:
            await app("INSERT INTO t VALUES (2)")
            await until_published(replica(tmp_path, "new.db"), app)
    assert await txids(replica(tmp_path, "old.db")) == [1]


@pytest.mark.logs("was deleted or replaced", "was replaced while it was not replicated", "and not by its WAL")
async def test_database_that_is_deleted_and_made_anew_is_followed(tmp_path: Path) -> None:
    target = directory(tmp_path)
    create([target.path / "app.db"])
    async with running([target]) as fleet:
        for name in ("app.db", "app.db-wal", "app.db-shm"):
            (target.path / name).unlink(missing_ok=True)
        with Application(target.path / "app.db") as app:
            await app("CREATE TABLE other (y)")
            await until_published(replica(tmp_path, "app.db"), app)
            await wait_until(lambda: states(fleet)["app.db"] is State.ACTIVE)


async def test_directory_that_cannot_be_watched_is_looked_at_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("too many watches")

    monkeypatch.setattr(Directory, "_watch", refuse)
    monkeypatch.setattr(directory_module, "RESCAN_INTERVAL_S", 0.05)
    target = directory(tmp_path)
    async with running([target]) as fleet:
        create([target.path / "app.db"])
        await wait_until(lambda: "app.db" in states(fleet) and of(fleet, "app.db").txid == 1)
    assert caplog.text.count("too many watches") == 1


async def test_directory_that_is_not_watched_stays_as_it_was(tmp_path: Path) -> None:
    target = directory(tmp_path, watch=False)
    create([target.path / "a.db"])
    async with running([target]) as fleet:
        create([target.path / "b.db"])
        await trio.sleep(0.5)
        assert set(states(fleet)) == {"a.db"}


@pytest.mark.logs("no replica can have the name")
async def test_names_that_no_key_has_are_the_failure_of_those_databases_alone(tmp_path: Path) -> None:
    target = directory(tmp_path, pattern="*")
    create([target.path / "a.db", target.path / "lock.json", target.path / "ä b%?#.db"])
    (target.path / "a.db").rename(target.path / os.fsdecode(b"\xff.db"))
    async with running([target]) as fleet:
        assert sorted(states(fleet).items()) == [
            ("lock.json", State.FAILED),
            ("ä b%?#.db", State.ACTIVE),
            (os.fsdecode(b"\xff.db"), State.FAILED),
        ]
        assert "no replica can have the name" in str(of(fleet, "lock.json").error)


async def test_application_creates_writes_and_deletes_databases_all_the_time(tmp_path: Path) -> None:
    """Those that stay are published."""
    target = directory(tmp_path)
    async with running([target]) as fleet:
        for number in range(10):
            path = target.path / f"{number}.db"
            create([path])
            if number % 2:
                await trio.to_thread.run_sync(path.unlink)
        names = {f"{number}.db" for number in range(0, 10, 2)}
        await wait_until(
            lambda: {each.path.name for each in fleet.statistics().databases if each.txid == 1} >= names, within_s=20
        )
        for name in names:
            assert await txids(replica(tmp_path, name)) == [1]
