"""A mount of thousands of databases, measured once and by hand: `python -m benchmarks.prefix_mount [DATABASES]`.

Not a part of `scripts/bench`: publishing the databases takes longer than everything else. Run it in `scripts/`. It
publishes small databases to a SeaweedFS on loopback, mounts their prefix, and prints a table. The last rows are with
10 ms of added round trip, as in `scripts/bench`, against Litestream's VFS.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.client import file_client, vfs_client
from benchmarks.latency_proxy import latency_proxy
from benchmarks.processes import cpu_s, resident_memory
from litereplica.format.ltx import Header
from litereplica.format.names import Layout, file_key
from litereplica.storage.s3_connection import connect
from litereplica.storage.url import parse_url
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.mounts import MountedReplica
from litereplica.testing.seaweed import SeaweedServer

PAGE_SIZE = 4096
MOUNTS = 5
ACTIVE = 100
OPENED_ONCE = 500
COMPARED = 9
ROUND_TRIP_MS = 10.0
PARK_AFTER_S = 5.0
QUERY = "SELECT count(*), min(name) FROM item"


def names(count: int) -> list[str]:
    """Names of databases, in three directories."""
    return [f"{('ap', 'eu', 'us')[number % 3]}/tenant-{number:05}.db" for number in range(count)]


def published(name: str) -> bytes:
    """An LTX file with a database of 200 rows, each with the database's name."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, name)")
        connection.executemany("INSERT INTO item(name) VALUES (?)", [(name,)] * 200)
        connection.commit()
        content = connection.serialize()
    commit, timestamp_ms = len(content) // PAGE_SIZE, time.time_ns() // 1_000_000
    header = Header(page_size=PAGE_SIZE, commit=commit, min_txid=1, max_txid=1, timestamp_ms=timestamp_ms)
    pages = [(pgno, content[(pgno - 1) * PAGE_SIZE : pgno * PAGE_SIZE]) for pgno in range(1, commit + 1)]
    return encode_file(header, pages)


def publish(url: str, count: int) -> None:
    """Put the databases below a URL."""
    parsed = parse_url(url)
    client = connect(parsed)
    key = file_key(Layout.S3, 0, 1, 1)
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda name: client.put(f"{parsed.path}/{name}/{key}", published(name), {}, with_md5=False),
                names(count),
            )
        )


def timed(work: Callable[[], Any]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def query(mount: MountedReplica, name: str) -> None:
    """Open a database, query it, and close it."""
    with contextlib.closing(sqlite3.connect(mount.mountpoint / name)) as connection:
        assert connection.execute(QUERY).fetchone() == (200, name)


def started(url: str, directory: Path, *, name: str, options: Sequence[str] = ()) -> float:
    """Seconds until a mount is ready: the median of some."""
    seconds = []
    for number in range(MOUNTS):
        mount = MountedReplica(
            url, directory / f"{name or 'all'}-{number}", name=name, options=options, poll_interval="1s"
        )
        seconds.append(timed(mount.start))
        mount.umount()
    return statistics.median(seconds)


def megabytes(mount: MountedReplica) -> float:
    """Resident memory of the daemon."""
    return resident_memory(mount.pid) / 1e6


def rows(server: SeaweedServer, bucket: str, count: int, directory: Path) -> Iterator[tuple[str, str]]:
    """Measure, and yield what and how much."""
    url = server.url(bucket, "tenants")
    one = server.url(bucket, f"tenants/{names(1)[0]}")
    single = started(one, directory, name="tenant.db")
    every = started(url, directory, name="", options=["--all"])
    yield "mount ready, one database", f"{single:.2f} s"
    yield f"mount ready, {count:,} databases", f"{every:.2f} s, {every / single:.2f} times one"
    options = ["--park-after", f"{PARK_AFTER_S:g}s"]
    with MountedReplica(url, directory / "mount", name="", options=options, poll_interval="1s") as mount:
        yield from listings(mount)
        yield "memory, names known", f"{megabytes(mount):.0f} MB"
        seconds = [timed(lambda name=name: query(mount, name)) for name in names(ACTIVE)]  # type: ignore[misc]
        yield f"open, query and close, median of {ACTIVE}", f"{statistics.median(seconds) * 1000:.0f} ms"
        with contextlib.ExitStack() as stack:
            for name in names(ACTIVE):
                connection = stack.enter_context(contextlib.closing(sqlite3.connect(mount.mountpoint / name)))
                connection.execute(QUERY).fetchone()
            time.sleep(2)
            before = cpu_s(mount.pid)
            time.sleep(10)
            yield f"memory, {ACTIVE} in use", f"{megabytes(mount):.0f} MB"
            yield f"CPU, {ACTIVE} in use", f"{(cpu_s(mount.pid) - before) * 10:.0f}% of a core"
        for name in names(count)[:OPENED_ONCE]:
            query(mount, name)
        yield f"memory, {OPENED_ONCE} opened once", f"{megabytes(mount):.0f} MB"
        mount.wait_until(lambda: mount.status()["databases"]["active"] == 0, what="all parked")
        time.sleep(PARK_AFTER_S)
        yield "memory, all parked again", f"{megabytes(mount):.0f} MB"
    with latency_proxy(int(server.endpoint.rpartition(":")[2]), round_trip_ms=ROUND_TRIP_MS) as proxy:
        yield from compared(url.replace(server.endpoint, proxy.endpoint), names(count), directory)


def listings(mount: MountedReplica) -> Iterator[tuple[str, str]]:
    """Walk through the tree."""
    for command in ("ls eu", "ls -R .", "ls -lR .", "find . -type f"):
        before, cpu = mount.status()["names"]["requests"], cpu_s(mount.pid)
        run = ["sh", "-c", f"{command} > /dev/null"]
        seconds = timed(lambda run=run: subprocess.run(run, cwd=mount.mountpoint, check=True))  # type: ignore[misc]
        requests = mount.status()["names"]["requests"] - before
        yield f"`{command}`", f"{seconds:.2f} s, {requests:,} listings, {cpu_s(mount.pid) - cpu:.1f} s CPU"


def compared(url: str, every: Sequence[str], directory: Path) -> Iterator[tuple[str, str]]:
    """The first query of databases of a mount that has 100 others open, and of Litestream's VFS."""
    base, _, parameters = url.partition("?")
    ours, theirs = [], []
    with MountedReplica(url, directory / "distant", name="", poll_interval="1s") as mount:
        with contextlib.ExitStack() as stack:
            for name in every[:ACTIVE]:
                connection = stack.enter_context(contextlib.closing(sqlite3.connect(mount.mountpoint / name)))
                connection.execute(QUERY).fetchone()
            for name in every[ACTIVE : ACTIVE + COMPARED]:
                with file_client(mount.mountpoint / name) as client:
                    ours.append(client.open(7))
                    client.close()
        for name in every[ACTIVE : ACTIVE + COMPARED]:
            with vfs_client(f"{base}/{name}?{parameters}") as client:
                theirs.append(client.open(7))
                client.close()
    mine, other = statistics.median(ours), statistics.median(theirs)
    yield f"open and first query, {ROUND_TRIP_MS:g} ms away, {ACTIVE} others in use", f"{mine * 1000:.0f} ms"
    yield f"the same through Litestream's VFS: {mine / other:.2f} times", f"{other * 1000:.0f} ms"


def main(count: int) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as path, SeaweedServer(Path(path) / "seaweed") as server:
        os.environ.pop("AWS_CA_BUNDLE", None)
        os.environ.update(server.credentials())
        bucket = server.create_bucket()
        publish(server.url(bucket, "tenants"), count)
        print("| | |\n|---|---|")
        for what, value in rows(server, bucket, count, Path(path)):
            print(f"| {what} | {value} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
