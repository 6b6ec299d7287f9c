"""What an operator asks of a running fleet: sync, stop, start, register, unregister."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from litereplica.errors import DatabaseNotFound, UsageError
from litereplica.writer.fleet.managed_database import ManagedDatabase
from litereplica.writer.fleet.statistics import State
from litereplica.writer.fleet.supervisor import Supervisor
from litereplica.writer.fleet.sync import sync, until_published
from litereplica.writer.settings import DatabaseTarget
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.helpers.waiting import wait_until
from tests.writer.fleet.fleets import (
    LOOK_INTERVAL_S,
    SETTINGS,
    Stores,
    create,
    directory,
    of,
    replica,
    running,
    single,
    soon_at_rest,
    states,
    until_at_rest,
)
from tests.writer.running import txids

pytestmark = pytest.mark.slow

__all__ = ["soon_at_rest"]


def member(fleet: Supervisor, path: Path) -> ManagedDatabase:
    found = fleet.find(path)
    assert found is not None
    return found


@pytest.mark.usefixtures("soon_at_rest")
async def test_sync_of_a_parked_database_asks_nothing_if_it_has_not_changed_and_else_publishes(tmp_path: Path) -> None:
    target, stores = directory(tmp_path), Stores()
    with Application(target.path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with running([target], stores=stores) as fleet:
            for value in range(4):
                await until_at_rest(fleet)
                requests = stores.requests
                database = member(fleet, target.path / "app.db")
                txid = await sync(fleet, database)
                assert (txid, stores.requests) == (value + 1, requests)
                await app("INSERT INTO t VALUES (?)", value)
                with trio.fail_after(10):
                    assert await sync(fleet, database) == txid + 1
                assert await fold(replica(tmp_path, "app.db")) == await app.image()
            await until_at_rest(fleet)
            with trio.move_on_after(0.2) as limit:
                await until_published(fleet, database, txid + 2)
            assert limit.cancelled_caught
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_published, fleet, database, txid + 2)
                await app("INSERT INTO t VALUES (9)")


async def test_stopped_database_of_a_directory_stays_stopped_whatever_happens_to_its_files(tmp_path: Path) -> None:
    target = directory(tmp_path)
    create([target.path / "a.db", target.path / "b.db"])
    path = target.path / "a.db"
    async with running([target]) as fleet:
        with Application(path) as app:
            await app("INSERT INTO t VALUES (1)")
            last = await fleet.stop_database(path)
            assert (last.state, last.txid) == (State.STOPPED, 2), "everything was published first"
            assert (await fleet.stop_database(path)).txid == 2
            assert fleet.find(path) is None
            await app("INSERT INTO t VALUES (2)")
            create([target.path / "c.db"])  # the directory is read again
            await wait_until(lambda: "c.db" in {each.name for each in states_by_path(fleet)})
            await trio.sleep(2 * LOOK_INTERVAL_S)
            assert of(fleet, "a.db").state is State.STOPPED
            assert (await txids(replica(tmp_path, "a.db")))[-1] == 2
            again = await fleet.start_database(path)
            assert again is await fleet.start_database(path)
            assert await sync(fleet, again) == 3
            assert of(fleet, "a.db").files == 3, "counts go on"
            await fleet.stop_database(path)
        for each in path.parent.glob("a.db*"):
            if each.is_file():
                each.unlink()
        create([target.path / "d.db"])
        await wait_until(lambda: path not in states_by_path(fleet) or of(fleet, "a.db").state is State.GONE)
        for ask in (fleet.stop_database, fleet.start_database):
            with pytest.raises(DatabaseNotFound, match="database not found: /no"):
                await ask(Path("/no"))
        with pytest.raises(UsageError, match="in a directory that is replicated"):
            await fleet.unregister(target.path / "b.db")


def states_by_path(fleet: Supervisor) -> set[Path]:
    return {each.path for each in fleet.statistics().databases}


async def test_registered_database_outlives_a_new_configuration_and_leaves_its_replica_whole(tmp_path: Path) -> None:
    configured = single(tmp_path, "a.db")
    create([configured.path])
    url = f"file://{tmp_path}/registered"
    async with running([configured]) as fleet:
        with Application(tmp_path / "new.db") as app:
            await app("CREATE TABLE u (x)")
            target = DatabaseTarget(tmp_path / "new.db", url, SETTINGS)
            assert await fleet.register(target)
            assert not await fleet.register(target)
            with pytest.raises(UsageError, match="two targets have the URL"):
                await fleet.register(DatabaseTarget(tmp_path / "other.db", url, SETTINGS))
            assert await sync(fleet, member(fleet, target.path)) == 1
            await fleet.reconfigure([configured])
            assert {each.path for each in fleet.statistics().databases} == {configured.path, target.path}
            await app("INSERT INTO u VALUES (1)")
            last = await fleet.unregister(target.path)
            assert last is not None
            assert last.txid == 2
            assert await fleet.unregister(target.path) is None
            assert set(states(fleet)) == {"a.db"}
            assert await fleet.unregister(configured.path) is not None
            assert not fleet.statistics().databases
