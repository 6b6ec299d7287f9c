"""Hot queries through the mount against the same file on the local disk: look-ups by key, and a full scan."""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

import click

from benchmarks.processes import replicate_once
from benchmarks.report import Spread, print_table
from tests.helpers.mounts import MountedReplica

LOOKUPS = 20_000
WARM_UP_SCANS = 3
"""The kernel's read-ahead of the first one may still be under way when it ends."""


def make_database(path: Path, rows: int) -> None:
    """A table of `rows` rows of about 240 bytes, in WAL mode, checkpointed."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, body BLOB)")
    connection.execute("BEGIN")
    chance = random.Random(1)
    connection.executemany(
        "INSERT INTO item VALUES (?, ?, ?)", ((i, f"item {i}", chance.randbytes(220)) for i in range(1, rows + 1))
    )
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def lookups_per_s(connection: sqlite3.Connection, rows: int, seed: int) -> float:
    chance = random.Random(seed)
    ids = [chance.randint(1, rows) for _ in range(LOOKUPS)]
    started = time.perf_counter()
    for i in ids:
        connection.execute("SELECT name FROM item WHERE id = ?", (i,)).fetchone()
    return LOOKUPS / (time.perf_counter() - started)


def scans_per_s(connection: sqlite3.Connection) -> float:
    started = time.perf_counter()
    connection.execute("SELECT sum(length(body)) FROM item").fetchone()
    return 1 / (time.perf_counter() - started)


@click.command("hot")
@click.option("--rows", default=300_000, show_default=True, help="Rows of about 240 bytes.")
@click.option("--repeats", default=9, show_default=True, help="Measurements of each kind, mount and file in turn.")
def command(rows: int = 300_000, repeats: int = 9) -> None:
    """Hot look-ups and scans: the mount against a local file."""
    directory = Path(tempfile.mkdtemp(prefix="litereplica-bench-"))
    try:
        source = directory / "app.db"
        make_database(source, rows)
        url = f"file://{directory}/replica"
        replicate_once(source, url)
        with MountedReplica(url, directory / "mount", name="app.db") as mount:
            _measure(mount, source, rows, repeats)
    finally:
        shutil.rmtree(directory)


def _measure(mount: MountedReplica, source: Path, rows: int, repeats: int) -> None:
    here = sqlite3.connect(source, isolation_level=None)
    there = sqlite3.connect(mount.path, isolation_level=None)
    for connection in (here, there):
        for _ in range(WARM_UP_SCANS):
            scans_per_s(connection)
    requests = mount.status()["mount"]
    ratios: dict[str, list[float]] = {"look-ups by key": [], "full scan": []}
    for i in range(repeats):
        ratios["look-ups by key"].append(lookups_per_s(there, rows, i) / lookups_per_s(here, rows, i))
        ratios["full scan"].append(scans_per_s(there) / scans_per_s(here))
    after = mount.status()["mount"]
    reads = sum(after[key] - requests[key] for key in ("reads_database", "reads_wal", "reads_shm"))
    here.close()
    there.close()
    size = source.stat().st_size / 1e6
    print(
        f"hot queries, {rows:,} rows, {size:.0f} MB, {repeats} × ({LOOKUPS:,} look-ups, a scan); READ requests: {reads}"
    )
    print_table(
        ("query", "mount ÷ local file, median (quartiles)"),
        [(name, Spread.of(values)) for name, values in ratios.items()],
    )
