"""A mount in this process that loses its patience quickly when nobody has a file open.

    python -m tests.e2e.idle_mount URL DIR

It prints `ready`, and ends on SIGTERM.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from litereplica.fuse import live_service, mount
from litereplica.fuse.options import MountOptions
from litereplica.ltxstore.store import open_ltx_store
from litereplica.replica import poll_schedule
from litereplica.replica.database import Replica, open_replica

PAUSE_AFTER_S = 0.4


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Replica]:
    store = open_ltx_store(url)
    try:
        async with open_replica(store) as replica:
            yield replica
    finally:
        await store.aclose()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    poll_schedule.GRACE_S, live_service.PAUSE_AFTER_S = 0.2, PAUSE_AFTER_S  # type: ignore[attr-defined]  # a name that it imports
    options = MountOptions(url=sys.argv[1], path=Path(sys.argv[2]), name="app.db", poll_interval_s=0.05)
    trio.run(mount.serve, options, opened(sys.argv[1]), lambda: print("ready", flush=True))
