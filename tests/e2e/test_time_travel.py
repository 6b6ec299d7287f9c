"""Past states as paths: `.at/txid-…/app.db` and `.at/<time>/app.db` in a mount, and mounts of one past state."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from litereplica.format.names import Layout, file_key
from litereplica.fuse import mountpoint as mountpoints
from litereplica.fuse.at_tree import LISTED_POINTS
from litereplica.fuse.names import AT_NAME
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from litereplica.times import format_time
from tests.helpers.publisher import Publisher
from tests.helpers.thousand import LongHistory, digest

FILLING = 300
SETUP = f"""
CREATE TABLE t (id INTEGER PRIMARY KEY, value);
INSERT INTO t VALUES (1, 'at 1');
CREATE TABLE filler (id INTEGER PRIMARY KEY, body);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {FILLING})
INSERT INTO filler SELECT i, randomblob(3000) FROM n;
"""
TXIDS = 40
APART_MS = 3
"""Least time between two transactions."""


@dataclass
class Scene:
    """A primary of which every state is remembered, and a mount of its replica."""

    publisher: Publisher
    images: dict[int, bytes]
    times_ms: dict[int, int]
    mount: MountedReplica

    @property
    def at(self) -> Path:
        return self.mount.mountpoint / AT_NAME

    def path(self, txid: int) -> Path:
        return self.at / f"txid-{txid:016x}" / "app.db"


def commit(publisher: Publisher, txid: int) -> None:
    time.sleep(APART_MS / 1000)
    assert (
        publisher.transaction(f"INSERT INTO t VALUES ({txid}, 'at {txid}')", "UPDATE t SET value = 'x' WHERE id = 1")
        == txid
    )


def timestamp_ms(publisher: Publisher, txid: int) -> int:
    return int((publisher.replica / file_key(Layout.FILE, 0, txid, txid)).read_bytes()[32:40].hex(), 16)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Publisher(tmp_path_factory.mktemp("primary"), setup=SETUP) as publisher:
        images = {1: publisher.content}
        for txid in range(2, TXIDS + 1):
            commit(publisher, txid)
            images[txid] = publisher.content
        times_ms = {txid: timestamp_ms(publisher, txid) for txid in images}
        with MountedReplica(publisher.url, tmp_path_factory.mktemp("mount")) as mount:
            yield Scene(publisher, images, times_ms, mount)


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])


# --- what is there -----------------------------------------------------------------------------


def test_a_past_state_is_a_database_in_rollback_mode_that_any_copy_equals(scene: Scene, tmp_path: Path) -> None:
    for txid in (1, 7, 23, TXIDS):
        path = scene.path(txid)
        assert rows(path) == txid
        copy = tmp_path / f"{txid}.db"
        subprocess.run(["cp", path, copy], check=True)
        assert digest(copy.read_bytes()) == digest(scene.images[txid])
        assert copy.read_bytes()[18:20] == b"\1\1"
        assert rows(copy) == txid
        copy.chmod(0o600)
        with closing(sqlite3.connect(copy)) as connection, connection:
            connection.execute("INSERT INTO t VALUES (1000, 'a copy can be changed')")


def test_any_offset_and_size_is_read_right(scene: Scene) -> None:
    expected = scene.images[9][:18] + b"\1\1" + scene.images[9][20:]
    with scene.path(9).open("rb", buffering=0) as file:
        for offset, size in ((0, 1), (17, 4), (100, 10_000), (4095, 2), (4096, 4096), (123_457, 300_001)):
            assert os.pread(file.fileno(), size, offset) == expected[offset : offset + size]
        end = len(expected)
        assert os.pread(file.fileno(), 100, end - 3) == expected[-3:]
        assert os.pread(file.fileno(), 100, end) == b""


def test_the_live_table_is_joined_with_its_past(scene: Scene) -> None:
    with closing(sqlite3.connect(scene.mount.path)) as connection:
        connection.execute("ATTACH ? AS past", (str(scene.path(30)),))
        new = connection.execute(
            "SELECT now.id FROM t AS now LEFT JOIN past.t AS was ON was.id = now.id WHERE was.id IS NULL ORDER BY 1"
        ).fetchall()
        assert new == [(txid,) for txid in range(31, TXIDS + 1)]


def test_several_are_joined_with_each_other(scene: Scene) -> None:
    with closing(sqlite3.connect(scene.path(5))) as connection:
        for txid in (10, 20):
            connection.execute(f"ATTACH ? AS at{txid}", (str(scene.path(txid)),))
        counts = "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM at10.t), (SELECT count(*) FROM at20.t)"
        assert connection.execute(counts).fetchone() == (5, 10, 20)


def test_a_time_names_the_newest_state_before_it(scene: Scene) -> None:
    for txid in (1, 12, TXIDS):
        after = datetime.fromtimestamp((scene.times_ms[txid] + 1) / 1000, UTC)
        names = [
            after.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            after.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat(timespec="microseconds"),
        ]
        for name in names:
            assert rows(scene.at / name / "app.db") == txid, name
    exactly = datetime.fromtimestamp(scene.times_ms[12] / 1000, UTC).isoformat(timespec="milliseconds")
    assert rows(scene.at / exactly / "app.db") == 11


def test_names_of_one_state_lead_to_one_file(scene: Scene) -> None:
    name = datetime.fromtimestamp((scene.times_ms[15] + 1) / 1000, UTC).isoformat(timespec="milliseconds")
    by_time, by_txid = scene.at / name / "app.db", scene.path(15)
    assert by_time.stat().st_ino == by_txid.stat().st_ino
    assert by_time.parent.stat().st_ino != by_txid.parent.stat().st_ino


@pytest.mark.parametrize(
    "name",
    [
        "txid-0000000000000000",
        "txid-0000000000001000",
        "txid-000000000000000A",
        "txid-a",
        "1970-01-01T00:00:00Z",
        "2026-11-22",
        "2026-11-22T10:00:00",
        "2026-13-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "yesterday",
        "app.db",
        ".git",
        "\N{BLACK HEART SUIT}",
    ],
)
def test_whatever_is_no_point_is_not_there(name: str, scene: Scene) -> None:
    with pytest.raises(FileNotFoundError):
        (scene.at / name).stat()


def test_a_time_to_come_is_not_there_until_it_has_come(scene: Scene) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    path = scene.at / soon.isoformat(timespec="milliseconds")
    assert not path.exists()
    scene.mount.wait_until(path.exists, what="the time")
    assert datetime.now(UTC) >= soon
    assert rows(path / "app.db") == TXIDS


# --- how it looks ------------------------------------------------------------------------------


def test_the_newest_points_are_listed_and_a_listed_name_leads_to_its_point(scene: Scene) -> None:
    names = sorted(path.name for path in scene.at.iterdir())
    assert names == [f"txid-{txid:016x}" for txid in range(TXIDS - LISTED_POINTS + 1, TXIDS + 1)]
    for txid in (TXIDS - LISTED_POINTS + 1, TXIDS):
        assert rows(scene.path(txid)) == txid
        assert scene.path(txid).parent.stat().st_mtime_ns == scene.times_ms[txid] * 1_000_000


def test_the_times_of_files_are_those_of_their_transactions(scene: Scene) -> None:
    for txid in (1, 20):
        info = scene.path(txid).stat()
        assert info.st_mtime_ns == scene.times_ms[txid] * 1_000_000
        assert (oct(info.st_mode), info.st_size, info.st_nlink) == ("0o100444", len(scene.images[txid]), 1)
    assert oct(scene.path(1).parent.stat().st_mode) == oct(scene.at.stat().st_mode) == "0o40555"
    assert [path.name for path in scene.path(1).parent.iterdir()] == ["app.db"]
    shown = subprocess.run(["ls", "-la", scene.path(20).parent], capture_output=True, text=True, check=True)
    assert "app.db" in shown.stdout


def test_who_goes_through_the_mount_does_not_get_into_the_past(scene: Scene) -> None:
    assert AT_NAME not in {path.name for path in scene.mount.mountpoint.iterdir()}
    for command in (["find", "."], ["ls", "-laR", "."], ["du", "-a", "."]):
        done = subprocess.run(
            command, cwd=scene.mount.mountpoint, capture_output=True, text=True, timeout=20, check=True
        )
        assert "txid-" not in done.stdout
    done = subprocess.run(
        ["find", AT_NAME, "-name", "app.db", "-size", "+1"],
        cwd=scene.mount.mountpoint,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert len(done.stdout.splitlines()) == LISTED_POINTS


MUTATIONS: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda path: os.open(path, os.O_RDWR),
    "truncate": lambda path: os.truncate(path, 0),
    "unlink": os.unlink,
    "rename": lambda path: path.rename(path.with_name("other")),
    "chmod": lambda path: path.chmod(0o666),
    "utimes": lambda path: os.utime(path, (1, 1)),
    "rmdir": lambda path: path.parent.rmdir(),
    "create beside": lambda path: path.with_name("app.db-journal").touch(),
    "create a point": lambda path: (path.parents[1] / "txid-0000000000009999").mkdir(),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_past_cannot_be_changed(mutation: str, scene: Scene) -> None:
    with pytest.raises(OSError) as refused:
        MUTATIONS[mutation](scene.path(10))
    assert refused.value.errno == errno.EROFS


def test_sql_that_would_change_the_past_is_refused(scene: Scene) -> None:
    with closing(sqlite3.connect(scene.path(10), isolation_level=None)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        for sql in ("DELETE FROM t", "CREATE TABLE u (x)", "PRAGMA user_version = 1"):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                connection.execute(sql)


def test_clients_lock_a_past_state_as_any_file(scene: Scene) -> None:
    with closing(sqlite3.connect(scene.path(10), isolation_level=None)) as first:
        first.execute("BEGIN")
        assert first.execute("SELECT count(*) FROM t").fetchone() == (10,)
        script = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM t').fetchone())"
        command = [sys.executable, "-c", script, str(scene.path(10))]
        other = subprocess.run(command, capture_output=True, text=True, check=True)
        assert other.stdout == "(10,)\n"
        first.execute("COMMIT")


def test_umount_with_a_past_state_open_says_who_and_the_mount_stays(scene: Scene) -> None:
    with scene.path(8).open("rb") as file:
        done = subprocess.run(
            [litereplica_binary(), "umount", scene.mount.mountpoint], capture_output=True, text=True, check=False
        )
        assert done.returncode == ExitCode.ENVIRONMENT
        assert str(os.getpid()) in done.stderr
        assert file.read(6) == b"SQLite"
    assert rows(scene.mount.path) == TXIDS


# --- what it costs -----------------------------------------------------------------------------


def page_requests(mount: MountedReplica) -> int:
    ledger = mount.status()["replica"]["ledger"]
    return sum(each["requests"] for purpose in ("page", "ahead") for each in ledger[purpose]["by_operation"].values())


def test_pages_that_the_live_database_has_are_not_fetched_again(scene: Scene) -> None:
    def hydration() -> object:
        return scene.mount.status()["replica"]["hydration"]["state"]

    scene.mount.wait_until(lambda: hydration() == "complete", what="hydration")
    before = page_requests(scene.mount)
    with closing(sqlite3.connect(scene.path(33))) as connection:
        assert connection.execute("SELECT count(*), sum(length(body)) FROM filler").fetchone() == (
            FILLING,
            FILLING * 3000,
        )
    assert page_requests(scene.mount) - before <= 1, "the pages of `t` have changed since"


def test_a_past_state_is_read_by_many_at_once_while_transactions_are_applied(scene: Scene) -> None:
    errors: list[BaseException] = []

    def read(txid: int) -> None:
        try:
            for _ in range(5):
                assert rows(scene.path(txid)) == txid
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=read, args=(txid,)) for txid in (3, 3, 17, 29)]
    for thread in threads:
        thread.start()
    with closing(sqlite3.connect(scene.mount.path)) as live:
        for _ in range(20):
            assert live.execute("SELECT count(*) FROM t").fetchone() == (TXIDS,)
    for thread in threads:
        thread.join()
    assert errors == []


# --- every point of a long history ---------------------------------------------------------------


@pytest.mark.slow
def test_every_point_of_a_thousand_is_byte_for_byte_what_the_primary_was(tmp_path: Path) -> None:
    history = LongHistory(tmp_path / "primary", txids=1000)
    try:
        with MountedReplica(history.url, tmp_path / "mount") as mount:
            for txid, expected in history.digests.items():
                path = mount.mountpoint / AT_NAME / f"txid-{txid:016x}" / "app.db"
                assert digest(path.read_bytes()) == expected, txid
                with closing(sqlite3.connect(path)) as connection:
                    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), txid
            assert len(history.digests) == 1000
            assert len(mount.status()["past"]) < 20
    finally:
        history.close()


@pytest.mark.parametrize("page_size", [512, 65536])
def test_every_page_size_is_read(page_size: int, tmp_path: Path) -> None:
    history = LongHistory(tmp_path / "primary", txids=30, page_size=page_size, auto_vacuum=1)
    try:
        with MountedReplica(history.url, tmp_path / "mount", options=["--no-hydrate"]) as mount:
            for txid in range(1, 31, 3):
                path = mount.mountpoint / AT_NAME / f"txid-{txid:016x}" / "app.db"
                assert digest(path.read_bytes()) == history.digests[txid]
    finally:
        history.close()


# --- mounts of one past state --------------------------------------------------------------------


def test_a_mount_by_txid_or_time_is_that_state_for_good(scene: Scene, tmp_path: Path) -> None:
    after = datetime.fromtimestamp((scene.times_ms[25] + 1) / 1000, UTC).isoformat(timespec="milliseconds")
    for i, option in enumerate((["--txid", f"{25:016x}"], ["--timestamp", after])):
        with MountedReplica(scene.publisher.url, tmp_path / str(i), options=option) as mount:
            assert sorted(path.name for path in mount.mountpoint.iterdir()) == ["app.db", "app.db-pos"]
            assert digest(mount.path.read_bytes()) == digest(scene.images[25])
            assert rows(mount.path) == 25
            assert mount.pos().txid == 25
            assert mount.path.stat().st_mtime_ns == scene.times_ms[25] * 1_000_000
            status = mount.status()
            shown = (status["txid"], status["timestamp"], status["size_bytes"], status["error"])
            assert shown == (f"{25:016x}", format_time(scene.times_ms[25]), len(scene.images[25]), None)
            assert status["replica"]["polls"] == 0
            assert not (mount.mountpoint / AT_NAME).exists()
            assert not mount.path.with_name("app.db-wal").exists()
            with pytest.raises(OSError) as refused:
                mount.path.write_bytes(b"")
            assert refused.value.errno == errno.EROFS
            copy = tmp_path / f"copy{i}.db"
            shutil.copyfile(mount.path, copy)
            assert rows(copy) == 25


def test_a_mount_of_a_past_state_stands_beside_the_live_one(scene: Scene, tmp_path: Path) -> None:
    """With the same `--cache-dir`, as the command has it by default."""
    command = [
        litereplica_binary(),
        "mount",
        scene.publisher.url,
        str(tmp_path),
        "--txid",
        f"{4:016x}",
        "--name",
        "app.db",
    ]
    done = subprocess.run([*command, "--cache-dir", scene.mount.cache], capture_output=True, text=True, check=False)
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert rows(tmp_path / "app.db") == 4
        assert rows(scene.mount.path) == TXIDS
        (log,) = scene.mount.cache.glob("*-past/mount.log")
        assert "WARNING" not in log.read_text()
    finally:
        subprocess.run([litereplica_binary(), "umount", tmp_path], check=False)
    assert mountpoints.mount_at(tmp_path) is None


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--txid", "0000000000001000"], "cannot be restored to TXID 0000000000001000"),
        (["--timestamp", "2001-01-01T00:00:00Z"], "no point before 2001-01-01"),
    ],
)
def test_a_mount_of_no_point_says_so(option: list[str], says: str, scene: Scene, tmp_path: Path) -> None:
    command = [litereplica_binary(), "mount", scene.publisher.url, str(tmp_path), *option]
    done = subprocess.run(
        [*command, "--cache-dir", tmp_path.with_name("cache")], capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.NOT_FOUND
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert mountpoints.mount_at(tmp_path) is None


# --- life and death ------------------------------------------------------------------------------


@dataclass
class Small:
    """A mount that keeps no page and closes unused states at once, in a process of the test's own."""

    publisher: Publisher
    mountpoint: Path
    log: Path

    def path(self, txid: int) -> Path:
        return self.mountpoint / AT_NAME / f"txid-{txid:016x}" / "app.db"

    def open_txids(self) -> set[int]:
        import json

        status = json.loads((self.mountpoint / ".litereplica").read_bytes())
        return {past["txid"] for past in status["debug"]["past"]}

    def delete(self, *txids: int) -> None:
        for txid in txids:
            (self.publisher.replica / file_key(Layout.FILE, 0, txid, txid)).unlink()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    path = tmp_path / "mnt"
    path.mkdir()
    with (
        Publisher(tmp_path / "primary", setup=SETUP) as publisher,
        small_mount(publisher, path, tmp_path / "log") as small,
    ):
        yield small


@contextmanager
def small_mount(publisher: Publisher, path: Path, log: Path, idle_s: float = 0.4) -> Iterator[Small]:
    for txid in range(2, 11):
        commit(publisher, txid)
    command = [sys.executable, "-m", "tests.e2e.past_mount", publisher.url, str(path), str(idle_s)]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "ready\n", log.read_text()
        yield Small(publisher, path, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        if mountpoints.mount_at(path) is not None:
            mountpoints.unmount(path, lazy=True)


def wait_until(condition: Callable[[], object], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.02)


def test_states_that_nobody_uses_are_closed_and_open_again_when_they_are_wanted(small: Small) -> None:
    with small.path(3).open("rb") as kept:
        inode = os.fstat(kept.fileno()).st_ino
        assert rows(small.path(5)) == 5
        assert small.open_txids() >= {3, 5}
        wait_until(lambda: small.open_txids() == {3})
        assert os.pread(kept.fileno(), 6, 0) == b"SQLite"
    wait_until(lambda: small.open_txids() == set())
    assert rows(small.path(3)) == 3
    assert small.path(3).stat().st_ino == inode, "the kernel has known it all the time"
    assert small.open_txids() == {3}


def test_a_state_is_a_place_to_stay(small: Small) -> None:
    """A shell that sits in its directory for long, and then asks it something."""
    script = (
        "import os, sqlite3, sys; os.chdir(sys.argv[1]); print('there', flush=True); sys.stdin.readline()\n"
        "print(os.getcwd() == sys.argv[1], sqlite3.connect('app.db').execute('SELECT count(*) FROM t').fetchone())"
    )
    shell = subprocess.Popen(
        [sys.executable, "-c", script, small.path(6).parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert shell.stdout is not None
    assert shell.stdout.readline() == "there\n"
    assert rows(small.path(6)) == 6
    wait_until(lambda: small.open_txids() == set())
    out, _ = shell.communicate("\n", timeout=20)
    assert out == "True (6,)\n"


@pytest.mark.slow
def test_names_that_nobody_uses_are_forgotten_when_there_are_many(small: Small) -> None:
    inode = small.path(2).stat().st_ino
    for txid in range(3, 11):
        assert rows(small.path(txid)) == txid

    def is_forgotten() -> bool:
        time.sleep(0.2)
        return small.path(2).stat().st_ino != inode

    wait_until(lambda: small.open_txids() == set())
    wait_until(is_forgotten)
    assert rows(small.path(2)) == 2


@pytest.mark.slow
def test_files_that_retention_deletes_under_an_open_state(small: Small) -> None:
    """Others with its pages take their place; when there are none, reads fail, and it is not there any more."""
    with closing(sqlite3.connect(small.path(5))) as reader:
        assert reader.execute("SELECT value FROM t WHERE id = 5").fetchone() == ("at 5",)
        history = small.publisher.replica / file_key(Layout.FILE, 9, 1, 5)
        history.parent.mkdir(exist_ok=True)
        make_snapshot(small.publisher, history, 5)
        small.delete(1, 2, 3, 4, 5)
        assert reader.execute("SELECT count(*), sum(length(body)) FROM filler").fetchone() == (FILLING, FILLING * 3000)
        assert "is read from other files now" in small.log.read_text()
        held = os.open(small.path(5), os.O_RDONLY)
        try:
            newer = small.publisher.replica / file_key(Layout.FILE, 9, 1, 9)
            make_snapshot(small.publisher, newer, 9)
            history.unlink()
            small.delete(6, 7, 8, 9)
            os.posix_fadvise(held, 0, 0, os.POSIX_FADV_DONTNEED)  # the kernel shall have nothing of it
            for _ in range(3):
                with pytest.raises(OSError) as failed:
                    os.pread(held, 500_000, 500_000)
                assert failed.value.errno == errno.EIO
            wait_until(lambda: not small.path(5).exists())
        finally:
            os.close(held)
    errors = [
        line for line in small.log.read_text().splitlines() if line.startswith("ERROR") and "0000000000000005" in line
    ]
    assert len([line for line in errors if "cannot be read any more" in line]) == 1
    assert rows(small.path(9)) == 9


def make_snapshot(publisher: Publisher, path: Path, txid: int) -> None:
    """The file of everything up to a TXID, as compaction makes it."""
    from litereplica.format.compactor import FramesInput, compact
    from litereplica.format.decoder import decode_file
    from litereplica.testing.ltx_files import compaction_input

    inputs: list[FramesInput] = []
    for each in range(1, txid + 1):
        source = publisher.replica / file_key(Layout.FILE, 0, each, each)
        if not source.exists():
            source, inputs = publisher.replica / file_key(Layout.FILE, 9, 1, each), []
        if source.exists():
            file = decode_file(source.read_bytes())
            inputs.append(compaction_input(file.header, zip(file.index.pgno.tolist(), file.pages, strict=True)))
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(compact(inputs)))
    temporary.rename(path)


def test_a_limit_to_staleness_does_not_concern_the_past(tmp_path: Path) -> None:
    problems = ["polling fails", "reads fail: no news", "open: no news", "read: no news", "stalled", "no progress"]
    with (
        Publisher(tmp_path, setup=SETUP) as publisher,
        MountedReplica(
            publisher.url, tmp_path / "mount", options=["--max-staleness", "500ms"], expected_problems=problems
        ) as mount,
    ):
        commit(publisher, 2)
        mount.wait_for(2)
        past = mount.mountpoint / AT_NAME / f"txid-{1:016x}" / "app.db"
        assert rows(past) == 1
        (publisher.replica / file_key(Layout.FILE, 0, 3, 3)).write_bytes(b"garbage")
        mount.wait_until(lambda: "reads fail" in mount.log, what="the limit")
        assert rows(past) == 1
