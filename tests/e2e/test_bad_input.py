"""What a user may get wrong, and what a store may hold: one clear line, the right exit code, nothing left behind."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from litereplica.format.decoder import decode_file
from litereplica.format.ltx import Header
from litereplica.fuse import mountpoint as mountpoints
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from tests.conftest import S3Bucket
from tests.format.builders import CraftedFile, block_frame, craft, make_header, make_page
from tests.helpers.namespaces import in_a_namespace
from tests.helpers.publisher import Publisher

pytestmark = pytest.mark.slow

REFUSED_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    error: str
    output: str
    seconds: float


def litereplica(
    *arguments: str | bytes | Path, env: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> Outcome:
    started = time.monotonic()
    done = subprocess.run(
        [*prefix, litereplica_binary(), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=REFUSED_DEADLINE_S,
        env=None if env is None else dict(env),
        check=False,
    )
    seconds = time.monotonic() - started
    return Outcome(done.returncode, done.stderr.decode(errors="replace"), done.stdout.decode(), seconds)


def check(outcome: Outcome, code: ExitCode, *facts: str) -> None:
    """One line that names the facts, the code, and no word on stdout."""
    assert outcome.code == code, outcome
    assert outcome.error.startswith("litereplica: error: "), outcome
    assert outcome.error.count("\n") == 1, outcome
    assert "Traceback" not in outcome.error
    for fact in facts:
        assert fact in outcome.error, outcome
    assert outcome.output == ""


class Place:
    """A mount point and a cache, empty."""

    def __init__(self, directory: Path) -> None:
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir()
        self.cache = directory / "cache"

    def mount(
        self,
        url: str | bytes,
        *options: str | bytes,
        env: Mapping[str, str] | None = None,
        name: str | bytes = "app.db",
    ) -> Outcome:
        arguments = ("--name", name, "--cache-dir", str(self.cache), *options)
        return litereplica("mount", url, str(self.mountpoint), *arguments, env=env)

    def is_mounted(self) -> bool:
        return mountpoints.mount_at(mountpoints.absolute(self.mountpoint)) is not None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    if place.is_mounted():
        litereplica("umount", place.mountpoint)
        pytest.fail("something was mounted")


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    with Publisher(tmp_path / "primary", setup="CREATE TABLE t (x); INSERT INTO t VALUES (1);") as publisher:
        yield publisher


# --- the store ---------------------------------------------------------------------------------------


def test_an_empty_replica(place: Place, tmp_path: Path) -> None:
    (tmp_path / "replica").mkdir()
    check(place.mount(f"file://{tmp_path}/replica"), ExitCode.NOT_FOUND, "no LTX files")


def test_a_directory_that_does_not_exist(place: Place, tmp_path: Path) -> None:
    check(place.mount(f"file://{tmp_path}/nowhere"), ExitCode.NOT_FOUND, "no LTX files")
    assert not (tmp_path / "nowhere").exists()


def test_an_empty_bucket(place: Place, s3_bucket: S3Bucket) -> None:
    check(place.mount(s3_bucket.url), ExitCode.NOT_FOUND, "no LTX files")


def test_a_bucket_that_does_not_exist(place: Place, s3_bucket: S3Bucket) -> None:
    outcome = place.mount(s3_bucket.server.url("no-such-bucket", "app.db"))
    check(outcome, ExitCode.STORE, "no-such-bucket")
    assert outcome.seconds < 15


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(wrong: str, place: Place, s3_bucket: S3Bucket) -> None:
    env = s3_bucket.server.environment() | {wrong: "certainly-not-this"}
    outcome = place.mount(s3_bucket.url, env=env)
    check(outcome, ExitCode.STORE)
    assert s3_bucket.server.secret_key not in outcome.error
    assert "certainly-not-this" not in outcome.error


@pytest.mark.slow
def test_an_endpoint_that_refuses_connections(place: Place, s3_bucket: S3Bucket) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"s3://bucket/app.db?endpoint=http://127.0.0.1:{unused.getsockname()[1]}&region=us-east-1"
        outcome = place.mount(url, env=s3_bucket.server.environment())
    check(outcome, ExitCode.STORE)
    assert outcome.seconds < 30


@pytest.mark.parametrize(
    "url", ["/srv/replica", "s3://", "", "s3://bucket/app.db?unknown=1", "file:///a\nb,allow_other"]
)
def test_urls_that_are_none(url: str, place: Place) -> None:
    check(place.mount(url), ExitCode.USAGE)


# --- damaged and hostile files ---------------------------------------------------------------------


KEY = "ltx/0/0000000000000001-0000000000000001.ltx"


def put(root: Path, data: bytes, key: str = KEY) -> str:
    path = root / "replica" / key
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return f"file://{root}/replica"


def with_page(frame_pgno: int) -> Callable[[], bytes]:
    def build() -> bytes:
        file = craft()
        file.frames[1] = block_frame(frame_pgno, make_page(frame_pgno))
        return file.build()

    return build


def index_length(claimed: int) -> Callable[[], bytes]:
    def build() -> bytes:
        data = bytearray(craft().build())
        struct.pack_into(">Q", data, len(data) - 24, claimed % 2**64)
        return bytes(data)

    return build


def flipped(at: int) -> Callable[[], bytes]:
    def build() -> bytes:
        data = bytearray(craft().build())
        data[at] ^= 0x10
        return bytes(data)

    return build


def cut(to: int) -> Callable[[], bytes]:
    return lambda: craft().build()[:to]


def with_lock_page() -> bytes:
    """A file of one frame, whose page is the lock page of a database of 64 KiB pages."""
    pgno = 0x40000000 // 65536 + 1
    header = make_header(txids=(5, 5), page_size=65536, commit=pgno)
    file = CraftedFile(header=header.encode(), frames=[block_frame(pgno, make_page(pgno, 65536))])
    return file.build()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "no byte": lambda: b"",
    "a header alone": cut(100),
    "cut in the middle": cut(150),
    "no LTX at all": lambda: b"SQLite format 3\0" + bytes(500),
    "an index of 2^63 bytes": index_length(2**63),
    "an index longer than the file": index_length(1 << 20),
    "a page beyond the commit": with_page(99),
    "the lock page": with_lock_page,
    "a flipped bit in a page": flipped(115),
    "a flipped bit in the checksum": flipped(-3),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_fails_its_checks_is_named(kind: str, place: Place, tmp_path: Path) -> None:
    url = put(tmp_path, HOSTILE[kind]())
    check(place.mount(url), ExitCode.DAMAGED, KEY.rsplit("/", 1)[1].removesuffix(".ltx"))


def test_a_file_whose_header_contradicts_its_name(place: Place, tmp_path: Path) -> None:
    key = "ltx/9/0000000000000001-0000000000000007.ltx"
    check(place.mount(put(tmp_path, craft().build(), key)), ExitCode.DAMAGED, "0000000000000001-0000000000000007")


@pytest.mark.parametrize("at", [0, 6])
def test_a_damaged_frame_of_a_large_file_is_an_error_for_its_page_alone(at: int, tmp_path: Path) -> None:
    """A file that is read in ranges is not checked as a whole before its pages are used; each frame's head is: page
    number, flags, size. What is wrong inside a page may go unnoticed until the file has been read whole."""
    rows = 2000
    database = tmp_path / "big.db"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, value BLOB)")
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO t SELECT i, randomblob(3500) FROM n",
            (rows,),
        )
    content = database.read_bytes()
    pages = [(i // 4096 + 1, content[i : i + 4096]) for i in range(0, len(content), 4096)]
    header = Header(page_size=4096, commit=len(pages), min_txid=1, max_txid=1, timestamp_ms=1_700_000_000_000)
    data = bytearray(encode_file(header, pages))
    index = decode_file(bytes(data)).index
    data[int(index.offset[rows // 2]) + at] ^= 0x10
    expected = ["0000000000000001-0000000000000001"]
    with (
        MountedReplica(
            put(tmp_path, bytes(data)), tmp_path, options=["--no-hydrate"], expected_problems=expected
        ) as mount,
        contextlib.closing(sqlite3.connect(database)) as truth,
        contextlib.closing(sqlite3.connect(mount.path)) as connection,
    ):
        failed = []
        for number in range(rows // 2 - 20, rows // 2 + 20):
            query = ("SELECT value FROM t WHERE id = ?", (number,))
            try:
                assert connection.execute(*query).fetchone() == truth.execute(*query).fetchone()
            except sqlite3.DatabaseError as exc:  # what SQLite makes of EIO
                failed.append(str(exc))
        assert failed == ["database disk image is malformed"]
        assert "ERROR" in mount.log


# --- the mount point -------------------------------------------------------------------------------


def test_a_mount_point_that_is_not_empty(place: Place, publisher: Publisher) -> None:
    (place.mountpoint / "file").touch()
    check(place.mount(publisher.url), ExitCode.USAGE, "is not empty", str(place.mountpoint))


def test_a_mount_point_that_is_a_file(place: Place, publisher: Publisher) -> None:
    place.mountpoint.rmdir()
    place.mountpoint.touch()
    check(place.mount(publisher.url), ExitCode.USAGE, "is not a directory", str(place.mountpoint))


def test_a_mount_point_that_does_not_exist(place: Place, publisher: Publisher) -> None:
    place.mountpoint.rmdir()
    check(place.mount(publisher.url), ExitCode.USAGE, "does not exist", "mkdir")


def test_a_mount_point_whose_parent_does_not_exist(place: Place, publisher: Publisher, tmp_path: Path) -> None:
    place.mountpoint = tmp_path / "no" / "where"
    check(place.mount(publisher.url), ExitCode.USAGE, "does not exist")


def test_a_mount_point_that_is_in_use(publisher: Publisher, tmp_path: Path) -> None:
    with MountedReplica(publisher.url, tmp_path) as mount:
        outcome = litereplica("mount", publisher.url, mount.mountpoint, "--name", "b.db", "--cache-dir", mount.cache)
        check(outcome, ExitCode.USAGE, "already a mount point", "litereplica umount")
        assert mount.path.exists()


def test_a_mount_point_where_something_else_is_mounted(place: Place, publisher: Publisher) -> None:
    proc = Place.__new__(Place)
    proc.mountpoint, proc.cache = Path("/proc"), place.cache
    check(proc.mount(publisher.url), ExitCode.USAGE, "already a mount point", "proc")


def test_a_machine_without_dev_fuse(place: Place, publisher: Publisher) -> None:
    """In a mount namespace of its own, where /dev/fuse is hidden: the machine's is not touched."""
    script = 'mount -t tmpfs none /dev && exec "$@"'
    prefix = (*in_a_namespace(), "sh", "-c", script, "sh")
    outcome = litereplica("mount", publisher.url, place.mountpoint, "--name", "app.db", prefix=prefix)
    check(outcome, ExitCode.ENVIRONMENT, "/dev/fuse does not exist", "modprobe fuse")
    assert Path("/dev/fuse").exists()


def test_a_dev_fuse_that_cannot_be_opened(place: Place, publisher: Publisher) -> None:
    script = 'mount -t tmpfs -o nodev none /dev && mknod /dev/fuse c 10 229 && exec "$@"'
    prefix = (*in_a_namespace(), "sh", "-c", script, "sh")
    outcome = litereplica("mount", publisher.url, place.mountpoint, "--name", "app.db", prefix=prefix)
    check(outcome, ExitCode.ENVIRONMENT, "/dev/fuse cannot be opened", "Permission denied")


def test_a_cache_directory_that_cannot_be_made(place: Place, publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place.cache = tmp_path / "file" / "cache"
    check(place.mount(publisher.url), ExitCode.ENVIRONMENT, str(place.cache), "--cache-dir")


# --- names, options --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "..", "a/b", "x-wal", "x-pos", ".litereplica", "a\nb", "x" * 300, b"\xff.db"])
def test_names_that_no_database_can_have(name: str | bytes, place: Place, publisher: Publisher) -> None:
    check(place.mount(publisher.url, name=name), ExitCode.USAGE, "--name")


@pytest.mark.parametrize("name", ["ünï.db", "-a b,c'd\"e"])
def test_names_that_are_unusual(name: str, publisher: Publisher, tmp_path: Path) -> None:
    with (
        MountedReplica(publisher.url, tmp_path, name=name) as mount,
        contextlib.closing(sqlite3.connect(mount.path)) as connection,
    ):
        assert connection.execute("SELECT x FROM t").fetchall() == [(1,)]


@pytest.mark.parametrize("directory", ["with,allow_other", "with space\\and,suid,dev"])
def test_a_url_cannot_bring_mount_options(directory: str, tmp_path: Path) -> None:
    with (
        Publisher(tmp_path / directory, setup="CREATE TABLE t (x); INSERT INTO t VALUES (1);") as publisher,
        MountedReplica(publisher.url, tmp_path) as mount,
    ):
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        line = next(line for line in lines if f" {mount.mountpoint} " in line)
        options = {*line.split()[5].split(","), *line.split()[-1].split(",")}
        assert {"nosuid", "nodev"} <= options
        assert not {"allow_other", "suid", "dev"} & options
        with contextlib.closing(sqlite3.connect(mount.path)) as connection:
            assert connection.execute("SELECT x FROM t").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--poll-interval", "0s"),
        ("--poll-interval", "1"),
        ("--cache-size", "many"),
    ],
)
def test_durations_and_sizes_that_are_none(option: str, value: str, place: Place, publisher: Publisher) -> None:
    check(place.mount(publisher.url, option, value), ExitCode.USAGE, option)


# --- the other commands ----------------------------------------------------------------------------


def test_replicate_of_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "not.db"
    path.write_bytes(b"this is no database, and is long enough to be seen as none" * 20)
    outcome = litereplica("replicate", path, f"file://{tmp_path}/replica", "--once")
    check(outcome, ExitCode.USAGE, str(path))
    assert path.read_bytes().startswith(b"this is no database")
    assert not (tmp_path / "replica" / "ltx").exists()


def test_replicate_of_a_file_that_does_not_exist(tmp_path: Path) -> None:
    check(
        litereplica("replicate", tmp_path / "no.db", f"file://{tmp_path}/replica", "--once"),
        ExitCode.USAGE,
        f"{tmp_path}/no.db",
    )
    assert not (tmp_path / "no.db").exists()


def test_replicate_switches_a_rollback_database_to_wal_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
    outcome = litereplica("replicate", path, f"file://{tmp_path}/replica", "--once")
    assert outcome.code == ExitCode.OK
    assert "WAL" in outcome.error
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_restore_and_ltx_of_an_empty_replica(tmp_path: Path) -> None:
    (tmp_path / "replica").mkdir()
    url = f"file://{tmp_path}/replica"
    check(litereplica("restore", url, "-o", tmp_path / "out.db"), ExitCode.NOT_FOUND, "no LTX files")
    assert not (tmp_path / "out.db").exists()


def test_restore_of_a_damaged_replica(tmp_path: Path) -> None:
    url = put(tmp_path, flipped(115)())
    check(litereplica("restore", url, "-o", tmp_path / "out.db"), ExitCode.DAMAGED, "0000000000000001-0000000000000001")
    assert not (tmp_path / "out.db").exists()
