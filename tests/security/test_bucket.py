"""Whoever can write to the bucket decides what readers see, and no more: no memory, no time, no files of the user."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from litereplica.format.names import Layout, file_key
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.mounts import MountedReplica
from tests.helpers.publisher import Publisher
from tests.security.hostile_files import NO_OBJECTS, REFUSED, header, place
from tests.security.limited import RESIDENT_KIB, limited, require_orderly, resident_kib

SETUP = "CREATE TABLE t(x); INSERT INTO t VALUES (1)"

ANY_PROBLEM = ["polling fails", "the first poll failed", "no progress since", "is not used", "read: "]

MOST_TXID = 2**64 - 1


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    with Publisher(tmp_path, setup=SETUP) as made:
        made.transaction("INSERT INTO t VALUES (2)")
        yield made


def rows(mount: MountedReplica) -> list[int]:
    with closing(sqlite3.connect(mount.path)) as client:
        return [x for (x,) in client.execute("SELECT x FROM t ORDER BY x")]


def mounted(publisher: Publisher, tmp_path: Path) -> MountedReplica:
    return MountedReplica(publisher.url, tmp_path / "mount", expected_problems=ANY_PROBLEM)


# --- a file that is refused is avoided and reported; the old data is served on ---------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("planted", [*REFUSED, *NO_OBJECTS])
def test_running_mount_serves_on_beside_a_planted_file_and_continues_when_it_is_replaced(
    publisher: Publisher, tmp_path: Path, planted: str
) -> None:
    plant = {**REFUSED, **NO_OBJECTS}[planted]
    with mounted(publisher, tmp_path) as mount:
        assert rows(mount) == [1, 2]
        path = plant(publisher)
        polls = mount.status()["replica"]["polls"]
        mount.wait_until(lambda: mount.status()["replica"]["polls"] >= polls + 3, what="three polls")
        assert rows(mount) == [1, 2]
        assert (path.name in mount.log) == (planted != "fifo"), "reported by its key; a pipe is no object"
        path.unlink()
        mount.wait_for(publisher.transaction("INSERT INTO t VALUES (3)"))
        assert rows(mount) == [1, 2, 3]
        assert resident_kib(mount.pid) < RESIDENT_KIB


@pytest.mark.slow
@pytest.mark.parametrize("planted", [*REFUSED, *NO_OBJECTS])
def test_mount_starts_beside_a_planted_file(publisher: Publisher, tmp_path: Path, planted: str) -> None:
    path = {**REFUSED, **NO_OBJECTS}[planted](publisher)
    with mounted(publisher, tmp_path) as mount:
        assert rows(mount) == [1, 2]
        assert (path.name in mount.log) == (planted != "fifo")
        assert resident_kib(mount.pid) < RESIDENT_KIB


@pytest.mark.slow
def test_refused_first_poll_is_logged_once(publisher: Publisher, tmp_path: Path) -> None:
    REFUSED["huge_commit"](publisher)
    with mounted(publisher, tmp_path) as mount:
        mount.wait_until(lambda: mount.status()["replica"]["polls"] >= 5, what="five polls")
        assert mount.log.count("WARNING") <= 2, mount.log


COMMANDS: dict[str, Callable[[Publisher, Path], list[str | Path]]] = {
    "restore": lambda publisher, tmp_path: ["restore", "-o", tmp_path / "restored.db", publisher.url],
    "verify": lambda publisher, _: ["verify", publisher.url],
    "verify --quick": lambda publisher, _: ["verify", "--quick", publisher.url],
    "history": lambda publisher, _: ["history", publisher.url],
    "ltx": lambda publisher, _: ["ltx", "--level", "all", publisher.url],
    "status": lambda publisher, _: ["status", publisher.url],
    "compact": lambda publisher, _: ["compact", "--level", "1", publisher.url],
    "snapshot": lambda publisher, _: ["snapshot", publisher.url],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("planted", ["huge_commit", "sparse_index", "sparse_index_that_fits", "empty"])
def test_command_ends_in_bounds_beside_a_planted_file(
    publisher: Publisher, tmp_path: Path, planted: str, command: str
) -> None:
    path = REFUSED[planted](publisher)
    ended = limited(*COMMANDS[command](publisher, tmp_path))
    codes = [ExitCode.DAMAGED] if command in ("restore", "verify", "verify --quick") else [*ExitCode][:1]
    if command in ("compact", "snapshot"):
        codes = [ExitCode.DAMAGED, ExitCode.OK, ExitCode.NOT_FOUND]
    require_orderly(ended, *codes)
    if ended.code == ExitCode.DAMAGED:
        assert path.name in ended.stdout + ended.stderr
    assert not (tmp_path / "restored.db").exists()


@pytest.mark.parametrize("planted", ["huge_commit", "sparse_index"])
def test_older_txid_is_restored_beside_a_planted_file(publisher: Publisher, tmp_path: Path, planted: str) -> None:
    REFUSED[planted](publisher)
    output = tmp_path / "restored.db"
    require_orderly(limited("restore", "-o", output, "--txid", f"{publisher.txid:016x}", publisher.url))
    assert output.read_bytes() == publisher.content


# --- TXIDs -----------------------------------------------------------------------------------------------------------


def last_snapshot(publisher: Publisher, txid: int) -> Path:
    pages = [(i // 4096 + 1, publisher.content[i : i + 4096]) for i in range(0, len(publisher.content), 4096)]
    data = encode_file(header(publisher, 1, txid, commit=len(pages)), pages)
    return place(publisher, data, level=9, low=1, high=txid)


@pytest.mark.slow
def test_file_that_ends_at_the_last_txid_of_all_is_not_used(publisher: Publisher, tmp_path: Path) -> None:
    path = last_snapshot(publisher, MOST_TXID)
    with mounted(publisher, tmp_path) as mount:
        assert mount.pos().txid == publisher.txid
        assert f"{path.name} in {publisher.url} is not used" in mount.log
        mount.wait_for(publisher.transaction("INSERT INTO t VALUES (3)"))
        assert rows(mount) == [1, 2, 3]


@pytest.mark.slow
def test_mount_at_the_last_txid_polls_without_an_error(publisher: Publisher, tmp_path: Path) -> None:
    last_snapshot(publisher, 2**63 - 1)
    with mounted(publisher, tmp_path) as mount:
        mount.wait_until(lambda: mount.status()["replica"]["polls"] >= 3, what="three polls")
        assert rows(mount) == [1, 2]
        assert mount.status()["replica"]["last_error"] in (None, "")


def test_writer_does_not_continue_beyond_the_last_txid(publisher: Publisher, tmp_path: Path) -> None:
    last_snapshot(publisher, 2**63 - 1)
    database = tmp_path / "app.db"
    with closing(sqlite3.connect(database)) as client:
        client.execute("PRAGMA journal_mode=wal")
        client.execute("CREATE TABLE t(x)")
        client.commit()
        ended = limited("replicate", database, publisher.url, "--once", "--take-over")
    require_orderly(ended, ExitCode.DAMAGED, ExitCode.CONFLICT, ExitCode.NOT_FOUND, ExitCode.USAGE)


# --- names -----------------------------------------------------------------------------------------------------------

NAMES = 60_000


@pytest.mark.slow
def test_many_names_are_listed_in_seconds(tmp_path: Path) -> None:
    level = tmp_path / "replica" / Path(file_key(Layout.FILE, 0, 1, 1)).parent
    level.mkdir(parents=True)
    for txid in range(1, NAMES + 1):
        (level / Path(file_key(Layout.FILE, 0, txid, txid)).name).touch()
    ended = limited("ltx", f"file://{tmp_path}/replica", deadline_s=15)
    require_orderly(ended)
    assert len(ended.stdout.splitlines()) == NAMES + 1


HOSTILE_NAMES = ["\x1b[2J", "a\nb", "\u202egpj", "\x9b31m", "0" * 200, "-rf", "$(touch x)", "%s%n"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.slow
def test_hostile_name_in_a_level_is_ignored_and_never_printed_raw(
    publisher: Publisher, tmp_path: Path, name: str
) -> None:
    level = publisher.replica / "ltx" / "0"
    (level / name).write_bytes(b"x")
    (level / f"{name}-{'1'.zfill(16)}.ltx").write_bytes(b"x")
    for command in (["ltx"], ["verify"], ["status"]):
        ended = limited(*command, publisher.url)
        require_orderly(ended, ExitCode.OK, ExitCode.DAMAGED)
        assert b"\x1b" not in ended.raw
        assert "\u202e" not in ended.stdout + ended.stderr
    output = tmp_path / "restored.db"
    require_orderly(limited("restore", "-o", output, publisher.url))
    assert output.read_bytes() == publisher.content
