"""Publishing one database of a fleet at once, and waiting for a TXID; whether it is open, parked or waiting."""

from __future__ import annotations

import trio

from litereplica.types import TXID
from litereplica.writer.database.parked import changed
from litereplica.writer.fleet.managed_database import ManagedDatabase
from litereplica.writer.fleet.supervisor import Supervisor


async def sync(fleet: Supervisor, member: ManagedDatabase) -> TXID:
    """Publish everything that was committed before this call, and return the TXID that has it. Waits without limit.

    A parked database that has not changed costs two calls of stat(2).
    """
    request = member.syncs.add()
    parked = member.parked
    if parked is not None:
        look = [(str(member.path), parked)]
        if not await trio.to_thread.run_sync(changed, look, abandon_on_cancel=True):
            member.syncs.settle(request, parked.txid)
        elif member.parked is parked and member.closed.is_set() and not member.stop.is_set():
            fleet.wake(member)
    await request.done.wait()
    return request.txid


async def until_published(fleet: Supervisor, member: ManagedDatabase, txid: TXID) -> TXID:
    """Return the newest published TXID once it is at least `txid`. Publishes at once. Waits without limit."""
    if member.statistics().txid < txid:
        await sync(fleet, member)
    while (newest := member.statistics().txid) < txid:
        await member.published.wait()
    return newest
