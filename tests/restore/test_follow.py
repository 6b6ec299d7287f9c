"""A restored database that follows: what it is after each step, after a crash, and to those who read it meanwhile."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from litereplica.compaction.compaction import compact_level, snapshot
from litereplica.errors import DamagedFile, PageSizeChanged, PointNotFound, UsageError
from litereplica.format.names import SNAPSHOT_LEVEL, Layout, file_key
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.restore import rollback_journal
from litereplica.restore.follow import Applied, Follower, position_of, prepare
from litereplica.restore.restore import restore
from litereplica.restore.rollback_journal import DatabaseBusy
from tests.helpers.publisher import Publisher
from tests.helpers.waiting import wait_until
from tests.helpers.workload import SETUP, Workload

STEPS = 60
_OWN_FIELDS = (slice(18, 20), slice(24, 32), slice(92, 100))
"""Of the header: journal mode, change counter and size, what counter the size is for, and the writer's version."""


def normalized(database: bytes) -> bytes:
    """A database without what a follower has of its own."""
    masked = bytearray(database)
    for field in _OWN_FIELDS:
        masked[field] = bytes(len(masked[field]))
    return bytes(masked)


def same(path: Path, content: bytes) -> bool:
    return normalized(path.read_bytes()) == normalized(content)


def check(path: Path) -> str:
    """What the sqlite3 shell says of a database, in a process of its own."""
    command = ["sqlite3", str(path), "PRAGMA integrity_check"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def running(command: list[str]) -> subprocess.Popen[str]:
    """A reader's process."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def numbered(directory: Path) -> list[Path]:
    """Where the steps were killed."""
    return [place for place in sorted(directory.iterdir()) if place.name.isdigit()]


async def begin(store: LTXStore, path: Path) -> Follower:
    result = await restore(store, path, prepare=partial(prepare, path))
    return Follower(store, path, result.txid)


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    with Publisher(tmp_path / "primary", setup=SETUP, page_size=512, auto_vacuum=2) as made:
        yield made


async def delete_below(store: LTXStore, level: int) -> None:
    """What lies in files of this level is deleted from those below, but for the last of each."""
    ends = [info.max_txid for info in await store.list_level(level)]
    for lower in range(level):
        files = await store.list_level(lower)
        await store.delete([info for info in files[:-1] if ends and info.max_txid <= ends[-1]])


@pytest.mark.slow
async def test_every_step_is_the_primary_whatever_happens_to_it_and_to_the_files(
    tmp_path: Path, publisher: Publisher
) -> None:
    """VACUUM, shrink, growth, DDL, full text; single files, many at once, and gaps that levels and snapshots bridge."""
    rng = random.Random(1)
    store = open_ltx_store(publisher.url)
    follower = await begin(store, path := tmp_path / "out.db")
    workload = Workload(publisher.connection, page_size=512, seed=1)
    levels: set[int] = set()
    for _ in range(STEPS):
        for _ in range(rng.choice((1, 1, 2, 7))):
            workload.step()
            publisher.publish()
        match rng.randrange(6):
            case 0 | 1:
                if await compact_level(store, 1) is not None:
                    await delete_below(store, 1)
            case 2:
                await compact_level(store, 1)
                if await compact_level(store, 2) is not None:
                    await delete_below(store, 2)
            case 3:
                await snapshot(store)
                for level in range(3):
                    await store.delete((await store.list_level(level))[:-1])
        levels |= {info.level for info in await follower._steps()}
        applied = await follower.advance()
        assert applied is not None
        assert applied.after == follower.txid == publisher.txid == position_of(path)
        assert same(path, publisher.content)
        assert (tmp_path / "out.db-txid").read_text() == f"{publisher.txid:016x}\n"
    assert check(path) == "ok"
    assert await follower.advance() is None
    assert levels == {0, 1, 2, SNAPSHOT_LEVEL}
    await store.aclose()


async def test_large_files_are_applied_in_parts(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    from litereplica.ltxstore import store as store_module
    from litereplica.restore import plan_reader

    for module in (plan_reader, store_module):
        monkeypatch.setattr(module, "WHOLE_FILE_LIMIT", 2000)
    monkeypatch.setattr(plan_reader, "PIECE_BYTES", 3000)
    store = open_ltx_store(publisher.url)
    follower = await begin(store, tmp_path / "out.db")
    workload = Workload(publisher.connection, page_size=512, seed=2)
    for _ in range(20):
        workload.step()
        publisher.publish()
        if publisher.txid % 4 == 0:
            await follower.advance()
            assert same(tmp_path / "out.db", publisher.content)
    await store.aclose()


@pytest.mark.slow
async def test_kill_at_any_change_of_the_file_system_leaves_the_old_or_the_new_state(
    tmp_path: Path, publisher: Publisher
) -> None:
    workload = Workload(publisher.connection, page_size=512, seed=3)
    store = open_ltx_store(publisher.url)
    base = tmp_path / "base"
    base.mkdir()
    for _ in range(12):
        workload.step()
        publisher.publish()
    await begin(store, base / "out.db")
    old = publisher.content
    for statement in ("DELETE FROM item WHERE id % 2", "VACUUM", "INSERT INTO item(name) VALUES ('new')"):
        publisher.connection.execute(statement)
        publisher.publish()
    new = publisher.content
    assert len(new) < len(old)
    command = [sys.executable, "-m", "tests.restore.killed_follower", publisher.url, str(tmp_path)]
    await trio.run_process(command)
    outcomes = {"old": 0, "new": 0}
    for place in numbered(tmp_path):
        path = place / "out.db"
        aside = shutil.copytree(place, place / "read") / "out.db"
        assert check(aside) == "ok"  # by any client, which puts right what is to be put right
        assert same(aside, old) or same(aside, new)
        outcomes["new" if same(aside, new) else "old"] += 1
        position = position_of(path)
        assert same(path, new if position == publisher.txid else old)
        follower = Follower(store, path, position)
        await follower.advance()
        assert follower.txid == publisher.txid
        assert same(path, new)
        assert not path.with_name("out.db-journal").exists()
    assert outcomes["old"] > 20
    assert outcomes["new"] >= 4
    await store.aclose()


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
reads, seen = 0, set()
print("ready", flush=True)
while True:
    connection.execute("BEGIN")
    total, changes = connection.execute("SELECT sum(balance), sum(changes) FROM account").fetchone()
    assert connection.execute("SELECT sum(balance), count(*) FROM account").fetchone() == (total, 300)
    connection.execute("COMMIT")
    assert total == 0 and not any(changes < other for other in seen), (total, changes)
    reads, seen = reads + 1, {changes}
    if changes == int(sys.argv[2]):
        break
print(reads, flush=True)
"""
TRANSFERS = 60


async def test_readers_see_whole_transactions_only_and_none_older_than_the_last(tmp_path: Path) -> None:
    accounts = "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INT, changes INT, padding BLOB);"
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)"
    setup = f"{accounts} INSERT INTO account {rows} SELECT i, 0, 0, randomblob(200) FROM n"
    rng = random.Random(4)
    with Publisher(tmp_path / "primary", setup=setup, page_size=512) as publisher:
        store = open_ltx_store(publisher.url)
        path = tmp_path / "out.db"
        follower = await begin(store, path)
        command = [sys.executable, "-c", READER, str(path), str(2 * TRANSFERS)]
        with running(command) as reader:
            assert reader.stdout is not None
            assert await trio.to_thread.run_sync(reader.stdout.readline) == "ready\n"
            for _ in range(TRANSFERS):
                source, target = rng.sample(range(1, 301), 2)
                change = "UPDATE account SET changes = changes + 1, balance = balance"
                publisher.transaction(f"{change} - 7 WHERE id = {source}", f"{change} + 7 WHERE id = {target}")
                await follower.advance()
            with trio.fail_after(30):
                reads = int(await trio.to_thread.run_sync(reader.stdout.readline))
            assert reader.wait(30) == 0
        assert reads > 5
        await store.aclose()


async def test_reader_that_stays_is_waited_for_and_then_left_alone(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback_journal, "LOCK_TIMEOUT_S", 0.2)
    store = open_ltx_store(publisher.url)
    path = tmp_path / "out.db"
    follower = await begin(store, path)
    old = publisher.content
    publisher.transaction("INSERT INTO item(name) VALUES ('new')")
    stay = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN');"
    stay += "c.execute('SELECT * FROM sqlite_schema').fetchall(); print('reading', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", stay, str(path)]
    with running(command) as reader:
        assert reader.stdout is not None
        assert await trio.to_thread.run_sync(reader.stdout.readline) == "reading\n"
        with pytest.raises(DatabaseBusy):
            await follower.advance()
        assert same(path, old)
        reader.communicate()
    await follower.advance()
    assert same(path, publisher.content)
    await store.aclose()


async def test_loop_goes_on_after_damage_by_way_of_another_file(
    tmp_path: Path, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_ltx_store(publisher.url)
    path = tmp_path / "out.db"
    follower = await begin(store, path)
    for name in ("a", "b"):
        publisher.transaction(f"INSERT INTO item(name) VALUES ('{name}')")
    await compact_level(store, 1)
    damaged = publisher.replica / file_key(Layout.FILE, 0, 2, 2)
    data = bytearray(damaged.read_bytes())
    data[-20] ^= 1
    damaged.write_bytes(data)
    publisher.transaction("INSERT INTO item(name) VALUES ('c')")
    with pytest.raises(DamagedFile):
        await Follower(store, path, 1).advance()
    steps: list[Applied] = []

    async def applied(step: Applied) -> None:
        steps.append(step)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run, 0.01, applied)
        await wait_until(lambda: bool(steps))
        nursery.cancel_scope.cancel()
    assert same(path, publisher.content)
    assert "looking for other files" in caplog.text
    await store.aclose()


@pytest.mark.logs("looking for other files", "none of which leads on")
async def test_loop_goes_on_when_a_file_that_was_damaged_and_that_no_other_covers_is_sound_again(
    tmp_path: Path, publisher: Publisher
) -> None:
    store = open_ltx_store(publisher.url)
    path = tmp_path / "out.db"
    follower = await begin(store, path)
    publisher.transaction("INSERT INTO item(name) VALUES ('a')")
    file = publisher.replica / file_key(Layout.FILE, 0, 2, 2)
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    steps: list[Applied] = []

    async def applied(step: Applied) -> None:
        steps.append(step)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run, 0.01, applied)
        await wait_until(lambda: bool(follower._failed.damaged))
        file.write_bytes(sound)
        await wait_until(lambda: bool(steps))
        nursery.cancel_scope.cancel()
    assert same(path, publisher.content)
    await store.aclose()


async def test_other_page_size_ends_it_and_changes_nothing(tmp_path: Path) -> None:
    with Publisher(tmp_path / "a", setup="CREATE TABLE t(x)", page_size=512, lineage=7) as small:
        store = open_ltx_store(small.url)
        path = tmp_path / "out.db"
        follower = await begin(store, path)
        small.transaction("INSERT INTO t VALUES (1)")
        before = path.read_bytes()
        with Publisher(tmp_path / "b", setup="CREATE TABLE t(x)", page_size=1024, lineage=7) as large:
            large.transaction("INSERT INTO t VALUES (2)")
            name = file_key(Layout.FILE, 0, 2, 2)
            shutil.copy(large.replica / name, small.replica / name)
        with pytest.raises(PageSizeChanged):
            await follower.advance()
        assert path.read_bytes() == before
        await store.aclose()


@pytest.mark.parametrize(
    ("lineage", "others"),
    [pytest.param(0, 0, id="Litestream's"), pytest.param(7, 8, id="ours"), pytest.param(7, 7, id="rolled back")],
)
@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.logs("may have been made anew since TXID 0000000000000003: reading the whole database")
async def test_a_replica_made_anew_from_another_database_is_not_mixed_with_the_file(
    tmp_path: Path, is_restarted: bool, lineage: int, others: int
) -> None:
    def make(name: str, node_id: int) -> Publisher:
        setup = f"CREATE TABLE t (x); INSERT INTO t VALUES ('{name}'); CREATE TABLE {name} (x)"
        publisher = Publisher(tmp_path / name, setup=setup, lineage=node_id)
        for number in range(2 if name == "ours" else 5):
            publisher.transaction(f"INSERT INTO t VALUES ('{name} {number}')")
        return publisher

    path = tmp_path / "out.db"
    with make("ours", lineage) as ours, make("other", others) as other:
        store = open_ltx_store(ours.url)
        follower = await begin(store, path)
        shutil.rmtree(ours.replica)
        shutil.copytree(other.replica, ours.replica)
        if is_restarted:
            follower = Follower(store, path, position_of(path))
        applied = await follower.advance()
        assert applied is not None
        assert (applied.before, applied.after) == (3, 6)
        assert same(path, other.content)
        other.transaction("INSERT INTO t VALUES ('more')")
        name = file_key(Layout.FILE, 0, 7, 7)
        shutil.copy(other.replica / name, ours.replica / name)
        assert await follower.advance() == Applied(6, 7, 1)
        assert same(path, other.content)
        await store.aclose()


async def test_replica_that_is_behind_the_file_is_another_one(tmp_path: Path, publisher: Publisher) -> None:
    store = open_ltx_store(publisher.url)
    await begin(store, tmp_path / "out.db")
    with pytest.raises(PointNotFound, match="at TXID 0000000000000005"):
        await Follower(store, tmp_path / "out.db", 5).require_history()
    await Follower(store, tmp_path / "out.db", 1).require_history()
    await store.aclose()


@pytest.mark.parametrize("stored", [None, "garbage"])
async def test_file_without_a_position_is_refused(tmp_path: Path, stored: str | None) -> None:
    (tmp_path / "out.db").write_bytes(b"precious")
    if stored is not None:
        (tmp_path / "out.db-txid").write_text(stored)
    with pytest.raises(UsageError, match="--force"):
        position_of(tmp_path / "out.db")
    assert (tmp_path / "out.db").read_bytes() == b"precious"


@pytest.mark.parametrize("txid", [1, 0xFFFFFFFF, 0x100000000, 0x1_8000_0000])
@pytest.mark.parametrize("behind", [-2, 0, 3])
def test_position_is_what_the_file_says_even_where_the_note_beside_it_differs(
    tmp_path: Path, txid: int, behind: int
) -> None:
    path = tmp_path / "out.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t(x)")
    connection.close()
    prepare(path, path, txid)
    (tmp_path / "out.db-txid").write_text(f"{max(0, txid - behind):016x}\n")
    assert position_of(path) == txid
    assert check(path) == "ok"


@pytest.mark.parametrize("when", ["between two runs", "between two steps"])
async def test_file_that_somebody_has_written_to_is_refused_and_left_as_it_is(
    tmp_path: Path, publisher: Publisher, when: str
) -> None:
    path = tmp_path / "out.db"
    store = open_ltx_store(publisher.url)
    follower = await begin(store, path)
    publisher.transaction("CREATE TABLE more(x)")
    await follower.advance()
    await trio.run_process(["sqlite3", str(path), "INSERT INTO more VALUES (1)"])
    written = path.read_bytes()
    publisher.transaction("INSERT INTO more VALUES (2)")
    if when == "between two runs":
        with pytest.raises(UsageError, match="written to by another program: add --force"):
            position_of(path)
    else:
        with pytest.raises(UsageError, match="written to by another program: add --force"):
            await follower.advance()
    assert path.read_bytes() == written
    await store.aclose()
