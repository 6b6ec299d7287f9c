"""After the primary's clock was set forward, a time means what it says where uploads tell it, and else it is said."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from litereplica.format.names import Layout, file_key
from litereplica.testing.mounts import MountedReplica, litereplica_binary
from litereplica.times import format_time, wall_clock_ms
from tests.helpers.publisher import Publisher

pytestmark = pytest.mark.slow

AHEAD_MS = 3 * 3_600_000 + 90_000
FUTURE = "lies 3h1m in the future, because a clock is or was wrong: "
BY_UPLOAD = FUTURE + "points that are dated in the future are found by the time of their upload"
BY_TXID = FUTURE + "the states after TXID 0000000000000001 are found by their TXIDs only"


def stepped(directory: Path, monkeypatch: pytest.MonkeyPatch, *, is_told: bool) -> tuple[Publisher, str]:
    """A replica whose TXIDs 2 and 3 are dated 3 hours ahead, and the time between these two.

    Only if it `is_told`, the listing has the times of the uploads, as that of S3 has.
    """
    publisher = Publisher(directory, setup="CREATE TABLE t (x)")
    real = time.time_ns
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: real() + AHEAD_MS * 1_000_000)
        publisher.transaction("INSERT INTO t VALUES (2)")
    between_ms = wall_clock_ms() + 10
    while wall_clock_ms() <= between_ms + 10:  # until the clock has passed it
        time.sleep(0.001)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: real() + AHEAD_MS * 1_000_000)
        publisher.transaction("INSERT INTO t VALUES (3)")
    if not is_told:
        for txid in (2, 3):
            ahead_s = time.time() + AHEAD_MS / 1000
            os.utime(publisher.replica / file_key(Layout.FILE, 0, txid, txid), (ahead_s, ahead_s))
    return publisher, format_time(between_ms)


@pytest.mark.parametrize(("is_told", "expected", "said"), [(True, [2], BY_UPLOAD), (False, [], BY_TXID)])
def test_restore_and_mounts_by_time_find_the_state_or_say_that_points_lie_in_the_future(
    is_told: bool, expected: list[int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, between = stepped(tmp_path / "primary", monkeypatch, is_told=is_told)
    with publisher:
        output = tmp_path / "out.db"
        command: list[str | Path] = [litereplica_binary(), "restore", publisher.url, "--timestamp", between]
        done = subprocess.run([*command, "-o", output], capture_output=True, text=True, check=True)
        assert said in done.stderr
        assert rows(output) == expected
        with MountedReplica(publisher.url, tmp_path / "live", expected_problems=[said]) as live:
            assert rows(live.mountpoint / ".at" / between / "app.db") == expected
            assert said in live.log
        point = tmp_path / "then"
        point.mkdir()
        command = [litereplica_binary(), "mount", publisher.url, point, "--name", "app.db", "--timestamp", between]
        done = subprocess.run([*command, "--cache-dir", tmp_path / "cache"], capture_output=True, text=True, check=True)
        try:
            assert said in done.stderr
            assert rows(point / "app.db") == expected
        finally:
            subprocess.run([litereplica_binary(), "umount", point], check=True)


def rows(path: Path) -> list[int]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    found = [int(x) for (x,) in connection.execute("SELECT x FROM t")]
    connection.close()
    return found
