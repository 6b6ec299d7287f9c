"""What a mount does with a backlog, in a process of its own: `python -m benchmarks.backlog_reader open|follow|list …`.

Prints JSON: seconds, seconds of CPU, and the peak of memory in bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Awaitable, Callable

import trio

from benchmarks.processes import peak_memory
from litereplica.fuse import mount  # what a mount has in memory in any case
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.replica.database import open_replica
from litereplica.replica.malloc_tuning import tune_allocator

assert mount


class Taken:
    """The time since it was made, or since `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin again."""
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def json(self) -> str:
        """What has been taken."""
        seconds, cpu_s = time.perf_counter() - self._started, time.process_time() - self._cpu
        return json.dumps({"s": seconds, "cpu_s": cpu_s, "memory": peak_memory(os.getpid())})


async def opened(store: LTXStore, taken: Taken) -> None:
    """Open the replica."""
    async with open_replica(store):
        print(taken.json())


async def follow(store: LTXStore, taken: Taken) -> None:
    """Apply every file after TXID 1."""
    async with open_replica(store, at=1) as replica:
        taken.restart()
        while await replica.poll() is not None:
            pass
        print(taken.json())


async def listed(store: LTXStore, taken: Taken) -> None:
    """List level 0, once the client has been made."""
    await store.list_level(1)
    taken.restart()
    await store.list_level(0)
    print(taken.json())


WORK: dict[str, Callable[[LTXStore, Taken], Awaitable[None]]] = {"open": opened, "follow": follow, "list": listed}


async def main(what: str, url: str) -> None:
    """Do one of `WORK`."""
    store = open_ltx_store(url)
    await WORK[what](store, Taken())
    await store.aclose()


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    tune_allocator()
    trio.run(main, sys.argv[1], sys.argv[2])
