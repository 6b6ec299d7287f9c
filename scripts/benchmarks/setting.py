"""What a run of benchmarks shares: how large it is, its directory, a SeaweedFS, the database and its replica.

Everything is made on first use and once. The replica is published by the real Litestream, so that the mount and the
peers read the very same objects. Nobody reads it twice through the same proxy, so its counts belong to one reader.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from benchmarks.database import make_database
from benchmarks.latency_proxy import LatencyProxy, latency_proxy
from litereplica.testing.litestream import LitestreamError, run_litestream
from litereplica.testing.seaweed import SeaweedServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured. Repeats are for each subject; subjects take turns."""

    rows: int
    repeats: int
    lookups: int
    scanned_rows: int
    scan_repeats: int
    """Apart, since a cold scan of the VFS takes a minute."""
    connections: int
    warm_repeats: int
    warm_lookups: int
    lag_commits: int
    lag_intervals_s: tuple[float, ...]
    writer_commits: int
    writer_repeats: int
    idle_databases: int
    restored_deltas: int
    backlog_files: tuple[int, ...]
    backlog_pages: int
    listed_keys: tuple[int, ...]
    window_s: float
    """Requests are counted in this long a stretch, `windows` times."""
    windows: int

    def repeated(self, most: int) -> Scale:
        """The same with at most so many repeats of anything."""
        names = ("repeats", "scan_repeats", "warm_repeats", "writer_repeats", "windows")
        return replace(self, **{name: min(getattr(self, name), most) for name in names})


FULL = Scale(
    rows=900_000,
    repeats=7,
    lookups=300,
    scanned_rows=60_000,
    scan_repeats=3,
    connections=10,
    warm_repeats=15,
    warm_lookups=20_000,
    lag_commits=20,
    lag_intervals_s=(1.0, 0.1),
    writer_commits=60_000,
    writer_repeats=3,
    idle_databases=1000,
    restored_deltas=500,
    backlog_files=(100, 1_000, 10_000),
    backlog_pages=200_000,
    listed_keys=(1_000, 10_000, 100_000),
    window_s=60,
    windows=3,
)
QUICK = Scale(
    rows=60_000,
    repeats=2,
    lookups=60,
    scanned_rows=3_000,
    scan_repeats=2,
    connections=10,
    warm_repeats=3,
    warm_lookups=5_000,
    lag_commits=4,
    lag_intervals_s=(1.0,),
    writer_commits=3_000,
    writer_repeats=1,
    idle_databases=100,
    restored_deltas=50,
    backlog_files=(50, 500),
    backlog_pages=5_000,
    listed_keys=(1_000, 10_000),
    window_s=3,
    windows=2,
)


class Setting:
    """The surroundings of one run, below `directory`."""

    def __init__(self, scale: Scale, *, round_trip_ms: float, directory: Path, server: SeaweedServer) -> None:
        self.scale = scale
        self.round_trip_ms = round_trip_ms
        self.server = server
        self._directory = directory
        self._numbers = itertools.count(1)

    @cached_property
    def database(self) -> Path:
        """The database, checkpointed and closed; to be read or copied only."""
        path = self.fresh_directory() / "app.db"
        make_database(path, self.scale.rows)
        return path

    @cached_property
    def file_url(self) -> str:
        """The database's replica in a directory of this machine."""
        return self._published(self.fresh_file_url())

    @cached_property
    def direct_url(self) -> str:
        """The database's replica in SeaweedFS, without added latency."""
        return self._published(self.fresh_direct_url())

    def fresh_directory(self) -> Path:
        """Create a new empty directory."""
        path = self._directory / str(next(self._numbers))
        path.mkdir()
        return path

    def fresh_file_url(self) -> str:
        """Where there is no replica yet, in a directory of this machine."""
        return f"file://{self.fresh_directory()}/replica"

    def fresh_direct_url(self) -> str:
        """Where there is no replica yet, in SeaweedFS."""
        return self.server.url(self.server.create_bucket(), "app.db")

    def copy_of_database(self) -> Path:
        """One to write to."""
        return Path(shutil.copy(self.database, self.fresh_directory() / "app.db"))

    @contextmanager
    def distant(self, direct_url: str) -> Iterator[tuple[str, LatencyProxy]]:
        """`direct_url` through a proxy of its own, which adds the latency and counts."""
        with latency_proxy(self.port, round_trip_ms=self.round_trip_ms) as proxy:
            yield direct_url.replace(self.server.endpoint, proxy.endpoint), proxy

    @property
    def port(self) -> int:
        """SeaweedFS's, without added latency."""
        return int(self.server.endpoint.rpartition(":")[2])

    def _published(self, url: str) -> str:
        done = run_litestream("replicate", "-once", "-force-snapshot", self.database, url)
        if done.code != 0:
            raise LitestreamError(f"replicate -once: {done.stderr}{done.stdout}")
        return url


@contextmanager
def open_setting(scale: Scale, *, round_trip_ms: float) -> Iterator[Setting]:
    """A setting in a temporary directory, with SeaweedFS running; its credentials are in the environment."""
    directory = Path(tempfile.mkdtemp(prefix="litereplica-bench-"))
    try:
        with SeaweedServer(directory / "seaweed") as server:
            environment = server.environment()
            os.environ.clear()
            os.environ.update(environment)
            yield Setting(scale, round_trip_ms=round_trip_ms, directory=directory, server=server)
    finally:
        shutil.rmtree(directory)
