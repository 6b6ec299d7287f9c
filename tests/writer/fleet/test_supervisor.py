"""Many databases in one process: at rest, broken, slow, and under one lease."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from litereplica.errors import AlreadyReplicated, ExitCode, LeaseConflict, LeaseHeld, Unpublished, UsageError
from litereplica.ltxstore import lease as lease_module
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.storage.credentials import Credentials
from litereplica.writer import backoff, parker, replicator
from litereplica.writer.database.parked import Files, Parked, certain_now
from litereplica.writer.database.sqlite_database import SQLiteDatabase
from litereplica.writer.database.state_directory import StateDirectory
from litereplica.writer.database.wal_follower import MTIME_GRANULARITY_NS
from litereplica.writer.fleet import limits, parking, supervisor
from litereplica.writer.fleet.groups import FleetError
from litereplica.writer.fleet.statistics import State
from litereplica.writer.fleet.supervisor import open_fleet
from litereplica.writer.parker import Parker
from litereplica.writer.publish import lease_keeper
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.replicator import Replicator
from litereplica.writer.settings import DatabaseTarget, Target
from tests.helpers.app import Application
from tests.helpers.fold import fold
from tests.helpers.waiting import wait_until
from tests.writer.fleet.fleets import (
    LOOK_INTERVAL_S,
    SETTINGS,
    Stores,
    create,
    descriptors,
    directory,
    lock_files,
    of,
    replica,
    running,
    single,
    soon_at_rest,
    states,
    until_at_rest,
)
from tests.writer.running import txids, until_published

pytestmark = pytest.mark.slow

__all__ = ["soon_at_rest"]

MANY = 50


@pytest.fixture
def short_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "TERM_MS", 300)
    monkeypatch.setattr(lease_module, "RENEW_BEFORE_MS", 200)


def named(tmp_path: Path, count: int) -> list[Path]:
    return [tmp_path / "databases" / f"{number}.db" for number in range(count)]


# --- at rest


@pytest.mark.usefixtures("soon_at_rest")
async def test_idle_databases_have_no_descriptors_and_cause_no_requests(tmp_path: Path) -> None:
    target, stores = directory(tmp_path), Stores()
    create(named(tmp_path, MANY))
    before = descriptors()
    async with running([target], stores=stores) as fleet:
        assert {each.txid for each in fleet.statistics().databases} == {1}
        await until_at_rest(fleet)
        assert descriptors() - before < MANY // 2, "less than one for two databases"
        requests = stores.requests
        await trio.sleep(20 * LOOK_INTERVAL_S)
        assert stores.requests == requests
        assert set(states(fleet).values()) == {State.DORMANT}
    await wait_until(lambda: descriptors() <= before)


@pytest.mark.usefixtures("soon_at_rest")
async def test_no_more_than_a_few_idle_databases_are_open_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PARK_AFTER_S", 1e9)
    monkeypatch.setattr(limits, "MAX_OPEN", 3)
    monkeypatch.setattr(limits, "CROWDED_PARK_AFTER_S", 0.1)
    create(named(directory(tmp_path).path.parent, 12))
    async with running([directory(tmp_path)]) as fleet:
        await wait_until(lambda: list(states(fleet).values()).count(State.DORMANT) >= 9)
        assert list(states(fleet).values()).count(State.ACTIVE) <= 3


async def test_no_more_databases_are_open_than_the_process_has_descriptors_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have their turn when some are at rest."""
    monkeypatch.setattr(limits, "PARK_AFTER_S", 0.1)
    monkeypatch.setattr(limits, "_most_open", lambda: 2)
    target = directory(tmp_path)
    create(named(tmp_path, 8))
    stop, most = trio.Event(), 0
    async with open_fleet([target]) as fleet, trio.open_nursery() as nursery:
        nursery.start_soon(fleet.run, stop)
        with trio.fail_after(10):
            while {each.txid for each in fleet.statistics().databases} != {1}:
                most = max(most, list(states(fleet).values()).count(State.ACTIVE))
                await trio.sleep(0.001)
        stop.set()
    assert 1 <= most <= 2


@pytest.mark.usefixtures("soon_at_rest")
async def test_change_of_a_database_at_rest_takes_two_requests(tmp_path: Path) -> None:
    """The lease has not lapsed, and nobody else can have published: neither is asked for."""
    stores = Stores()
    with Application(directory(tmp_path).path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with running([directory(tmp_path)], stores=stores) as fleet:
            await until_at_rest(fleet)
            requests = stores.requests
            await app("INSERT INTO t VALUES (1)")
            await until_published(replica(tmp_path, "app.db"), app)
            await until_at_rest(fleet)
            assert stores.requests - requests == 2, "the newest file, and the new one"
            assert of(fleet, "app.db").txid == of(fleet, "app.db").files == 2


class LettingGo:
    """Has the application commit once, at a step of letting its database go."""

    def __init__(self, step: str, app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begun = False
        self.has_committed = False
        leave, close, look = Parker.leave, Replicator.aclose, certain_now

        def commit(pause_s: float = 0.0) -> None:
            if not self._begun:
                self._begun = True
                app.call("INSERT INTO t VALUES ('meanwhile')")
                self.has_committed = True  # not before: one at a time may ask the application
                time.sleep(pause_s)  # its time is old enough to be trusted

        def look_after_a_commit(path: Path) -> Files | None:
            commit(pause_s=2 * MTIME_GRANULARITY_NS / 1e9)
            return look(path)

        def commit_after_the_look(path: Path) -> Files | None:
            files = look(path)
            commit()
            return files

        def commit_after_leaving(leaving: Parker) -> Parked | None:
            parked = leave(leaving)
            if parked is not None:
                commit()
            return parked

        async def commit_after_closing(replicator: Replicator) -> None:
            await close(replicator)
            await trio.to_thread.run_sync(commit)

        match step:
            case "before the look":
                monkeypatch.setattr(parker, "certain_now", look_after_a_commit)
            case "after the look":
                monkeypatch.setattr(parker, "certain_now", commit_after_the_look)
            case "after the mark":
                monkeypatch.setattr(Parker, "leave", commit_after_leaving)
            case "after closing":
                monkeypatch.setattr(Replicator, "aclose", commit_after_closing)


@pytest.mark.usefixtures("soon_at_rest")
@pytest.mark.parametrize("step", ["before the look", "after the look", "after the mark", "after closing"])
async def test_commit_while_a_database_is_let_go_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target = directory(tmp_path)
    with Application(target.path / "app.db") as app:
        await app.script("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
        async with running([target]) as fleet:
            letting_go = LettingGo(step, app, monkeypatch)
            await wait_until(lambda: letting_go.has_committed)
            await until_published(replica(tmp_path, "app.db"), app)
            await until_at_rest(fleet)
            assert await txids(replica(tmp_path, "app.db")) == [1, 2]


CHURN = """
import random, sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
rng, end = random.Random(int(sys.argv[2])), time.monotonic() + float(sys.argv[3])
number = 0
while time.monotonic() < end:
    for _ in range(rng.randrange(1, 4)):
        number += 1
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO t VALUES (?)", (number,))
        connection.execute("UPDATE n SET n = ?", (number,))
        connection.execute("COMMIT")
    match rng.randrange(8):
        case 0 | 1 | 2 as mode:
            connection.execute("PRAGMA busy_timeout = 0")  # a writer that has it open lets nobody restart the WAL
            connection.execute(f"PRAGMA wal_checkpoint({('TRUNCATE', 'RESTART', 'PASSIVE')[mode]})").fetchall()
            connection.execute("PRAGMA busy_timeout = 10000")
        case 3: connection.execute("VACUUM")
        case 4:
            connection.close()
            connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
    time.sleep(rng.choice([0, 0, 0.01, 0.05, 0.1, 0.3]))
print(number)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("soon_at_rest")
@pytest.mark.parametrize("seed", range(2))
async def test_databases_put_to_rest_at_any_moment_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Commits fall before, during and after the letting go; the WAL is restarted, deleted, the database rewritten."""
    monkeypatch.setattr(limits, "PARK_AFTER_S", 0.03)
    monkeypatch.setattr(replicator, "PARK_RETRY_S", 0.1)
    target = directory(tmp_path)
    with Application(target.path / "app.db") as app:
        await app.script("CREATE TABLE t (x); CREATE TABLE n (n); INSERT INTO n VALUES (0)")
        app.disconnect()
        async with running([target]) as fleet:
            rests, last = 0, State.ACTIVE
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", CHURN, str(app.database), str(seed), "4"], stdout=subprocess.PIPE
            )
            while process.returncode is None:
                state = of(fleet, "app.db").state
                rests, last = rests + (state is State.DORMANT and last is not state), state
                await trio.sleep(0.002)
                process.poll()
            assert process.returncode == 0
            store = replica(tmp_path, "app.db")
            await until_published(store, app)
            assert rests > 5, "it was at rest now and then"
    published = await txids(store)
    assert published == list(range(1, len(published) + 1))
    numbers = await consistent_numbers(tmp_path, [await fold(store, target=txid) for txid in published])
    assert numbers == sorted(numbers)
    assert numbers[-1] > 0


CHECK = """
import sqlite3, sys
for path in sys.argv[1:]:
    connection = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    row = connection.execute("SELECT n, (SELECT ifnull(max(x), 0) FROM t), (SELECT count(*) FROM t) FROM n").fetchone()
    assert len(set(row)) == 1, row
    print(row[0])
"""


async def consistent_numbers(tmp_path: Path, images: list[bytes]) -> list[int]:
    """The last transaction of each database, of which both tables tell the same; SQLite finds no fault in any."""
    paths = [tmp_path / f"image-{number}.db" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    done = await trio.run_process([sys.executable, "-c", CHECK, *map(str, paths)], capture_stdout=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.usefixtures("soon_at_rest")
async def test_fleet_that_is_started_again_begins_at_rest_without_a_request(tmp_path: Path) -> None:
    target = directory(tmp_path)
    create(named(tmp_path, 5))
    with Application(target.path / "open.db") as app:
        await app("CREATE TABLE t (x)")
        async with running([target]):
            pass
        stores, before = Stores(), descriptors()
        async with running([target], stores=stores) as fleet:
            assert set(states(fleet).values()) == {State.DORMANT}
            assert {each.txid for each in fleet.statistics().databases} == {1}
            await trio.sleep(5 * LOOK_INTERVAL_S)
            assert stores.requests == 0
            assert descriptors() - before <= 10
            await app("INSERT INTO t VALUES (1)")
            await until_published(replica(tmp_path, "open.db"), app)


@pytest.mark.parametrize("closed", [False, True], ids=["in the WAL", "checkpointed"])
async def test_what_was_committed_while_no_writer_ran_is_not_taken_for_rest(tmp_path: Path, closed: bool) -> None:
    target = directory(tmp_path)
    with Application(target.path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with running([target]):
            pass
        await app("INSERT INTO t VALUES (1)")
        if closed:
            app.disconnect()
        async with running([target]) as fleet:
            assert of(fleet, "app.db").txid == 2
            await until_published(replica(tmp_path, "app.db"), app)


async def test_mark_of_another_replica_does_not_put_a_database_to_rest(tmp_path: Path) -> None:
    target = directory(tmp_path)
    create(named(tmp_path, 1))
    async with running([target]):
        pass
    async with running([replace(target, url=f"file://{tmp_path}/other")]) as fleet:
        assert (of(fleet, "0.db").state, of(fleet, "0.db").files) == (State.ACTIVE, 1)


@pytest.mark.usefixtures("soon_at_rest")
@pytest.mark.logs("LTX file ends after 0 bytes", "publishing it as the newest state")
async def test_another_writer_of_a_database_at_rest_is_noticed_when_it_changes(tmp_path: Path) -> None:
    """That one was of this machine, published and compacted, and the names of its files are free again."""
    target = directory(tmp_path)
    target = replace(target, settings=replace(target.settings, take_over=True))
    store = replica(tmp_path, "app.db")
    with Application(target.path / "app.db") as app:
        await app("CREATE TABLE t (x)")
        async with running([target]) as fleet:
            await until_at_rest(fleet)
            with StateDirectory(app.database) as state:
                state.begin_tenancy()
            compacted = tmp_path / "replica/app.db/ltx/1"
            compacted.mkdir()
            (compacted / "0000000000000001-0000000000000005.ltx").write_bytes(b"")
            await app("INSERT INTO t VALUES (1)")
            await wait_until(lambda: of(fleet, "app.db").state is not State.DORMANT)
            await wait_until(lambda: of(fleet, "app.db").txid == 6)
            assert 2 not in await txids(store)


async def test_single_database_is_never_put_to_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARK_AFTER_S", 0.0)
    create([tmp_path / "app.db"])
    async with running([single(tmp_path, "app.db")]) as fleet:
        await trio.sleep(0.5)
        assert states(fleet) == {"app.db": State.ACTIVE}


# --- broken and slow ones


@contextmanager
def exclusively_locked(path: Path) -> Iterator[None]:
    """By a program that lets nobody in."""
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('PRAGMA journal_mode = delete'); c.execute('PRAGMA locking_mode = exclusive'); "
        "c.execute('BEGIN EXCLUSIVE'); c.execute('CREATE TABLE IF NOT EXISTS u (x)'); print(1, flush=True); input(); "
        "c.execute('COMMIT')"
    )
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        yield
        process.communicate("\n", timeout=10)


async def test_broken_databases_are_named_and_the_others_are_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = directory(tmp_path)
    paths = named(tmp_path, 6)
    create(paths)
    with paths[1].open("r+b") as file:  # no page size has this value
        file.seek(16)
        file.write(b"\0\3")
    (target.path / ".2.db-litereplica").write_text("in the way")
    with exclusively_locked(paths[3]), pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with running([target]) as fleet:
            assert {name for name, state in states(fleet).items() if state is not State.FAILED} == {
                "0.db", "4.db", "5.db",
            }  # fmt: skip
            assert "page size" in str(of(fleet, "1.db").error)
            assert "cannot write to" in str(of(fleet, "2.db").error)
            assert "locked" in str(of(fleet, "3.db").error)
            assert of(fleet, "1.db").behind_s > 0, "nobody knows what it has"
            assert of(fleet, "0.db").behind_s == 0
            (target.path / ".2.db-litereplica").unlink()
            await wait_until(lambda: of(fleet, "2.db").error is None)
            assert of(fleet, "2.db").txid == 1
            assert of(fleet, "2.db").behind_s == 0
            paths[1].unlink()
            await wait_until(lambda: of(fleet, "1.db").state is State.GONE)
            assert of(fleet, "1.db").behind_s == 0, "of what is gone nothing is missing"
    assert caught.group_contains(Unpublished, match="3.db was compared")
    for path in (paths[1], paths[2], paths[3]):
        assert caplog.text.count(f"cannot replicate {path}") == 1, "once, not every time"


async def test_database_that_another_writer_publishes_is_left_alone_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "RETRY_S", 0.01)
    target = directory(tmp_path)
    with Application(target.path / "a.db") as first, Application(target.path / "b.db") as second:
        await first("CREATE TABLE t (x)")
        await second("CREATE TABLE t (x)")
        async with running([target]) as fleet:
            await second("INSERT INTO t VALUES (1)")
            await until_published(replica(tmp_path, "b.db"), second)
            name = "ltx/0/0000000000000002-0000000000000002.ltx"
            shutil.copy(tmp_path / "replica/b.db" / name, tmp_path / "replica/a.db" / name)
            await first("INSERT INTO t VALUES (1)")
            await wait_until(lambda: of(fleet, "a.db").state is State.FAILED)
            await second("INSERT INTO t VALUES (2)")
            await until_published(replica(tmp_path, "b.db"), second)
            await trio.sleep(0.3)
            assert await txids(replica(tmp_path, "a.db")) == [1, 2]
    assert caplog.text.count("cannot replicate") == 1


async def test_databases_that_hang_are_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than are opened at once, and than trio has threads to lend."""
    monkeypatch.setattr(limits, "PATIENCE_S", 0.02)
    monkeypatch.setattr(parking, "LOOK_INTERVAL_S", 0.02)
    monkeypatch.setattr(supervisor, "OVERDUE_INTERVAL_S", 0.02)
    target = directory(tmp_path)
    create(named(tmp_path, 45))
    connect, go_on, hung = SQLiteDatabase.connect, threading.Event(), []

    def hang(source: SQLiteDatabase) -> None:
        if source.path.name != "z.db":
            hung.append(source.path)
            go_on.wait(30)
        connect(source)

    monkeypatch.setattr(SQLiteDatabase, "connect", hang)
    stop = trio.Event()
    async with open_fleet([target]) as fleet, trio.open_nursery() as nursery:
        nursery.start_soon(fleet.run, stop)
        try:
            await wait_until(lambda: len(hung) == 45)
            create([target.path / "z.db"])
            await wait_until(lambda: "z.db" in states(fleet) and of(fleet, "z.db").txid == 1)
        finally:
            go_on.set()
            stop.set()


async def test_once_publishes_what_it_can_and_names_each_that_failed(tmp_path: Path) -> None:
    target = directory(tmp_path)
    paths = named(tmp_path, 4)
    create(paths)
    for number in (1, 2):
        (target.path / f".{number}.db-litereplica").write_text("in the way")
    async with open_fleet([target]) as fleet:
        with pytest.raises(FleetError, match="2 database") as e:
            await fleet.publish_once()
        assert set(e.value.errors) == {paths[1], paths[2]}
        assert e.value.exit_code is ExitCode.ENVIRONMENT
        assert [of(fleet, f"{number}.db").txid for number in range(4)] == [1, 0, 0, 1]


async def test_once_raises_the_error_of_a_single_database_itself(tmp_path: Path) -> None:
    async with open_fleet([single(tmp_path, "missing.db")]) as fleet:
        with pytest.raises(UsageError, match="does not exist"):
            await fleet.publish_once()


async def test_error_of_a_single_database_ends_the_fleet(tmp_path: Path) -> None:
    async with open_fleet([single(tmp_path, "missing.db")]) as fleet:
        with pytest.raises(UsageError, match="does not exist"):
            await fleet.run(trio.Event())


@pytest.mark.logs("does not exist")
async def test_several_named_databases_wait_for_one_that_does_not_exist_yet(tmp_path: Path) -> None:
    create([tmp_path / "a.db"])
    async with running([single(tmp_path, "a.db"), single(tmp_path, "b.db")]) as fleet:
        assert states(fleet) == {"a.db": State.ACTIVE, "b.db": State.FAILED}
        create([tmp_path / "b.db"])
        await wait_until(lambda: of(fleet, "b.db").txid == 1)


# --- one lease


async def test_databases_of_a_directory_share_one_lease_which_is_gone_after_a_clean_stop(tmp_path: Path) -> None:
    target = directory(tmp_path)
    create(named(tmp_path, 3))
    async with running([target]) as fleet:
        leases = fleet.statistics().leases
        assert list(leases) == [target.url]
        assert leases[target.url].owner.endswith(f":{os.getpid()}")
        assert [each.lease for each in fleet.statistics().databases] == 3 * [leases[target.url]]
        assert lock_files(tmp_path) == ["replica/lock.json"]
    assert not lock_files(tmp_path)


@pytest.mark.logs("was deleted or replaced", "was replaced while it was not replicated", "and not by its WAL")
async def test_database_that_fails_or_vanishes_leaves_the_shared_lease_to_the_others(tmp_path: Path) -> None:
    target = directory(tmp_path)
    create(named(tmp_path, 3))
    async with running([target]) as fleet:
        lock = tmp_path / "replica/lock.json"
        before = lock.read_bytes()
        (target.path / "0.db").unlink()
        await wait_until(lambda: of(fleet, "0.db").state is State.GONE)
        replacement = tmp_path / "other.db"
        create([replacement])
        replacement.replace(target.path / "1.db")
        await wait_until(lambda: of(fleet, "1.db").state is State.FAILED)
        await wait_until(lambda: of(fleet, "1.db").state is State.ACTIVE)
        assert lock.read_bytes() == before, "another writer could have taken it"
        assert of(fleet, "2.db").lease is not None
        assert of(fleet, "0.db").lease is None, "what is gone holds nothing"
    assert not lock_files(tmp_path)


async def test_directory_is_replicated_by_one_process(tmp_path: Path) -> None:
    async with open_fleet([directory(tmp_path)]):
        with pytest.raises(AlreadyReplicated, match="databases"):
            async with open_fleet([replace(directory(tmp_path), url=f"file://{tmp_path}/other")]):
                raise AssertionError


async def test_replica_of_a_directory_is_refused_while_another_holds_its_lease(tmp_path: Path) -> None:
    create(named(directory(tmp_path).path.parent, 2))
    other = tmp_path / "other"
    other.mkdir()
    create([other / "0.db"])
    async with running([directory(tmp_path)]), open_fleet([replace(directory(tmp_path), path=other)]) as second:
        with pytest.raises(LeaseHeld):
            await second.run(trio.Event())


@pytest.mark.usefixtures("soon_at_rest", "short_term")
@pytest.mark.logs("publishing it as the newest state")
async def test_lease_that_a_second_writer_took_while_all_was_at_rest_ends_the_first(tmp_path: Path) -> None:
    first = directory(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with Application(first.path / "a.db") as app, Application(other / "a.db") as successor:
        await app("CREATE TABLE t (x)")
        await successor.script("CREATE TABLE t (x); INSERT INTO t VALUES ('of the successor')")
        create([first.path / "b.db"])
        stop, errors = trio.Event(), list[Exception]()

        async def run_first() -> None:
            try:
                async with open_fleet([first]) as fleet:
                    fleets.append(fleet)
                    await fleet.run(stop)
            except LeaseConflict as exc:
                errors.append(exc)

        fleets = list[object]()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_first)
            await wait_until(lambda: bool(fleets))
            fleet = fleets[0]
            await wait_until(lambda: set(states(fleet).values()) == {State.DORMANT})  # type: ignore[arg-type]
            await wait_until(lambda: not fleet.statistics().leases)  # type: ignore[attr-defined]
            lease_module.TERM_MS = 30_000
            async with running([replace(first, path=other, settings=replace(first.settings, take_over=True))]):
                expected = await until_published(replica(tmp_path, "a.db"), successor)
                await app("INSERT INTO t VALUES ('of the first')")
                await wait_until(lambda: bool(errors))
                assert await fold(replica(tmp_path, "a.db")) == expected
    assert "another" in str(errors[0]) or "held by" in str(errors[0])


async def test_standby_of_a_directory_waits_with_all_its_databases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_keeper, "STAND_BY_INTERVAL_S", 0.05)
    target = directory(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    create([target.path / "a.db"])
    for name in ("b.db", "c.db"):
        create([other / name])
    stop = trio.Event()
    waiting = replace(target, path=other, settings=replace(SETTINGS, lease=LeaseMode.WAIT))
    async with open_fleet([waiting]) as second, trio.open_nursery() as nursery:
        async with running([target]):
            nursery.start_soon(second.run, stop)
            await wait_until(lambda: set(states(second).values()) == {State.WAITING})
        await wait_until(lambda: {each.txid for each in second.statistics().databases} == {1})
        stop.set()


# --- other targets


async def test_reconfiguration_leaves_what_is_as_before_untouched(tmp_path: Path) -> None:
    targets: list[Target] = [single(tmp_path, name) for name in ("a.db", "b.db", "c.db")]
    create(target.path for target in targets)
    async with running(targets[:2]) as fleet:
        begun = of(fleet, "a.db")
        assert isinstance(targets[0], DatabaseTarget)
        await fleet.reconfigure([targets[0], targets[2]])
        await wait_until(lambda: of(fleet, "c.db").txid == 1)
        assert set(states(fleet)) == {"a.db", "c.db"}
        assert (of(fleet, "a.db").files, of(fleet, "a.db").lease) == (1, begun.lease)
        with StateDirectory(tmp_path / "b.db"):
            pass
        with pytest.raises(AlreadyReplicated), StateDirectory(tmp_path / "a.db"):
            pass


async def test_reconfiguration_moves_a_database_to_another_url_and_a_directory_to_another_pattern(
    tmp_path: Path,
) -> None:
    target, named_one = directory(tmp_path), single(tmp_path, "a.db")
    create([*named(tmp_path, 2), tmp_path / "a.db", target.path / "x.sqlite"])
    async with running([target, named_one]) as fleet:
        assert set(states(fleet)) == {"0.db", "1.db", "a.db"}
        await fleet.reconfigure(
            [replace(target, pattern="*.sqlite"), replace(named_one, url=f"file://{tmp_path}/moved")]
        )
        await wait_until(lambda: {each.txid for each in fleet.statistics().databases} == {1})
        assert set(states(fleet)) == {"a.db", "x.sqlite"}
        assert of(fleet, "a.db").url == f"file://{tmp_path}/moved"


async def test_what_has_made_room_for_a_reconfiguration_that_cannot_be_goes_on_as_before(tmp_path: Path) -> None:
    targets = [single(tmp_path, "a.db"), single(tmp_path, "b.db")]
    create(target.path for target in targets)
    stores = Stores()

    def open_store(url: str, credentials: Credentials | None) -> LTXStore:
        if url.endswith("wrong"):
            raise UsageError("no such store")
        return stores(url, credentials)

    with Application(targets[0].path) as app:
        async with running(targets, stores=open_store) as fleet:
            moved, wrong = (f"file://{tmp_path}/{name}" for name in ("moved", "wrong"))
            with pytest.raises(UsageError, match="no such store"):
                await fleet.reconfigure([replace(targets[0], url=moved), replace(targets[1], url=wrong)])
            assert {each.url for each in fleet.statistics().databases} == {target.url for target in targets}
            await app("INSERT INTO t VALUES (2)")
            await until_published(open_ltx_store(targets[0].url), app)


async def test_reconfiguration_that_cannot_be_leaves_all_as_it_was(tmp_path: Path) -> None:
    targets = [single(tmp_path, "a.db"), single(tmp_path, "b.db")]
    create(target.path for target in targets)
    async with running(targets) as fleet:
        for wrong, message in (
            (replace(targets[0], path=tmp_path / "c.db"), "two targets have the URL"),
            (replace(targets[0], url=f"file://{tmp_path}/other"), "named twice"),
            (replace(directory(tmp_path), path=tmp_path / "missing"), "is not a directory"),
        ):
            with pytest.raises(UsageError, match=message):
                await fleet.reconfigure([*targets, wrong])
        assert states(fleet) == {"a.db": State.ACTIVE, "b.db": State.ACTIVE}
