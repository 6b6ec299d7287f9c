"""A mount that nobody has open asks the store for nothing, and is up to date for whoever opens it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from litereplica.fuse import mountpoint as mountpoints
from litereplica.testing.mounts import status_in
from tests.e2e.idle_mount import PAUSE_AFTER_S
from tests.helpers.publisher import Publisher

DEADLINE_S = 15.0
QUERY = "SELECT count(*) FROM t"


@contextmanager
def mounted(url: str, path: Path) -> Iterator[None]:
    path.mkdir()
    command = [sys.executable, "-m", "tests.e2e.idle_mount", url, str(path)]
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.terminate()
            process.wait(DEADLINE_S)
            while mountpoints.mount_at(path) is not None:
                subprocess.run(["fusermount3", "-uz", path], check=True)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_paused(path: Path) -> bool:
    return bool(status_in(path)["polling"]["state"] == "paused")


@pytest.mark.slow
def test_an_idle_mount_makes_no_request_and_its_next_reader_sees_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with Publisher(tmp_path, setup="CREATE TABLE t(x)") as publisher, mounted(publisher.url, path):
        for round in range(1, 4):
            until(lambda: is_paused(path))
            polls = status_in(path)["replica"]["polls"]
            txid = publisher.transaction("INSERT INTO t VALUES (1)")
            time.sleep(4 * 0.05)  # several intervals, in which nothing is to happen
            assert status_in(path)["replica"]["polls"] == polls
            assert status_in(path)["replica"]["pos"]["txid"] < txid
            with closing(sqlite3.connect(path / "app.db")) as reader:
                assert reader.execute(QUERY).fetchone() == (round,)


@pytest.mark.slow
def test_a_connection_that_only_waits_keeps_the_mount_up_to_date(tmp_path: Path) -> None:
    """Its pages are the kernel's: it makes no request by which it could be noticed."""
    path = tmp_path / "mnt"
    with (
        Publisher(tmp_path, setup="CREATE TABLE t(x)") as publisher,
        mounted(publisher.url, path),
        closing(sqlite3.connect(path / "app.db", isolation_level=None)) as reader,
    ):
        assert reader.execute(QUERY).fetchone() == (0,)
        time.sleep(3 * PAUSE_AFTER_S)  # longer than anybody's patience
        publisher.transaction("INSERT INTO t VALUES (1)")
        until(lambda: reader.execute(QUERY).fetchone() == (1,))
        assert status_in(path)["polling"]["state"] == "active"
