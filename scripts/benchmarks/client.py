"""A client of a database in a process of its own, which times its own queries: the same code for every subject.

    python -m benchmarks.client file PATH | vfs REPLICA_URL

Opening is all that differs: a file (local, or below a mount) by its path, a replica through Litestream's VFS. The
SQLite is apsw's for all of them, since the interpreter's own may have been built without loadable extensions. Requests
and answers are lines of JSON. Times are of `time.perf_counter`, which on Linux is one clock for all processes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import litestream_vfs  # type: ignore[import-untyped]  # it has no annotations

from benchmarks.database import BEAT_QUERY, LOOKUP_QUERY, SCAN_QUERY
from litereplica.testing.processes import Child, running_module

LOOK_INTERVAL_S = 0.001
"""The resolution of a measured lag."""
VFS_URL = "LITESTREAM_REPLICA_URL"
QUERY_INTERVAL_S = 1.0
"""How often a connection asks while it is kept busy."""


class Client:
    """The parent's side. Times are in seconds."""

    def __init__(self, child: Child) -> None:
        self._child = child

    @property
    def pid(self) -> int:
        """Process ID of the client."""
        return self._child.process.pid

    def open(self, key: int) -> float:
        """Open one more connection and look the row `key` up."""
        return float(self._ask("open", key))

    def lookups(self, keys: Sequence[int]) -> float:
        """Look rows up by key, each in a transaction of its own, on the newest connection."""
        return float(self._ask("lookups", list(keys)))

    def scan(self, first: int, last: int) -> float:
        """Read all rows from `first` to `last`, on the newest connection."""
        return float(self._ask("scan", first, last))

    def wait_for_beat(self, beat: int, *, limit_s: float) -> float | None:
        """The moment at which the newest connection saw `beat` or a later one; None when it had not in time.

        A query that fails has not seen it.
        """
        seen = self._ask("wait_for_beat", beat, limit_s)
        return None if seen is None else float(seen)

    def reopen(self) -> None:
        """Close the newest connection and open another."""
        self._ask("reopen")

    def keep_asking(self, seconds: float) -> int:
        """Let each connection ask for the newest beat once a second; how many of these queries failed."""
        return int(self._ask("keep_asking", seconds))

    def close(self) -> None:
        """Close all connections."""
        self._ask("close")

    def _ask(self, operation: str, *arguments: Any) -> Any:
        self._child.say(json.dumps([operation, *arguments]))
        line = self._child.hear()
        if not line:
            raise RuntimeError(f"the client ended in {operation}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{operation}: {answer['error']}")
        return answer["answer"]


@contextmanager
def file_client(path: Path) -> Iterator[Client]:
    """A client of a file, local or below a mount, with no connection open yet."""
    with running_module("benchmarks.client", "file", str(path)) as child:
        yield Client(child)


@contextmanager
def vfs_client(url: str) -> Iterator[Client]:
    """A client of a replica through Litestream's VFS, loaded, with no connection open yet."""
    with running_module("benchmarks.client", "vfs", url) as child:
        yield Client(child)


class _Connections:
    """The child's side: a method for each operation."""

    def __init__(self, path: str, *, vfs: str | None) -> None:
        self._path = path
        self._vfs = vfs
        self._all: list[apsw.Connection] = []

    def open(self, key: int) -> float:
        started = time.perf_counter()
        self._connect().execute(LOOKUP_QUERY, (key,)).fetchone()
        return time.perf_counter() - started

    def lookups(self, keys: Sequence[int]) -> float:
        connection = self._all[-1]
        started = time.perf_counter()
        for key in keys:
            connection.execute(LOOKUP_QUERY, (key,)).fetchone()
        return time.perf_counter() - started

    def scan(self, first: int, last: int) -> float:
        started = time.perf_counter()
        self._all[-1].execute(SCAN_QUERY, (first, last)).fetchone()
        return time.perf_counter() - started

    def wait_for_beat(self, beat: int, limit_s: float) -> float | None:
        deadline = time.perf_counter() + limit_s
        while (_newest_beat(self._all[-1]) or 0) < beat:
            if time.perf_counter() > deadline:
                return None
            time.sleep(LOOK_INTERVAL_S)
        return time.perf_counter()

    def reopen(self) -> None:
        self._all.pop().close()
        self._connect()

    def keep_asking(self, seconds: float) -> int:
        end, failures = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            failures += [_newest_beat(connection) for connection in self._all].count(None)
            time.sleep(max(0.0, min(QUERY_INTERVAL_S, end - time.perf_counter())))
        return failures

    def close(self) -> None:
        while self._all:
            self._all.pop().close()

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY, vfs=self._vfs)
        self._all.append(connection)
        return connection


def _newest_beat(connection: apsw.Connection) -> int | None:
    try:
        return int(connection.execute(BEAT_QUERY).get)
    except apsw.Error:
        return None


def _load_vfs() -> None:
    connection = apsw.Connection(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(litestream_vfs.loadable_path())


def main(kind: str, target: str) -> None:
    """Serve requests from standard input."""
    if kind == "vfs":
        if os.environ.get(VFS_URL) != target:
            # the extension sees the environment only as it was when the process began
            environment = os.environ | {VFS_URL: target, "LITESTREAM_LOG_FILE": os.devnull}
            os.execve(sys.executable, [sys.executable, "-m", "benchmarks.client", kind, target], environment)
        _load_vfs()
        connections = _Connections("replica.db", vfs="litestream")
    else:
        connections = _Connections(target, vfs=None)
    print("ready", flush=True)
    for line in sys.stdin:
        operation, *arguments = json.loads(line)
        try:
            answer = {"answer": getattr(connections, operation)(*arguments)}
        except apsw.Error as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), flush=True)
    connections.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
