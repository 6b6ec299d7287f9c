"""Watches parked databases with stat(), and reports those that have changed.

    may_park          of `FleetContext` (`fleet/limits.py`) decides whether a database has been idle for long enough
    Replicator        (`writer/replicator.py`) asks that, publishes and checkpoints what is left, and ends
    Parker            (`writer/parker.py`) records the state in which the database is left
    watch_parked      compares each parked database and its WAL with their records once in `LOOK_INTERVAL_S`
    Supervisor        reopens the databases that `watch_parked` reports: those, and the ones that have lost files

`writer/database/parked.py` defines the record of a parked database, and why it shows every change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from litereplica.writer.database.parked import changed
from litereplica.writer.fleet.managed_database import ManagedDatabase

LOOK_INTERVAL_S = 1.0
"""Between checks of a parked database, each of which costs two `stat` calls."""
LOOKS_AT_ONCE = 250
"""Databases checked in one call, which takes half a millisecond. The calls are spread over the interval."""


async def watch_parked(
    databases: Callable[[], Sequence[ManagedDatabase]], wake: Callable[[ManagedDatabase], None]
) -> None:
    """Call `wake` for each parked database that has changed or wants a snapshot. Never returns.

    A watcher has one worker thread: a file system that hangs stops only the watcher of its own directory.
    """
    limiter = trio.CapacityLimiter(1)
    while True:
        await _check_once(databases(), wake, limiter)


async def _check_once(
    databases: Sequence[ManagedDatabase], wake: Callable[[ManagedDatabase], None], limiter: trio.CapacityLimiter
) -> None:
    parked = [(str(each.path), each) for each in databases if each.parked is not None]
    parts = [parked[start : start + LOOKS_AT_ONCE] for start in range(0, len(parked), LOOKS_AT_ONCE)]
    for part in parts:
        looks = [(path, each.parked) for path, each in part if each.parked is not None]
        found = set(await trio.to_thread.run_sync(changed, looks, limiter=limiter, abandon_on_cancel=True))
        for path, each in part:
            if (path in found or each.wants_snapshot) and not each.stop.is_set() and each.closed.is_set():
                wake(each)
        await trio.sleep(LOOK_INTERVAL_S / len(parts))
    if not parts:
        await trio.sleep(LOOK_INTERVAL_S)
