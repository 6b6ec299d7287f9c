"""What tells that nobody has written to a database that is not open."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from litereplica.writer.database.parked import Files, Parked, certain_now, changed, look_at, mark_of, parked_by_mark
from litereplica.writer.database.state_directory import FileIdentity, StateDirectory
from litereplica.writer.database.wal_follower import MTIME_GRANULARITY_NS

pytestmark = pytest.mark.slow

DATABASE = FileIdentity(1, 4096, 1_000_000_000)
WAL = FileIdentity(2, 8272, 1_000_000_000)
EMPTY = replace(WAL, size=0)
LATER = 500_000_000


@pytest.mark.parametrize(
    ("before", "now", "complete", "expected"),
    [
        (Files(DATABASE, WAL), Files(DATABASE, WAL), True, False),
        (Files(DATABASE, WAL), Files(DATABASE, WAL), False, False),
        (Files(DATABASE, WAL), Files(DATABASE, None), True, False),
        (Files(DATABASE, WAL), Files(DATABASE, EMPTY), True, False),
        (Files(DATABASE, None), Files(DATABASE, EMPTY), True, False),
        (Files(DATABASE, WAL), Files(DATABASE, None), False, True),
        (Files(DATABASE, None), Files(DATABASE, WAL), True, True),
        (Files(DATABASE, WAL), Files(DATABASE, replace(WAL, ctime_ns=LATER)), True, True),
        (Files(DATABASE, WAL), Files(DATABASE, replace(WAL, size=2 * WAL.size)), True, True),
        (Files(DATABASE, WAL), Files(DATABASE, replace(WAL, inode=3)), True, True),
        (Files(DATABASE, WAL), Files(replace(DATABASE, ctime_ns=LATER), WAL), True, True),
        (Files(DATABASE, WAL), Files(replace(DATABASE, inode=3), None), True, True),
        (Files(DATABASE, WAL), Files(None, None), True, True),
    ],
)
def test_any_write_shows_and_a_wal_that_has_gone_is_none_if_the_database_has_it_all(
    before: Files, now: Files, complete: bool, expected: bool
) -> None:
    assert Parked(1, before, complete).changed(now) is expected


def test_files_that_were_just_written_to_are_not_certain(tmp_path: Path) -> None:
    """A second write within a clock tick may leave size and times as they are."""
    path = tmp_path / "app.db"
    path.write_bytes(bytes(512))
    assert certain_now(path) is None
    time.sleep(2 * MTIME_GRANULARITY_NS / 1e9)
    files = certain_now(path)
    assert files == look_at(str(path))
    path.with_name("app.db-wal").write_bytes(bytes(32))
    assert certain_now(path) is None


def test_only_what_has_changed_or_gone_is_told(tmp_path: Path) -> None:
    names = ["same", "written", "grown", "gone", "wal"]
    rests = []
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        rests.append((str(tmp_path / name), Parked(1, look_at(str(tmp_path / name)), complete=True)))
    time.sleep(2 * MTIME_GRANULARITY_NS / 1e9)
    (tmp_path / "written").write_bytes(b"y")
    os.utime(tmp_path / "written", (0, 0))
    (tmp_path / "grown").write_bytes(b"yy")
    (tmp_path / "gone").unlink()
    (tmp_path / "wal-wal").write_bytes(b"z")
    assert [Path(path).name for path in changed(rests)] == names[1:]


def test_mark_tells_of_rest_for_its_replica_and_these_files_only(tmp_path: Path) -> None:
    path, wal = tmp_path / "app.db", tmp_path / "app.db-wal"
    path.write_bytes(bytes(512))
    wal.write_bytes(bytes(100))
    url = "file:///replica"
    assert parked_by_mark(path, url) is None
    with StateDirectory(path) as state:
        state.write_mark(mark_of(url, 7, look_at(str(path))))
    rest = parked_by_mark(path, url)
    assert rest is not None
    assert (rest.txid, rest.last) == (7, None)
    assert parked_by_mark(path, "file:///other") is None
    time.sleep(2 * MTIME_GRANULARITY_NS / 1e9)
    wal.write_bytes(bytes(100))
    assert parked_by_mark(path, url) is None
    wal.unlink()
    assert parked_by_mark(path, url) is not None
    path.write_bytes(bytes(512))
    assert parked_by_mark(path, url) is None
