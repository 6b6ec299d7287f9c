"""A fleet is stopped just after a parked database was written to: nobody has looked at it since."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from litereplica.errors import TransientStorageError, Unpublished
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.storage.credentials import Credentials
from litereplica.storage.wrappers.delegate import Call, WrapperStorage
from litereplica.writer.database.parked import may_exist
from litereplica.writer.fleet import limits, parking
from litereplica.writer.fleet.supervisor import open_fleet
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.writer.fleet.fleets import PARK_AFTER_S, SETTINGS, directory, replica, running, single, until_at_rest

pytestmark = pytest.mark.slow

T = TypeVar("T")


@pytest.fixture(autouse=True)
def looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parked database is not looked at again before the stop."""
    monkeypatch.setattr(limits, "PARK_AFTER_S", PARK_AFTER_S)
    monkeypatch.setattr(parking, "LOOK_INTERVAL_S", 1e9)


@pytest.mark.parametrize("by_operator", [False, True])
async def test_what_a_parked_database_has_committed_is_published_before_the_end(
    tmp_path: Path, by_operator: bool
) -> None:
    with (
        Application(directory(tmp_path).path / "app.db") as app,
        Application(directory(tmp_path).path / "idle.db") as idle,
    ):
        await app("CREATE TABLE t (x)")
        await idle("CREATE TABLE t (x)")
        async with running([directory(tmp_path)]) as fleet:
            await until_at_rest(fleet)
            await app("INSERT INTO t VALUES (1)")
            if by_operator:
                assert (await fleet.stop_database(app.database)).txid == 2
        assert await fold(replica(tmp_path, "app.db")) == await app.image()
        assert await fold(replica(tmp_path, "idle.db")) == await idle.image()


class CutStorage(WrapperStorage):
    """Fails from the moment on that `is_cut` is set."""

    is_cut = False

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        if CutStorage.is_cut:
            raise TransientStorageError("cut", key=call.key)
        return await perform()


@pytest.mark.logs("cannot publish .*: cut")
async def test_what_could_not_be_published_any_more_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CutStorage, "is_cut", False)

    def stores(url: str, credentials: Credentials | None) -> LTXStore:
        store = open_ltx_store(url, credentials=credentials)
        return LTXStore(CutStorage(store.storage), layout=store.layout)

    target = replace(directory(tmp_path), settings=replace(SETTINGS, stop_limit_s=0.5))
    with Application(target.path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with running([target], stores=stores) as fleet:
            await until_at_rest(fleet)
            await app("INSERT INTO t VALUES (1)")
            monkeypatch.setattr(CutStorage, "is_cut", True)
            with pytest.raises(Unpublished):
                await fleet.stop_database(app.database)
            monkeypatch.setattr(CutStorage, "is_cut", False)


async def test_a_single_database_is_published_although_the_stop_comes_before_the_first_round(tmp_path: Path) -> None:
    """A program of `exec` can make its database and end in this time."""
    stop = trio.Event()
    stop.set()
    with Application(tmp_path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with open_fleet([single(tmp_path, "app.db")]) as fleet:
            await fleet.run(stop)
        assert await fold(open_ltx_store(f"file://{tmp_path}/replica-of-app.db")) == await app.image()


def test_a_file_that_cannot_be_looked_at_may_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert may_exist(tmp_path / "file")
    assert not may_exist(tmp_path / "none")
    assert not may_exist(tmp_path / "file" / "none")

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    assert may_exist(tmp_path / "none")
