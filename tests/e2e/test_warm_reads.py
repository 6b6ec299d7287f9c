"""What has been read once is read again without a request, whatever is applied to other pages meanwhile."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from litereplica.testing.mounts import MountedReplica
from tests.helpers.publisher import Publisher

ROWS = 20_000
LOOK_UPS = 10_000
TRANSACTIONS = 10
"""Fewer than those that restart the WAL once."""

SETUP = f"""
CREATE TABLE still(id INTEGER PRIMARY KEY, text TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
    INSERT INTO still SELECT i, printf('%0100d', i) FROM n;
CREATE TABLE moving(id INTEGER PRIMARY KEY, counter INTEGER, text TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
    INSERT INTO moving SELECT i, 1, printf('%01000d', i) FROM n;
"""
SCAN = "SELECT count(*), sum(length(text)), max(text) FROM still"


def requests(statistics: dict[str, int]) -> dict[str, int]:
    """READ requests of the kernel so far."""
    return {name: count for name, count in statistics.items() if name.startswith("reads_")}


@contextmanager
def kept_in_memory(*paths: Path) -> Iterator[None]:
    """Forbid the kernel to forget pages of these files by itself, as it does when memory is short or a page is idle."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mlock.argtypes = libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with ExitStack() as mapped:
        for path in paths:
            with path.open("rb") as file:
                size = path.stat().st_size
                address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
            mapped.callback(libc.munmap, address, size)
            assert libc.mlock(address, size) == 0, os.strerror(ctypes.get_errno())
        yield


def test_second_scan_and_look_ups_make_no_request_while_transactions_are_applied(tmp_path: Path) -> None:
    chosen = random.Random(7)
    with (
        Publisher(tmp_path, setup=SETUP) as publisher,
        MountedReplica(publisher.url, tmp_path / "mount", poll_interval="10ms") as mount,
        closing(sqlite3.connect(mount.path, isolation_level=None, timeout=0)) as connection,
    ):

        def publish() -> None:
            mount.wait_for(publisher.transaction("UPDATE moving SET counter = counter + 1"))

        scanned = connection.execute(SCAN).fetchall()
        assert scanned == publisher.connection.execute(SCAN).fetchall()
        while not mount.statistics()["restarts"]:  # the WAL has its full length, and is read once
            publish()
        with kept_in_memory(mount.path, mount.path.with_name("app.db-wal")):
            before = mount.statistics()
            assert before["reads_database"] > 0
            while mount.statistics()["restarts"] < before["restarts"] + 1:
                publish()
                for _ in range(LOOK_UPS // TRANSACTIONS):
                    number = chosen.randrange(1, ROWS + 1)
                    [(text,)] = connection.execute("SELECT text FROM still WHERE id = ?", (number,))
                    assert int(text) == number
            assert connection.execute(SCAN).fetchall() == scanned
            with closing(sqlite3.connect(mount.path)) as fresh:
                assert fresh.execute(SCAN).fetchall() == scanned
            after = mount.statistics()
    assert after["advances"] >= before["advances"] + TRANSACTIONS
    assert requests(after) == requests(before)
