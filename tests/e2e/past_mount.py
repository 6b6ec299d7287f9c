"""A mount in this process that keeps no page, and closes past states that are not used after a moment.

    python -m tests.e2e.past_mount URL DIR IDLE_S

It prints `ready`, and ends on SIGTERM.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import trio

from litereplica.fuse import at_tree
from litereplica.fuse.mount import serve
from litereplica.fuse.options import MountOptions
from litereplica.replica import past_snapshots
from tests.e2e.healing_mount import opened

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    idle_s = float(sys.argv[3])
    (at_tree.AtDirectory.__init__.__kwdefaults__ or {}).update(idle_s=idle_s, max_names=4)
    past_snapshots.LOST_FOR_S = 0.0
    options = MountOptions(url=sys.argv[1], path=Path(sys.argv[2]), name="app.db", poll_interval_s=0.02)
    trio.run(serve, options, opened(sys.argv[1]), lambda: print("ready", flush=True))
