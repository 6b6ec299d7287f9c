"""Lag: from the return of COMMIT on the primary to the moment a client of the mount sees the row."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from benchmarks.processes import replicating
from benchmarks.report import percentile, print_table
from tests.helpers.mounts import MountedReplica
from tests.helpers.seaweed import SeaweedServer

LOOK_INTERVAL_S = 0.001
LIMIT_S = 30.0


@contextmanager
def replica_url(kind: str, directory: Path) -> Iterator[str]:
    """An empty replica on the local disk, or in a SeaweedFS that runs meanwhile."""
    if kind == "file://":
        yield f"file://{directory}/replica"
        return
    with SeaweedServer(directory / "seaweed") as server:
        os.environ |= server.credentials()
        os.environ.pop("AWS_CA_BUNDLE", None)
        yield server.url(server.create_bucket(), "app.db")


def measure(url: str, directory: Path, *, interval: str, commits: int) -> list[float]:
    """Milliseconds for each commit; the pauses between commits are random, one to two intervals."""
    seconds = (
        float(interval.removesuffix("ms")) / 1000 if interval.endswith("ms") else float(interval.removesuffix("s"))
    )
    source = directory / "app.db"
    primary = sqlite3.connect(source, isolation_level=None)
    primary.execute("PRAGMA journal_mode=WAL")
    primary.execute("CREATE TABLE beat(id INTEGER PRIMARY KEY, padding TEXT)")
    chance = random.Random(1)
    lags = []
    with (
        replicating(source, url, sync_interval=interval),
        MountedReplica(url, directory / "mount", name="app.db", poll_interval=interval) as mount,
    ):
        client = sqlite3.connect(mount.path, isolation_level=None)
        for i in range(1, commits + 1):
            time.sleep(seconds * chance.uniform(1, 2))
            primary.execute("INSERT INTO beat VALUES (?, ?)", (i, "x" * 200))
            committed = time.perf_counter()
            while client.execute("SELECT max(id) FROM beat").fetchone()[0] != i:
                if time.perf_counter() - committed > LIMIT_S:
                    raise click.ClickException(f"commit {i} did not appear within {LIMIT_S:g} s")
                time.sleep(LOOK_INTERVAL_S)
            lags.append((time.perf_counter() - committed) * 1000)
        client.close()
    primary.close()
    return lags


@click.command("lag")
@click.option("--commits", default=60, show_default=True, help="Commits for each line of the table.")
@click.option("--interval", "intervals", multiple=True, default=("1s", "100ms"), show_default=True)
def command(commits: int = 60, intervals: tuple[str, ...] = ("1s", "100ms")) -> None:
    """Lag from commit to visible, on a local directory and on SeaweedFS."""
    rows = []
    for kind in ("file://", "s3:// (SeaweedFS)"):
        for interval in intervals:
            directory = Path(tempfile.mkdtemp(prefix="litereplica-bench-"))
            try:
                with replica_url(kind, directory) as url:
                    lags = measure(url, directory, interval=interval, commits=commits)
            finally:
                shutil.rmtree(directory)
            rows.append((kind, interval, f"{percentile(lags, 50):.0f}", f"{percentile(lags, 99):.0f}"))
    print(f"lag from commit to visible, {commits} commits a line")
    print_table(("replica", "sync and poll interval", "median, ms", "99th percentile, ms"), rows)
