"""Keeps the lease of a replica: acquires it, renews it while files are made and sent, and releases it.

    LeaseKeeper     the interface for the writer of one database; the base class needs no lease
    NoLease         the keeper of a writer without a lease; checks once whether the store honours If-None-Match
    RootLease       the lease of a root, shared by all databases below it
    DatabaseLease   the keeper of one database below a `RootLease`

With a lease, a file is put only while the lease is held, and the lease is renewed while a file is being made or sent.
It is not renewed otherwise: the lease of an idle writer expires without a request, and is acquired again with the next
change. Without a lease, two writers are kept apart only by the condition that no put replaces a file.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import Enum

import trio

from litereplica.errors import (
    ConditionsIgnored,
    ConflictError,
    DamagedFile,
    LeaseHeld,
    StorageError,
    TransientStorageError,
)
from litereplica.ltxstore.conditions import require_conditions, require_exclusive_create
from litereplica.ltxstore.lease import Identity, Moment, Publication, ReplicaLease
from litereplica.ltxstore.lease_record import Lease
from litereplica.storage.base import Storage
from litereplica.times import wall_clock_ms

log = logging.getLogger(__name__)

STAND_BY_INTERVAL_S = 5.0
"""Between attempts of a standby, one small request each."""
RENEWAL_RETRY_S = 1.0
"""Delay after a failed renewal, which the storage client has already retried."""
END_LIMIT_S = 3.0
"""Time limit for releasing the lease: service managers wait for 10 s or more, part of which publishing has taken."""


class LeaseMode(Enum):
    """How a writer uses the lease."""

    OFF = "off"
    HOLD = "hold"  # fails while another writer holds it
    WAIT = "wait"  # stands by while another writer holds it


class LeaseKeeper:
    """The interface of lease keepers, for the writer of one database. This base class needs no lease."""

    async def stand_by(self, stop: trio.Event) -> None:
        """Return once no other writer holds the lease, or `stop` is set."""

    @property
    def waits(self) -> bool:
        """True if this is the lease of a standby."""
        return False

    async def begin(self) -> None:
        """Acquire the lease, before the replica is read. May be called again.

        Raises:
            LeaseHeld: another writer holds it.
            ConditionsIgnored: the store ignores conditional requests.
            StorageError: a request failed.
        """

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Hold the lease during the block, which makes or sends a file and may take long. Raises `LeaseLost`."""
        yield

    async def put(self, put: Callable[[], Awaitable[None]], *, verify: Callable[[], Awaitable[None]]) -> None:
        """Publish with `put`, while the lease is held.

        If another writer may have published since the last put, await `verify` first, which raises if one has.
        """
        await put()

    def has_taken_over(self) -> bool:
        """True if another writer may have published before this standby acquired the lease."""
        return False

    def epoch(self) -> int:
        """The fencing epoch: it grows whenever another writer may have held the lease in between."""
        return 0

    def known_epoch(self) -> int:
        """The epoch in which this database's replica was last read."""
        return 0

    def creates_exclusively(self) -> bool:
        """False if the store ignores If-None-Match, so that a put must check first that the name is free."""
        return True

    async def end(self) -> None:
        """Release the lease."""

    def held(self) -> Lease | None:
        """The lease, while it is held."""
        return None


class NoLease(LeaseKeeper):
    """The keeper of a writer without a lease. Logs once if the store does not honour conditional requests."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._probed = False
        self._exclusive = True

    async def begin(self) -> None:
        if self._probed:
            return
        try:
            await require_exclusive_create(self._storage)
        except ConditionsIgnored as exc:
            self._exclusive = False
            log.warning("%s; a second writer would overwrite the files of this one: run only one", exc.message)
        self._probed = True

    def creates_exclusively(self) -> bool:
        return self._exclusive


class RootLease(ReplicaLease):
    """The lease of a root, shared by all databases below it. `waits`: stand by while another writer holds it."""

    def __init__(
        self, storage: Storage, identity: Identity, *, waits: bool, now: Callable[[], Moment] | None = None
    ) -> None:
        super().__init__(storage, identity, now=now or clocks, lock=trio.Lock())
        self.waits = waits
        self._storage = storage
        self._conditions_hold = False
        self._probing = trio.Lock()
        self._standing_by = trio.Lock()
        self._logged = ""

    async def require_conditions(self) -> None:
        """Probe the store once. Raises `ConditionsIgnored`."""
        async with self._probing:
            if not self._conditions_hold:
                await require_conditions(self._storage)
                self._conditions_hold = True

    async def stand_by(self, stop: trio.Event) -> None:
        """As `LeaseKeeper.stand_by`. If several databases wait, one at a time tries to acquire the lease."""
        while self.waits and not stop.is_set():
            async with self._standing_by:
                wait_s = await self._try_to_acquire()
                if wait_s is None:
                    return
                with trio.move_on_after(wait_s):
                    await stop.wait()

    async def end(self) -> None:
        """Release the lease; it expires if that fails."""
        with trio.move_on_after(END_LIMIT_S):
            try:
                await self.release()
            except (StorageError, DamagedFile) as exc:
                log.warning("cannot release the lease, which will expire: %s", exc)

    async def _try_to_acquire(self) -> float | None:
        """Return None if the lease is held now, else the seconds until the next attempt."""
        wait_s = STAND_BY_INTERVAL_S
        try:
            await self.require_conditions()
            await self.ensure()
            return None
        except LeaseHeld as held:
            wait_s = min(wait_s, max(held.left_s, 0.0))
            reason, message = held.owner, held.message
        except TransientStorageError as exc:
            reason = message = exc.message
        if reason != self._logged:
            log.info("standing by: %s", message)
            self._logged = reason
        return wait_s


class DatabaseLease(LeaseKeeper):
    """The keeper of one database below `root`. `owns`: `end` releases the lease of the root."""

    def __init__(self, root: RootLease, *, owns: bool = True) -> None:
        self._root = root
        self._owns = owns
        self._publication = Publication(root)
        self._taken_over = False

    async def stand_by(self, stop: trio.Event) -> None:
        await self._root.stand_by(stop)

    @property
    def waits(self) -> bool:
        return self._root.waits

    async def begin(self) -> None:
        await self._root.require_conditions()
        self._taken_over |= await self._publication.resume()

    def has_taken_over(self) -> bool:
        return self._root.waits and self._taken_over

    def epoch(self) -> int:
        return self._root.epoch

    def known_epoch(self) -> int:
        return self._publication.known_epoch

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        await self._root.ensure()
        async with self._renewed():
            yield

    async def put(self, put: Callable[[], Awaitable[None]], *, verify: Callable[[], Awaitable[None]]) -> None:
        async def put_renewed() -> None:
            async with self._renewed():
                await put()

        await self._publication.put(put_renewed, verify=verify)

    async def end(self) -> None:
        if self._owns:
            await self._root.end()

    def held(self) -> Lease | None:
        return self._root.held()

    @asynccontextmanager
    async def _renewed(self) -> AsyncIterator[None]:
        """Renew the lease when due during the block, and cancel the block if the lease is lost.

        A cancelled renewal may still take effect: the next one then finds our own lease with other content.
        """
        errors: list[Exception] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew, nursery.cancel_scope, errors)
            try:
                yield
            except Exception as exc:
                errors.append(exc)
            nursery.cancel_scope.cancel()
        if errors:
            raise errors[0]

    async def _renew(self, block: trio.CancelScope, errors: list[Exception]) -> None:
        while True:
            await trio.sleep(self._root.renewal_due_s())
            try:
                await self._root.ensure()
            except StorageError as exc:
                log.warning("cannot renew the lease: %s", exc)
                await trio.sleep(RENEWAL_RETRY_S)
            except (ConflictError, DamagedFile) as exc:
                errors.append(exc)
                block.cancel()


def open_root_lease(storage: Storage, *, writer_id: str, waits: bool) -> RootLease:
    """The lease at the root of `storage`. Makes no request. `writer_id` is the same after a restart of this writer."""
    return RootLease(storage, Identity(f"{socket.gethostname()}:{os.getpid()}", writer_id), waits=waits)


def open_lease_keeper(storage: Storage, mode: LeaseMode, *, writer_id: Callable[[], str]) -> LeaseKeeper:
    """The keeper for a single database at the root of `storage`, with its own lease unless `mode` is OFF."""
    if mode is LeaseMode.OFF:
        return NoLease(storage)
    return DatabaseLease(open_root_lease(storage, writer_id=writer_id(), waits=mode is LeaseMode.WAIT))


def clocks() -> Moment:
    """The present by this machine's clocks."""
    return Moment(wall_clock_ms(), time.monotonic())
