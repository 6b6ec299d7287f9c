"""Fifty databases that a directory writer publishes to an S3 store while readers on another mount look at all of them.

Each database has a ledger: what it was at each number of a transaction. Readers check each state that they see against
it. The daemon is killed once, with every database open.
"""

from __future__ import annotations

import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from litereplica.testing.mounts import MountedReplica, litereplica_binary
from tests.conftest import S3Bucket

DATABASES = 50
TRANSACTIONS = 300
DEADLINE_S = 60.0
SETUP = "CREATE TABLE t(n INTEGER, a INTEGER, b INTEGER, filler); INSERT INTO t VALUES (0, 0, 0, randomblob(20000))"


class Primaries:
    """The databases of a directory. `ledger[name][n]` is the value `a` of the n-th transaction; `b` is -a."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names = [f"{'ab'[number % 2]}/{number}.db" for number in range(DATABASES)]
        self.ledger: dict[str, list[int]] = {name: [0] for name in self.names}
        self._chance = Random(1)
        for name in self.names:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(SETUP)

    def write(self) -> None:
        """One transaction in one of them."""
        name = self._chance.choice(self.names)
        value = self._chance.randrange(1, 1 << 40)
        self.ledger[name].append(value)
        with closing(sqlite3.connect(self.directory / name, timeout=30, isolation_level=None)) as connection:
            connection.execute("UPDATE t SET n = ?, a = ?, b = ?", (len(self.ledger[name]) - 1, value, -value))

    def check(self, name: str, row: tuple[int, int, int]) -> int:
        """Check what a reader saw; returns the number of the transaction."""
        n, a, b = row
        assert (a, b) == (self.ledger[name][n], -self.ledger[name][n]), name
        return n


@contextmanager
def replicating(directory: Path, url: str, config: Path) -> Iterator[None]:
    """The directory writer, as a process of its own."""
    config.write_text(
        f"dbs:\n  - dir: {directory}\n    pattern: '*.db'\n    recursive: true\n"
        f"    replica:\n      url: '{url}'\n      sync-interval: 20ms\n"
    )
    with (
        config.with_suffix(".log").open("wb") as log,
        subprocess.Popen(
            [litereplica_binary(), "replicate", "--config", str(config)], stderr=log, stdout=log
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


class Readers(threading.Thread):
    """Opens, reads and closes databases in any order; keeps some open."""

    def __init__(self, mount: Path, primaries: Primaries, seed: int) -> None:
        super().__init__(daemon=True)
        self.errors: list[str] = []
        self.seen: dict[str, int] = dict.fromkeys(primaries.names, 0)
        self.reads = 0
        self.stopping = threading.Event()
        self._mount = mount
        self._primaries = primaries
        self._chance = Random(seed)

    def run(self) -> None:
        held: dict[str, sqlite3.Connection] = {}
        while not self.stopping.is_set():
            name = self._chance.choice(self._primaries.names)
            try:
                connection = held.pop(name, None) or sqlite3.connect(self._mount / name, check_same_thread=False)
                n = self._primaries.check(name, connection.execute("SELECT n, a, b FROM t").fetchone())
                assert n >= self.seen[name]
                self.seen[name], self.reads = n, self.reads + 1
                if self._chance.random() < 0.5 and len(held) < 30:
                    held[name] = connection
                else:
                    connection.close()
            except (sqlite3.Error, AssertionError) as exc:
                self.errors.append(f"{name}: {exc!r}")
                return
        for connection in held.values():
            connection.close()


@pytest.mark.slow
def test_fifty_databases_equal_their_ledgers_while_they_change(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    primaries = Primaries(tmp_path / "src")
    url = s3_bucket.server.url(s3_bucket.name, "fleet")
    options = ["--all", "--park-after", "300ms"]
    mount = MountedReplica(url, tmp_path / "mount", name="", options=options, poll_interval="100ms")
    with ExitStack() as stack:
        stack.enter_context(replicating(primaries.directory, url, tmp_path / "writer.yml"))
        mount.start()
        stack.callback(mount.__exit__, None, None, None)
        wait_for_all(mount, primaries)
        readers = [Readers(mount.mountpoint, primaries, seed) for seed in range(3)]
        for reader in readers:
            reader.start()
        for _ in range(TRANSACTIONS):
            primaries.write()
        wait_for_all(mount, primaries)
        for reader in readers:
            reader.stopping.set()
        for reader in readers:
            reader.join(DEADLINE_S)
        assert [reader.errors for reader in readers] == [[], [], []]
        assert min(reader.reads for reader in readers) > DATABASES

        connections = [sqlite3.connect(mount.mountpoint / name) for name in primaries.names]
        for connection in connections:
            connection.execute("SELECT n FROM t").fetchone()
        mount.kill()
        primaries.write()
        for connection in connections:
            with suppress(sqlite3.Error):
                connection.close()
        mount.start()
        wait_for_all(mount, primaries)
        one, *others = primaries.names[:10]
        with closing(sqlite3.connect(mount.mountpoint / one)) as connection:
            for number, name in enumerate(others):
                connection.execute(f"ATTACH '{mount.mountpoint / name}' AS d{number}")
            every = " UNION ALL ".join(f"SELECT a, b FROM d{number}.t" for number in range(len(others)))
            assert connection.execute(f"SELECT sum(a + b), count(*) FROM ({every})").fetchone() == (0, 9)


def wait_for_all(mount: MountedReplica, primaries: Primaries) -> None:
    """Return when every database is at its last transaction."""
    deadline = time.monotonic() + DEADLINE_S
    for name in primaries.names:
        while True:
            assert time.monotonic() < deadline, name
            with suppress(sqlite3.OperationalError), closing(sqlite3.connect(mount.mountpoint / name)) as connection:
                row = connection.execute("SELECT n, a, b FROM t").fetchone()
                if primaries.check(name, row) == len(primaries.ledger[name]) - 1:
                    break
            time.sleep(0.02)
