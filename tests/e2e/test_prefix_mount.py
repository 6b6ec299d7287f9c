"""A mount of every database below a prefix: names, life cycle, isolation of failures, past states."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from litereplica.testing.mounts import MountedReplica, litereplica_binary, status_in
from tests.helpers.publisher import Publisher

PARK_AFTER = "400ms"
DEADLINE_S = 20.0
NAMES = ("a.db", "b.db", "eu/c.db", "eu/west/d.db", "0003/e.db")


def value(path: Path) -> object:
    """The one value of a database, by a connection that is closed."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT x FROM t").fetchone()[0]


class Fleet:
    """Databases of one row each, published below a `file://` prefix, and the mount of the prefix."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.url = f"file://{self.store}"
        self.publishers: dict[str, Publisher] = {}
        self._stack = stack

    def publish(self, name: str, content: str, *, page_size: int = 4096) -> Publisher:
        """Publish a new database, or a new value of one that there is."""
        if name not in self.publishers:
            setup = f"CREATE TABLE t(x); INSERT INTO t VALUES ('{content}')"
            where = self.directory / "primaries" / name.replace("/", "_")
            shutil.rmtree(where, ignore_errors=True)
            publisher = Publisher(where, setup=setup, page_size=page_size, replica=self.store / name)
            self.publishers[name] = self._stack.enter_context(publisher)
        else:
            self.publishers[name].transaction(f"UPDATE t SET x = '{content}'")
        return self.publishers[name]

    def remove(self, name: str) -> None:
        del self.publishers[name]
        shutil.rmtree(self.store / name)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with ExitStack() as stack:
        fleet = Fleet(tmp_path_factory.mktemp("fleet"), stack)
        for name in NAMES:
            fleet.publish(name, name)
        yield fleet


@pytest.fixture(scope="module")
def mount(fleet: Fleet) -> Iterator[MountedReplica]:
    problems = ["is not shown: ", "damaged.db cannot be read"]
    options = ["--park-after", PARK_AFTER]
    where = fleet.directory / "mount"
    with MountedReplica(fleet.url, where, name="", options=options, expected_problems=problems) as mount:
        yield mount


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def active(mount: MountedReplica) -> int:
    return int(mount.status()["databases"]["active"])


def about(mount: MountedReplica, name: str) -> dict[str, Any]:
    """The status of one database."""
    return status_in(mount.mountpoint / ".each" / name)


def descriptors(mount: MountedReplica) -> int:
    return len(list(Path(f"/proc/{mount.pid}/fd").iterdir()))


@pytest.mark.slow
def test_names_are_those_of_the_store_and_cost_little(fleet: Fleet, mount: MountedReplica) -> None:
    until(lambda: active(mount) == 0)
    activations = mount.status()["databases"]["activations"]
    before = mount.status()["names"]["requests"]
    assert sorted(os.listdir(mount.mountpoint)) == ["0003", "a.db", "b.db", "eu"]  # noqa: PTH208
    assert mount.status()["names"]["requests"] == before + 1
    found = subprocess.run(
        ["find", ".", "-type", "f"], cwd=mount.mountpoint, capture_output=True, text=True, check=True
    )
    assert sorted(line.removeprefix("./") for line in found.stdout.splitlines()) == sorted(NAMES)
    listed = (mount.mountpoint / "a.db").stat()
    assert (listed.st_size, stat.S_IMODE(listed.st_mode)) == (0, 0o444)
    for name in ("missing", "missing.db", "a.db-journal", "eu-wal", "a", ".git", "a.db/x"):
        with pytest.raises(OSError, match=r"No such|Not a directory"):
            (mount.mountpoint / name).stat()
    assert mount.status()["databases"]["activations"] == activations
    assert value(mount.mountpoint / "eu/west/d.db") == "eu/west/d.db"
    size = len(fleet.publishers["eu/west/d.db"].content)
    assert (mount.mountpoint / "eu/west/d.db").stat().st_size == size
    assert (mount.mountpoint / "eu/west/d.db-pos").read_text() == "0000000000000001/0000000000000000\n"
    assert sorted(os.listdir(mount.mountpoint / "eu/west")) == ["d.db", "d.db-pos", "d.db-shm", "d.db-wal"]  # noqa: PTH208


@pytest.mark.slow
def test_names_that_would_collide_are_left_out(fleet: Fleet, mount: MountedReplica) -> None:
    for name in ("odd/x.db", "odd/x.db-wal", "odd/.at", "odd/new\nline", "odd/x.db/below.db"):
        fleet.publish(name, name)
    assert os.listdir(mount.mountpoint / "odd") == ["x.db"]  # noqa: PTH208
    assert value(mount.mountpoint / "odd/x.db") == "odd/x.db"
    for name in ("x.db-wal/y", ".at/y", "new\nline", "x.db/below.db"):
        with pytest.raises(OSError, match=r"No such|Not a directory"):
            (mount.mountpoint / "odd" / name).stat()
    assert mount.log.count("'odd/x.db-wal' in ") == mount.log.count("'odd/new\\nline' in ") == 1
    shutil.rmtree(fleet.store / "odd")


@pytest.mark.slow
def test_a_parked_database_costs_nothing_and_is_current_when_it_is_opened_again(
    fleet: Fleet, mount: MountedReplica
) -> None:
    path = mount.mountpoint / "a.db"
    value(path)  # which opens the cache for all
    until(lambda: active(mount) == 0)
    idle = descriptors(mount)
    for step in range(4):
        content = f"a, step {step}"
        publisher = fleet.publish("a.db", content)
        if step == 2:  # it grows while it is parked, and shrinks again
            publisher.transaction("CREATE TABLE large AS SELECT randomblob(200000) AS x")
        if step == 3:
            publisher.connection.executescript("DROP TABLE large; VACUUM")
            publisher.publish()
        assert value(path) == content
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert path.stat().st_size == len(publisher.content)
            assert path.read_bytes()[100:] == publisher.content[100:]
        until(lambda: active(mount) == 0)
        until(lambda: descriptors(mount) <= idle)
    requests = mount.status()["names"]["requests"]
    time.sleep(0.5)
    assert mount.status()["names"]["requests"] == requests  # nobody looks, nothing is asked


@pytest.mark.slow
def test_an_open_database_follows_and_is_not_parked(fleet: Fleet, mount: MountedReplica) -> None:
    with closing(sqlite3.connect(mount.mountpoint / "b.db", isolation_level=None)) as connection:
        connection.execute("BEGIN")
        assert connection.execute("SELECT x FROM t").fetchone()[0].startswith("b")
        before = connection.execute("SELECT x FROM t").fetchone()[0]
        for step in range(3):
            fleet.publish("b.db", f"b, step {step}")
            time.sleep(0.4)  # longer than until an unused database is parked
        assert connection.execute("SELECT x FROM t").fetchone()[0] == before
        connection.execute("COMMIT")
        until(lambda: connection.execute("SELECT x FROM t").fetchone()[0] == "b, step 2")
        assert about(mount, "b.db")["handles"] >= 2
        command = [litereplica_binary(), "status", str(mount.mountpoint)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert re.search(r"^in use +b\.db$", shown, re.MULTILINE), shown
    until(lambda: not about(mount, "b.db")["active"])


@pytest.mark.slow
def test_many_opens_at_once_are_one_activation(fleet: Fleet, mount: MountedReplica) -> None:
    until(lambda: active(mount) == 0)
    before = mount.status()["databases"]["activations"]
    with ThreadPoolExecutor(16) as pool:
        names = [NAMES[i % 4] for i in range(64)]
        assert len(set(pool.map(value, [mount.mountpoint / name for name in names]))) == 4
    assert mount.status()["databases"]["activations"] == before + 4


@pytest.mark.slow
def test_databases_are_joined_by_attach(fleet: Fleet, mount: MountedReplica) -> None:
    for number in range(9):
        fleet.publish(f"join/{number}.db", str(number))
    with closing(sqlite3.connect(mount.mountpoint / "a.db")) as connection:
        for number in range(9):
            connection.execute(f"ATTACH '{mount.mountpoint}/join/{number}.db' AS d{number}")
        every = " UNION ALL ".join(f"SELECT x FROM d{number}.t" for number in range(9))
        rows = connection.execute(f"SELECT sum(x), count(*) FROM ({every})").fetchone()
    assert rows == (36, 9)


@pytest.mark.slow
def test_databases_appear_go_and_are_replaced(fleet: Fleet, mount: MountedReplica) -> None:
    path = mount.mountpoint / "new/one.db"
    assert not path.exists()
    fleet.publish("new/one.db", "first")
    until(path.exists)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT x FROM t").fetchone() == ("first",)
        fleet.remove("new/one.db")
        assert os.listdir(mount.mountpoint / "new") == []  # noqa: PTH208 - which ends the trust in the name
        until(lambda: not path.exists())
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            value(path)
        assert connection.execute("SELECT x FROM t").fetchone() == ("first",)
        fleet.publish("new/one.db", "second", page_size=1024)
        until(path.exists)
        assert value(path) == "second"
        assert connection.execute("SELECT x FROM t").fetchone() == ("first",)
    until(lambda: active(mount) == 0)
    fleet.remove("new/one.db")
    fleet.publish("new/one.db", "third")  # another lineage under its name while it was parked
    assert value(path) == "third"
    fleet.remove("new/one.db")
    fleet.publish("new/one.db/a.db", "a directory now")
    until(lambda: active(mount) == 0)
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        value(path)
    until((path / "a.db").exists)
    assert value(path / "a.db") == "a directory now"


@pytest.mark.slow
def test_a_damaged_database_fails_alone(fleet: Fleet, mount: MountedReplica) -> None:
    publisher = fleet.publish("damaged.db", "x")
    file = next(publisher.replica.rglob("*.ltx"))
    sound = file.read_bytes()
    file.write_bytes(sound[:-40] + bytes(20) + sound[-20:])
    path = mount.mountpoint / "damaged.db"
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error") as caught:
            path.open("rb")
        assert caught.value.errno == errno.EIO
        assert value(mount.mountpoint / "eu/c.db") == "eu/c.db"
    assert "damaged.db" not in [each["path"] for each in mount.status()["active"]]
    file.write_bytes(sound)

    def is_readable() -> bool:
        try:
            return value(path) == "x"
        except sqlite3.OperationalError:
            return False

    until(is_readable)
    assert sum("damaged.db cannot be read" in line for line in mount.log.splitlines()) == 1


@pytest.mark.slow
def test_past_states_of_all_and_of_each(fleet: Fleet, mount: MountedReplica) -> None:
    fleet.publish("past/p.db", "p before")
    fleet.publish("past/q.db", "q before")
    time.sleep(0.01)
    then = time.time()
    time.sleep(0.01)
    fleet.publish("past/p.db", "p after")
    fleet.publish("past/q.db", "q after")
    until(lambda: time.time() > then + 0.1)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(then)) + f".{int(then * 1000) % 1000:03}Z"
    tree = mount.mountpoint / ".at" / moment
    assert sorted(os.listdir(tree / "past")) == ["p.db", "q.db"]  # noqa: PTH208
    assert [value(tree / "past" / name) for name in ("p.db", "q.db")] == ["p before", "q before"]
    each = mount.mountpoint / ".each/past/p.db/.at"
    assert value(each / "txid-0000000000000001/p.db") == "p before"
    assert value(mount.mountpoint / "past/p.db") == "p after"
    with closing(sqlite3.connect(tree / "past/p.db")) as connection:  # which keeps the database active
        assert connection.execute("SELECT x FROM t").fetchone() == ("p before",)
        time.sleep(0.6)
        assert about(mount, "past/p.db")["active"]
    until(lambda: active(mount) == 0)
    assert value(tree / "past/p.db") == "p before"
    assert not (mount.mountpoint / ".at/2001-01-01T00:00:00Z/past/p.db").exists()
    assert not (mount.mountpoint / ".at/txid-0000000000000001").exists()


@pytest.mark.slow
def test_include_and_exclude_choose_databases(fleet: Fleet, tmp_path: Path) -> None:
    options = ["--include", "eu/*.db", "--include", "eu/west/*", "--exclude", "d.*", "--all"]
    with MountedReplica(fleet.url, tmp_path, name="", options=options) as mount:
        assert os.listdir(mount.mountpoint) == ["eu"]  # noqa: PTH208
        assert sorted(os.listdir(mount.mountpoint / "eu")) == ["c.db", "west"]  # noqa: PTH208
        assert os.listdir(mount.mountpoint / "eu/west") == []  # noqa: PTH208
        assert value(mount.mountpoint / "eu/c.db") == "eu/c.db"
        assert not (mount.mountpoint / "a.db").exists()


@pytest.mark.slow
def test_what_is_mounted_is_told_by_the_store_unless_the_user_says(fleet: Fleet, tmp_path: Path) -> None:
    def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [litereplica_binary(), "mount", "--cache-dir", str(tmp_path / "cache"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    (tmp_path / "mnt").mkdir()
    path = str(tmp_path / "mnt")
    assert mount(fleet.url, path, "--one").returncode == 3
    assert mount(fleet.url, path, "--name", "x.db").returncode == 3
    assert "for many" in mount(fleet.url, path, "--all", "--name", "x.db").stderr
    assert "for many" in mount(fleet.url, path, "--include", "*", "--txid", f"{1:016x}").stderr
    assert "--one" in mount(fleet.url, path, "--include", "*", "--one").stderr
    assert mount(f"{fleet.url}/nothing", path).returncode == 3
    for url, shown in ((f"{fleet.url}/a.db", f"{path}/a.db"), (fleet.url, path)):
        done = mount(url, path)
        try:
            assert (done.returncode, done.stdout.strip()) == (0, shown), done.stderr
        finally:
            subprocess.run([litereplica_binary(), "umount", path], check=False)


@pytest.mark.slow
def test_a_killed_daemon_is_replaced_by_another(fleet: Fleet, tmp_path: Path) -> None:
    mount = MountedReplica(fleet.url, tmp_path, name="", options=["--park-after", PARK_AFTER])
    with ExitStack() as stack:
        mount.start()
        stack.callback(mount.__exit__, None, None, None)
        connections = [stack.enter_context(closing(sqlite3.connect(mount.mountpoint / name))) for name in NAMES]
        for connection in connections:
            connection.execute("SELECT x FROM t").fetchone()
        mount.kill()
        for connection in connections:
            connection.close()
        mount.start()
        assert [value(mount.mountpoint / name) for name in NAMES[2:]] == list(NAMES[2:])
