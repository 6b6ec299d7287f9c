"""Count the functions of litereplica that one operation enters, and how often it moves from file to file.

Prints a table with one row for each operation:

cached read  4 KiB of the live database, which the page store holds in memory
cold read    the same from the store: one ranged GET, its block decoded
advance      a poll that finds one new level 0 file, and its pages applied to the live database
commit       one committed transaction published under a lease, and the WAL checkpointed
restore      the whole database written to a file

functions: different functions entered. Comprehensions, generator expressions and lambdas do not count.
switches:  pairs of consecutive entries that lie in different files. Resuming a coroutine counts as an entry.

The store is a dictionary in memory and the kernel is an object that does nothing, so both numbers are about this
package alone: calls into other packages do not count. Worker threads count like the event loop's thread.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType

import trio

import litereplica
from litereplica.format.names import Layout
from litereplica.fuse.kernel_cache import LiveFile, Store
from litereplica.fuse.live import LiveDatabase
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.database import open_replica
from litereplica.restore.restore import restore
from litereplica.testing.memory import MemoryStorage
from litereplica.writer.publish.lease_keeper import LeaseMode
from litereplica.writer.replicator import Replicator, open_replicator
from litereplica.writer.replicator_options import ReplicatorOptions

PACKAGE = os.path.dirname(litereplica.__file__) + os.sep  # noqa: PTH120  # compared with code objects' file names
ROWS, ROW_SIZE = 20, 20_000
"""About 400 KiB: more than one block, and more than the 256 KiB from which frame checksums lie beside a file."""
PAGE_SIZE = 4096
READ_OFFSET = 2 * PAGE_SIZE


@dataclass(slots=True)
class Hops:
    """The code objects that were entered, in order."""

    entered: list[CodeType] = field(default_factory=list)

    @property
    def functions(self) -> int:
        """Number of distinct functions entered."""
        return len(set(self.entered))

    @property
    def switches(self) -> int:
        """Number of switches between files."""
        return sum(before.co_filename != after.co_filename for before, after in pairwise(self.entered))


class Profiler:
    """Notes entries of all threads that start after `install`, while an operation is being counted."""

    def __init__(self) -> None:
        self._current: Hops | None = None
        self.counted: dict[str, Hops] = {}

    def install(self) -> None:
        """Begin to profile this thread and those started later."""
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    @contextmanager
    def counting(self, name: str) -> Iterator[None]:
        """Count entries during the block under `name`."""
        self._current = self.counted[name] = Hops()
        try:
            yield
        finally:
            self._current = None

    def _note(self, frame: FrameType, event: str, _arg: object) -> None:
        code, current = frame.f_code, self._current
        if current is None or event != "call" or code.co_name.startswith("<"):
            return
        if code.co_filename.startswith(PACKAGE):
            current.entered.append(code)


class NoKernel:
    """A `KernelCache` that caches nothing."""

    async def store(self, stores: Iterable[Store]) -> None:
        """Do nothing."""
        for _ in stores:  # the caller may produce them on the way
            pass

    async def invalidate(self, file: LiveFile) -> None:
        """Do nothing."""
        pass


def make_database(path: Path) -> sqlite3.Connection:
    """A WAL database of some 400 KiB, and the connection that made it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA page_size={PAGE_SIZE}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t(x)")
    for _ in range(ROWS):
        insert(connection)
    return connection


def insert(connection: sqlite3.Connection) -> None:
    """Commit one transaction of six pages."""
    connection.execute("INSERT INTO t VALUES (randomblob(?))", (ROW_SIZE,))


async def count_all(profiler: Profiler, directory: Path) -> None:
    """Count each operation once; `directory` is empty."""
    connection = make_database(directory / "app.db")
    storage = MemoryStorage()
    store = LTXStore(storage, Layout.S3)
    async with open_replicator(directory / "app.db", store, ReplicatorOptions(lease=LeaseMode.HOLD)) as replicator:
        await replicator.publish_once()
        await count_reader(profiler, store, replicator, connection, directory / "app.db-shm-of-the-mount")
    connection.close()
    with profiler.counting("restore"):
        await restore(store, directory / "restored.db")


async def count_reader(
    profiler: Profiler, store: LTXStore, replicator: Replicator, connection: sqlite3.Connection, shm: Path
) -> None:
    """Count reads, and a commit on its way from the WAL to the live database."""
    async with open_replica(store) as replica:
        live = LiveDatabase(replica, NoKernel())
        with shm.open("w+b") as locks:
            await live.activate(locks.fileno())
            for name in ("cold read", "cached read"):
                with profiler.counting(name):
                    await live.read(LiveFile.DATABASE, READ_OFFSET, PAGE_SIZE)
            insert(connection)
            with profiler.counting("commit"):
                await replicator.publish_once()
            with profiler.counting("advance"):
                update = await replica.poll()
                assert update is not None
                await live.apply(update)


def main() -> None:
    """Count and print the hops of each operation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", metavar="OPERATION", help="print the functions that one operation enters, in order")
    options = parser.parse_args()
    profiler = Profiler()
    profiler.install()
    with tempfile.TemporaryDirectory() as directory:
        trio.run(count_all, profiler, Path(directory))
    sys.setprofile(None)
    if options.files is not None:
        if options.files not in profiler.counted:
            parser.error(f"no operation {options.files!r}: choose one of {', '.join(profiler.counted)}")
        for code in profiler.counted[options.files].entered:
            print(f"{code.co_filename.removeprefix(PACKAGE):40} {code.co_qualname}")
        return
    print(f"{'operation':12} {'functions':>9} {'switches':>9}")
    for name in ("cached read", "cold read", "advance", "commit", "restore"):
        hops = profiler.counted[name]
        print(f"{name:12} {hops.functions:9} {hops.switches:9}")


if __name__ == "__main__":
    main()
