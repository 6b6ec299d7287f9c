"""A mount in this process that lists its store often and keeps no page.

    python -m tests.e2e.healing_mount URL DIR [PUSH_LIMIT]

Listings are what a mount notices compaction by; the command makes one every half minute. With PUSH_LIMIT (bytes),
larger transactions are not pushed, and each is moved into the database file at once. It prints `ready`, and
ends on SIGTERM.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from litereplica.fuse import live
from litereplica.fuse.mount import serve
from litereplica.fuse.options import MountOptions
from litereplica.ltxstore.store import open_ltx_store
from litereplica.replica.database import Replica, open_replica

LIST_INTERVAL_S = 0.2


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Replica]:
    store = open_ltx_store(url)
    try:
        async with open_replica(store, memory_size=0, list_interval_s=LIST_INTERVAL_S) as replica:
            yield replica
    finally:
        await store.aclose()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if len(sys.argv) > 3:
        live.PUSH_LIMIT, live.IDLE_CHECKPOINT_S = int(sys.argv[3]), 0.0
    options = MountOptions(url=sys.argv[1], path=Path(sys.argv[2]), name="app.db", poll_interval_s=0.02)
    trio.run(serve, options, opened(sys.argv[1]), lambda: print("ready", flush=True))
