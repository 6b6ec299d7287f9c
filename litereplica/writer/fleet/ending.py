"""Ends databases of a fleet: what they have committed is published first, also by those that were parked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from litereplica.writer.database.parked import changed, may_exist
from litereplica.writer.fleet.managed_database import ManagedDatabase
from litereplica.writer.sync_requests import SyncRequest


async def finish(members: Sequence[ManagedDatabase], wake: Callable[[ManagedDatabase], None] | None) -> None:
    """Stop the databases, and wait until each has published its remaining transactions and is closed.

    `wake` opens a parked database; None if no tasks can be started any more. Those that have changed since they were
    last looked at have the time of a stop to publish that.
    """
    parked = [each for each in members if each.parked is not None]
    for member in members:
        if member.parked is None:
            member.stop.set()
    try:
        if wake is not None and parked:
            await _publish_parked(parked, wake)
    finally:
        for member in members:
            member.stop.set()
    for member in members:
        await member.closed.wait()
        await member.aclose()


async def _publish_parked(parked: Sequence[ManagedDatabase], wake: Callable[[ManagedDatabase], None]) -> None:
    """Publish what parked databases have committed, as far as the time of a stop allows."""
    requests: list[tuple[ManagedDatabase, SyncRequest]] = []
    with trio.move_on_after(max(member.settings.stop_limit_s for member in parked)):
        for member in await trio.to_thread.run_sync(_changed, parked, abandon_on_cancel=True):
            requests.append((member, member.syncs.add()))
            if member.closed.is_set():
                wake(member)
        for _, request in requests:
            await request.done.wait()
    for member, request in requests:
        if not request.done.is_set():
            member.note_unpublished(member.error or "out of time")


def _changed(parked: Sequence[ManagedDatabase]) -> list[ManagedDatabase]:
    """Those that have changed, or that cannot be looked at; not those that are gone. Blocks."""
    looks = [(str(each.path), each.parked) for each in parked if each.parked is not None]
    found = set(changed(looks))
    return [each for each in parked if str(each.path) in found and may_exist(each.path)]
