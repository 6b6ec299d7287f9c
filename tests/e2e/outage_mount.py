"""A mount in this process whose readers wait for the store no longer than they are told.

    python -m tests.e2e.outage_mount URL DIR READ_TIMEOUT_S

It prints `ready`, and ends on SIGTERM.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from litereplica.fuse import mount
from litereplica.fuse.session import MountOptions
from litereplica.ltxstore.store import open_ltx_store
from litereplica.replica.database import Replica, open_replica

POLL_INTERVAL_S = 0.2


@asynccontextmanager
async def opened(url: str, read_timeout_s: float) -> AsyncIterator[Replica]:
    store = open_ltx_store(url)
    try:
        async with open_replica(store, read_timeout_s=read_timeout_s) as replica:
            yield replica
    finally:
        await store.aclose()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = MountOptions(url=sys.argv[1], path=Path(sys.argv[2]), name="app.db", poll_interval_s=POLL_INTERVAL_S)
    trio.run(mount.serve, options, opened(sys.argv[1], float(sys.argv[3])), lambda: print("ready", flush=True))
