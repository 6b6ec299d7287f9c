"""Clients whose locks do not reach the mount, or that do not see its wal-index: they fail, and nobody else does."""

from __future__ import annotations

import os
import select
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from litereplica.testing.mounts import MountedReplica
from tests.helpers.publisher import Publisher

pytestmark = pytest.mark.slow

DEADLINE_S = 20.0
SETUP = """
CREATE TABLE t (id INTEGER PRIMARY KEY, value INT, pad BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
INSERT INTO t SELECT i, 0, randomblob(3000) FROM n;
"""
REFUSED = r"WARNING \S+ reads of .* fail: it has the database open without SQLite's locks"
STACKED = r"is mounted over this file system"

CLIENT = """
import os, sqlite3, sys
path = sys.argv[1]
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("PRAGMA cache_size=0")
def query():
    try:
        return connection.execute("SELECT count(*), sum(value), sum(length(pad)) FROM t").fetchone()[:2]
    except sqlite3.Error as exc:
        return exc
print(query(), flush=True)
for line in sys.stdin:
    if line == "close another\\n":
        os.close(os.open(path + "-shm", os.O_RDONLY))
    if line == "fork\\n" and os.fork():
        os._exit(0)
    print(query(), flush=True)
"""

RAW = """
import fcntl, mmap, os, sys
path = sys.argv[1]
names = sys.argv[2:]
opened = {name: os.open(path + name, os.O_RDONLY) for name in names}
direct = os.open(path, os.O_RDONLY | os.O_DIRECT) if "" in names else None
page = mmap.mmap(-1, 4096)
def read():
    try:
        return os.preadv(direct, [page], 0)
    except OSError as exc:
        return os.strerror(exc.errno)
print("open", flush=True)
for line in sys.stdin:
    if line == "lock\\n":
        fcntl.lockf(opened["-shm"], fcntl.LOCK_SH, 1, 128)
        shared = mmap.mmap(opened["-shm"], 32768, mmap.MAP_SHARED, mmap.PROT_READ)
    print(len(os.pread(opened["-shm"], 136, 0)) if direct is None else read(), flush=True)
"""


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    with Publisher(tmp_path / "primary", setup=SETUP) as publisher:
        yield publisher


@contextmanager
def mounted(publisher: Publisher, tmp_path: Path, *expected: str) -> Iterator[MountedReplica]:
    with MountedReplica(publisher.url, tmp_path, expected_problems=expected, options=["--no-hydrate"]) as mount:
        yield mount


class Process:
    """A process that prints a line at first, and one for each line that it is told."""

    def __init__(self, program: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.first = self._answer()

    def ask(self, question: str = "") -> str:
        assert self._process.stdin is not None
        print(question, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], DEADLINE_S)[0], "the client does not answer"
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # what was forked ends with it, too
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def stacked(command: list[object], place: Path) -> Iterator[Path]:
    place.mkdir()
    subprocess.run([*map(str, command), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def overlay(mount: MountedReplica, tmp_path: Path, *, writable: bool) -> Iterator[Path]:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={mount.mountpoint}:{tmp_path}/lower"
    if writable:
        layers += f",upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    with stacked(["mount", "-t", "overlay", "overlay", "-o", layers], tmp_path / "overlay") as place:
        yield place


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")


def change(publisher: Publisher, mount: MountedReplica) -> None:
    mount.wait_for(publisher.transaction("UPDATE t SET value = value + 1, pad = randomblob(3000) WHERE id % 5 = 0"))


def refused(mount: MountedReplica) -> list[str]:
    found: list[str] = mount.status()["clients_without_locks"]
    return found


def drop_cache(mount: MountedReplica) -> None:
    for suffix in ("", "-wal"):
        fd = os.open(f"{mount.path}{suffix}", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def require_right(mount: MountedReplica, publisher: Publisher) -> None:
    """A client with locks sees what the primary has."""
    with closing(sqlite3.connect(mount.path)) as connection:
        query = "SELECT count(*), sum(value) FROM t"
        assert connection.execute(query).fetchone() == publisher.connection.execute(query).fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# --- stacked file systems ------------------------------------------------------------------------------


@pytest.mark.parametrize("writable", [False, True])
def test_through_overlayfs_no_client_can_open_the_database(
    writable: bool, publisher: Publisher, tmp_path: Path
) -> None:
    needs_root()
    with mounted(publisher, tmp_path, STACKED) as mount, overlay(mount, tmp_path, writable=writable) as place:
        for _ in range(2):  # with an empty WAL, and with frames in it
            for suffix in ("", "?mode=ro"):
                with (
                    closing(sqlite3.connect(f"file:{place}/app.db{suffix}", uri=True)) as client,
                    pytest.raises(sqlite3.OperationalError, match="unable to open database file"),
                ):
                    client.execute("SELECT count(*) FROM t")
            change(publisher, mount)
        require_right(mount, publisher)
        mount.wait_until(lambda: mount.status()["stacked_on"] == [f"{place} (overlay)"])


@pytest.mark.skipif(shutil.which("bindfs") is None, reason="bindfs is not installed")
def test_through_bindfs_no_client_can_open_the_database(publisher: Publisher, tmp_path: Path) -> None:
    needs_root()
    with mounted(publisher, tmp_path, STACKED) as mount:
        change(publisher, mount)
        with (
            stacked(["bindfs", mount.mountpoint], tmp_path / "bindfs") as place,
            closing(sqlite3.connect(place / "app.db")) as client,
            pytest.raises(sqlite3.OperationalError, match="unable to open database file"),
        ):
            client.execute("SELECT count(*) FROM t")


@pytest.mark.skipif(shutil.which("bindfs") is None, reason="bindfs is not installed")
def test_file_system_that_passes_locks_on_and_copies_the_wal_index_is_found(
    publisher: Publisher, tmp_path: Path
) -> None:
    needs_root()
    bindfs = ["bindfs", "--enable-lock-forwarding", "--multithreaded"]
    with mounted(publisher, tmp_path, STACKED, REFUSED) as mount:
        with (
            stacked([*bindfs, mount.mountpoint], tmp_path / "bindfs") as place,
            closing(sqlite3.connect(place / "app.db")) as client,
        ):
            client.execute("SELECT count(*) FROM t").fetchone()
            mount.wait_until(lambda: refused(mount))
            with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):
                sqlite3.connect(place / "app.db")
        require_right(mount, publisher)


def test_a_copy_of_the_files_of_a_mount_does_not_open(publisher: Publisher, tmp_path: Path) -> None:
    with mounted(publisher, tmp_path) as mount:
        change(publisher, mount)
        shutil.copytree(mount.mountpoint, tmp_path / "copy", copy_function=shutil.copyfile)
        with (
            closing(sqlite3.connect(tmp_path / "copy" / "app.db")) as copy,
            pytest.raises(sqlite3.OperationalError, match="unable to open database file"),
        ):
            copy.execute("SELECT count(*) FROM t")


# --- clients without locks -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close another", "fork"])
def test_client_that_has_lost_its_locks_reads_no_more(how: str, publisher: Publisher, tmp_path: Path) -> None:
    """SQLite's locks go with any descriptor of the file that the process closes, and are not those of its children."""
    with mounted(publisher, tmp_path, REFUSED) as mount:
        with Process(CLIENT, mount.path) as client, Process(CLIENT, mount.path) as other:
            assert client.first == "(500, 0)"
            client.ask(how)
            mount.wait_until(lambda: refused(mount))
            change(publisher, mount)
            drop_cache(mount)
            assert client.ask() == "disk I/O error"
            assert other.ask() == "(500, 100)"
        mount.wait_until(lambda: not refused(mount))
        require_right(mount, publisher)


def test_engine_without_locks_reads_no_more(publisher: Publisher, tmp_path: Path) -> None:
    """As Turso's engine: it has database and WAL open, not `-shm`, and no locks."""
    with mounted(publisher, tmp_path, REFUSED) as mount, Process(RAW, mount.path, "", "-wal") as engine:
        assert engine.ask() == "4096"
        mount.wait_until(lambda: refused(mount) == [f"{sys.executable.rpartition('/')[2]} (pid {engine.pid})"])
        assert engine.ask() == "No locks available"


def test_client_of_a_bind_mount_of_the_single_file_reads_no_more(publisher: Publisher, tmp_path: Path) -> None:
    """As `docker run -v /mnt/live/app.db:/data/app.db`: it has neither WAL nor wal-index, and makes its own."""
    needs_root()
    single = tmp_path / "single"
    single.touch()
    with mounted(publisher, tmp_path, REFUSED) as mount:
        subprocess.run(["mount", "--bind", mount.path, single], check=True)
        try:
            with Process(CLIENT, single) as client:
                assert client.first == "(500, 0)"
                mount.wait_until(lambda: refused(mount))
                drop_cache(mount)
                assert client.ask() == "disk I/O error"
        finally:
            subprocess.run(["umount", "-l", single], check=True)
        require_right(mount, publisher)


def test_client_that_is_stopped_before_it_locks_reads_once_it_has_locked(publisher: Publisher, tmp_path: Path) -> None:
    with mounted(publisher, tmp_path, REFUSED) as mount, Process(RAW, mount.path, "", "-shm") as client:
        mount.wait_until(lambda: refused(mount))
        assert client.ask() == "No locks available"
        assert client.ask("lock") == "4096"
        mount.wait_until(lambda: not refused(mount))


def test_who_only_copies_files_is_not_refused(publisher: Publisher, tmp_path: Path) -> None:
    """One file at a time, as cat, cp, tar and rsync open them, however long that takes."""
    with mounted(publisher, tmp_path, REFUSED) as mount:
        with Process(RAW, mount.path, "-shm") as shm, Process(RAW, mount.path, "") as database:
            with Process(RAW, mount.path, "", "-wal"):  # that is noticed: the others have been looked at as well
                mount.wait_until(lambda: refused(mount))
                assert len(refused(mount)) == 1
            assert shm.ask() == "136"
            assert database.ask() == "4096"
        if shutil.which("rsync"):
            subprocess.run(["rsync", "-a", f"{mount.mountpoint}/", f"{tmp_path}/copy/"], check=True)
        require_right(mount, publisher)
