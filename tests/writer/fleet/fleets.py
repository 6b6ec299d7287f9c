"""Fleets running beside a test's applications, over metered directories."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from litereplica.ltxstore.lease_record import LOCK_KEY
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.storage.credentials import Credentials
from litereplica.storage.wrappers import MeteredStorage
from litereplica.writer.fleet import limits, parking, supervisor
from litereplica.writer.fleet.statistics import DatabaseStatistics, State
from litereplica.writer.fleet.supervisor import Supervisor, open_fleet
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.settings import DatabaseTarget, DirectoryTarget, Target, WriterSettings
from tests.helpers.waiting import wait_until

SETTINGS = WriterSettings(sync_interval_s=0.01, levels=None)
WITHOUT_LEASE = WriterSettings(sync_interval_s=0.01, levels=None, lease=LeaseMode.OFF)
PARK_AFTER_S = 0.15
LOOK_INTERVAL_S = 0.05

CREATE = """
import sqlite3, sys
for path in sys.argv[1:]:
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    connection.close()
"""


@pytest.fixture
def soon_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases are put to rest after a moment, and looked at often."""
    monkeypatch.setattr(limits, "PARK_AFTER_S", PARK_AFTER_S)
    monkeypatch.setattr(parking, "LOOK_INTERVAL_S", LOOK_INTERVAL_S)
    monkeypatch.setattr(supervisor, "OVERDUE_INTERVAL_S", LOOK_INTERVAL_S)


class Stores:
    """Opens stores, and counts what is asked of them."""

    def __init__(self) -> None:
        self.opened: list[MeteredStorage] = []

    def __call__(self, url: str, credentials: Credentials | None) -> LTXStore:
        store = open_ltx_store(url, credentials=credentials)
        assert isinstance(store.storage, MeteredStorage)
        self.opened.append(store.storage)
        return store

    @property
    def requests(self) -> int:
        return sum(each.statistics().requests for each in self.opened)


@asynccontextmanager
async def running(
    targets: Sequence[Target], *, stores: Callable[[str, Credentials | None], LTXStore] | None = None
) -> AsyncIterator[Supervisor]:
    """A fleet that has published once; stopped in the ordinary way at the end."""
    stop = trio.Event()
    async with open_fleet(targets, open_store=stores or Stores()) as fleet, trio.open_nursery() as nursery:
        await nursery.start(fleet.run, stop)
        yield fleet
        stop.set()


def create(paths: Iterable[Path]) -> None:
    """Databases in WAL mode that no program has open."""
    subprocess.run([sys.executable, "-c", CREATE, *map(str, paths)], check=True)


def directory(tmp_path: Path, **options: bool | str) -> DirectoryTarget:
    """The databases of `databases`, published to `replica`."""
    path = tmp_path / "databases"
    path.mkdir(exist_ok=True)
    settings = {"pattern": "*.db", **options}
    return DirectoryTarget(path, f"file://{tmp_path}/replica", SETTINGS, **settings)  # type: ignore[arg-type]


def single(tmp_path: Path, name: str) -> DatabaseTarget:
    """A database that is a target itself."""
    return DatabaseTarget(tmp_path / name, f"file://{tmp_path}/replica-of-{name}", SETTINGS)


def replica(tmp_path: Path, name: str) -> LTXStore:
    """That of one database of `directory`."""
    return open_ltx_store(f"file://{tmp_path}/replica/{name}")


def of(fleet: Supervisor, name: str) -> DatabaseStatistics:
    """One database of a fleet, by its file's name."""
    return next(each for each in fleet.statistics().databases if each.path.name == name)


def states(fleet: Supervisor) -> dict[str, State]:
    """By the files' names."""
    return {each.path.name: each.state for each in fleet.statistics().databases}


async def until_at_rest(fleet: Supervisor) -> None:
    """All databases."""
    await wait_until(lambda: set(states(fleet).values()) == {State.DORMANT})


def lock_files(tmp_path: Path) -> list[str]:
    """Leases in replicas, by their paths."""
    return [str(path.relative_to(tmp_path)) for path in tmp_path.rglob(LOCK_KEY)]


def descriptors() -> int:
    """Of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
