"""A mount is read-only for everybody, and shows what it should: names, sizes, times, the position."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from litereplica.fuse import mountpoint as mountpoints
from litereplica.fuse.names import AT_NAME, STATUS_NAME
from litereplica.testing.mounts import MountedReplica
from tests.helpers.json_language import require_one_language
from tests.helpers.publisher import Publisher

PAGE_SIZE = 4096
DIRECT_BYTES = 1 << 16
DIRECT_READS = 10
SETUP = "CREATE TABLE t (x); INSERT INTO t VALUES (1);"
FILES = ("app.db", "app.db-wal", "app.db-shm", "app.db-pos")


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    with Publisher(tmp_path_factory.mktemp("primary"), setup=SETUP, page_size=PAGE_SIZE) as publisher:
        yield publisher


@pytest.fixture(scope="module")
def mount(publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedReplica]:
    with MountedReplica(publisher.url, tmp_path_factory.mktemp("mount"), poll_interval="10ms") as mount:
        yield mount


def open_with(flags: int) -> Callable[[Path], object]:
    return lambda path: os.open(path, flags)


MUTATIONS: dict[str, Callable[[Path], object]] = {
    "open for writing": open_with(os.O_WRONLY),
    "open for reading and writing": open_with(os.O_RDWR),
    "open and truncate": open_with(os.O_RDONLY | os.O_TRUNC),
    "open to append": open_with(os.O_WRONLY | os.O_APPEND),
    "truncate": lambda path: os.truncate(path, 0),
    "grow": lambda path: os.truncate(path, 1 << 20),
    "unlink": os.unlink,
    "rename": lambda path: path.rename(path.with_name("other")),
    "rename over": lambda path: path.with_name("app.db-pos").rename(path),
    "link": lambda path: path.with_name("other").hardlink_to(path),
    "chmod": lambda path: path.chmod(0o666),
    "chown": lambda path: os.chown(path, 1, 1),
    "utimes": lambda path: os.utime(path, (1, 1)),
    "setxattr": lambda path: os.setxattr(path, "user.name", b"value"),
    "removexattr": lambda path: os.removexattr(path, "user.name"),
    "access for writing": lambda path: os.close(require_access(path)),
}


def require_access(path: Path) -> int:
    """Raise EROFS when access(2) does; it tells Python only that the answer is no."""
    if not os.access(path, os.W_OK):
        raise OSError(errno.EROFS, "access")
    return os.open(path, os.O_RDONLY)


@pytest.mark.parametrize("name", [*FILES, STATUS_NAME])
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_no_file_can_be_changed(mutation: str, name: str, mount: MountedReplica) -> None:
    if (mutation, name) == ("rename over", "app.db-pos"):
        name = "app.db"  # a file renamed to itself is no change
    with pytest.raises(OSError) as refused:
        MUTATIONS[mutation](mount.mountpoint / name)
    assert refused.value.errno == errno.EROFS


CREATIONS: dict[str, Callable[[Path], object]] = {
    "create": open_with(os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "mkdir": os.mkdir,
    "symlink": lambda path: path.symlink_to("app.db"),
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, 0o600),
}


@pytest.mark.parametrize("creation", CREATIONS)
@pytest.mark.parametrize("name", ["new", "app.db-journal"])
def test_nothing_can_be_created(creation: str, name: str, mount: MountedReplica) -> None:
    with pytest.raises(OSError) as refused:
        CREATIONS[creation](mount.mountpoint / name)
    assert refused.value.errno == errno.EROFS
    assert not (mount.mountpoint / name).exists()


@pytest.mark.parametrize("name", ["app.db", "app.db-wal", "app.db-shm"])
def test_a_descriptor_for_reading_cannot_write(name: str, mount: MountedReplica) -> None:
    fd = os.open(mount.mountpoint / name, os.O_RDONLY)
    try:
        for change in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.posix_fallocate(fd, 0, 1 << 20),
            lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
        ):
            with pytest.raises(OSError) as refused:
                change()
            assert refused.value.errno in (errno.EBADF, errno.EINVAL)
        with pytest.raises(OSError) as refused:
            os.fchmod(fd, 0o600)
        assert refused.value.errno == errno.EROFS
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (2)",
        "CREATE TABLE u (x)",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA user_version = 7",
        "VACUUM",
    ],
)
def test_sql_that_would_change_something_is_refused(sql: str, mount: MountedReplica) -> None:
    before = rows(mount.path)
    with contextlib.closing(sqlite3.connect(mount.path, isolation_level=None)) as connection:
        connection.execute("SELECT * FROM t").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute(sql).fetchall()
    assert rows(mount.path) == before


def test_the_journal_mode_stays(mount: MountedReplica) -> None:
    """SQLite wants an exclusive lock for it, which it cannot get on a descriptor for reading."""
    with contextlib.closing(sqlite3.connect(mount.path, isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert rows(mount.path)


def rows(path: Path) -> list[tuple[int]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM t").fetchall()


def test_the_directory_shows_four_files_of_the_user(mount: MountedReplica) -> None:
    listed = subprocess.run(["ls", "-la", mount.mountpoint], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    assert sorted(path.name for path in mount.mountpoint.iterdir()) == sorted(FILES)
    for path in mount.mountpoint.iterdir():
        info = path.stat()
        assert (oct(info.st_mode), info.st_uid, info.st_gid) == ("0o100444", os.getuid(), os.getgid())
    assert oct(mount.mountpoint.stat().st_mode) == "0o40555"
    assert STATUS_NAME not in listed.stdout


def test_the_status_file_is_json_that_is_new_each_time(publisher: Publisher, mount: MountedReplica) -> None:
    path = mount.mountpoint / STATUS_NAME
    before = json.loads(path.read_bytes())
    txid = publisher.transaction("UPDATE t SET x = x + 1")
    mount.wait_for(txid)
    after = json.loads(path.read_bytes())
    assert after["txid"] == f"{txid:016x}" > before["txid"]
    assert not [name for name in after["debug"]["replica"] if name.endswith("_at")]
    require_one_language({name: value for name, value in after.items() if name != "debug"})


def test_the_position_is_written_as_litefs_does(publisher: Publisher, mount: MountedReplica) -> None:
    mount.wait_for(publisher.txid)
    path = mount.mountpoint / "app.db-pos"
    text = path.read_text()
    assert re.fullmatch(r"[0-9a-f]{16}/[0-9a-f]{16}\n", text)
    assert text == f"{publisher.txid:016x}/{0:016x}\n"
    assert path.stat().st_size == len(text)


def test_the_file_system_tells_its_size(mount: MountedReplica) -> None:
    shown = subprocess.run(["df", "-B1", mount.mountpoint], capture_output=True, text=True, check=True).stdout
    assert str(mount.mountpoint) in shown
    info = os.statvfs(mount.mountpoint)
    assert (info.f_blocks - info.f_bfree) * info.f_frsize >= mount.path.stat().st_size


@pytest.mark.slow
def test_size_and_time_are_as_they_should_be_after_growth_and_after_a_shrink(
    publisher: Publisher, mount: MountedReplica
) -> None:
    """The size follows once the transactions have been moved into the file, which is when a reader needs it."""
    first = mount.path.stat()
    mount.wait_for(publisher.transaction(GROW))
    mount.wait_until(lambda: mount.path.stat().st_size == len(publisher.content), what="growth")
    assert len(publisher.content) > first.st_size
    publisher.connection.execute("DELETE FROM t WHERE rowid > 1")
    publisher.connection.execute("VACUUM")
    mount.wait_for(publisher.publish())
    mount.wait_until(lambda: mount.path.stat().st_size == len(publisher.content), what="shrink")
    assert mount.path.stat().st_size % PAGE_SIZE == 0
    assert mount.path.stat().st_mtime == first.st_mtime


GROW = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) "
    "INSERT INTO t SELECT zeroblob(3000) FROM n"
)


def test_the_mount_has_safe_options(mount: MountedReplica) -> None:
    line = next(
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mount.mountpoint} " in line
    )
    options = {*line.split()[5].split(","), *line.split()[-1].split(",")}
    assert {"nosuid", "nodev"} <= options
    assert "allow_other" not in options
    assert mountpoints.mount_at(mount.mountpoint) is not None


def read_direct(path: Path) -> bytes:
    """The content of a file by O_DIRECT, as `dd iflag=direct` reads it, up to `DIRECT_READS` reads."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    content = b""
    try:
        with mmap.mmap(-1, DIRECT_BYTES) as buffer:  # aligned, as O_DIRECT wants it
            for _ in range(DIRECT_READS):
                count = os.preadv(fd, [buffer], len(content))
                if count == 0:
                    break
                content += buffer[:count]
    finally:
        os.close(fd)
    return content


def test_direct_reads_end_with_the_file(publisher: Publisher, mount: MountedReplica) -> None:
    past = mount.path.parent / AT_NAME / f"txid-{publisher.txid:016x}" / mount.path.name
    for path in (mount.path, past):
        assert read_direct(path) == path.read_bytes()
        assert len(path.read_bytes()) == path.stat().st_size


def test_mount_is_not_full(mount: MountedReplica) -> None:
    info = os.statvfs(mount.path)
    assert 2 * info.f_bavail > info.f_blocks
    assert 2 * info.f_favail > info.f_files
