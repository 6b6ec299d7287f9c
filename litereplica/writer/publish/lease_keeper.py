"""The right to publish: when the writer asks for the lease, keeps it and gives it back.

With a lease, nothing is published unless it is held, and it is renewed in time while a file is being made or sent.
Nothing else renews it: that of an idle writer lapses, and is taken again with the next change, without a request in
between. All databases below one root share a lease (`RootLease`), and each has a lease of its own. Without a lease,
everything may be published at any time; what keeps two writers apart then is only that no file is ever put in another's
place.
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
from litereplica.ltxstore.lease import Identity, Lease, Moment, Publication, ReplicaLease
from litereplica.storage.base import Storage
from litereplica.times import wall_clock_ms

log = logging.getLogger(__name__)

STAND_BY_INTERVAL_S = 5.0
"""Between looks of a standby, one small request each: a lease that was given back is taken so soon."""
RENEWAL_RETRY_S = 1.0
"""After a renewal that failed, when the store has been tried for long already."""
END_LIMIT_S = 3.0
"""For giving the lease back: service managers wait for 10 s and more, and publishing what was left came before."""


class LeaseMode(Enum):
    """What a writer does about the lease."""

    OFF = "off"
    HOLD = "hold"  # refused while another holds it
    WAIT = "wait"  # stands by while another holds it


class LeaseKeeper:
    """The right to publish, of a writer without a lease."""

    async def stand_by(self, stop: trio.Event) -> None:
        """Return when the right need not be waited for any longer, or `stop` is set."""

    async def begin(self) -> None:
        """Take the right; what is published already is read afterwards. May be called again.

        Raises `LeaseHeld`, `ConditionsIgnored`, and what the store raises.
        """

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """For a block that makes or sends a file, and may take long. Raises `LeaseLost`."""
        yield

    async def put(self, put: Callable[[], Awaitable[None]], *, verify: Callable[[], Awaitable[None]]) -> None:
        """Publish by `put`. When another may have published meanwhile, `verify` is called first: it raises if so."""
        await put()

    def has_taken_over(self) -> bool:
        """Is this a standby before whose turn another may have published, so that it must continue that one's work?"""
        return False

    def epoch(self) -> int:
        """How often another may have had the right since we had it before: what it did is not known here."""
        return 0

    def known_epoch(self) -> int:
        """The epoch behind which this database's replica was looked at."""
        return 0

    def creates_exclusively(self) -> bool:
        """Does the store refuse to put a file in another's place? If not, its name is to be looked at before."""
        return True

    async def end(self) -> None:
        """Give the right back."""

    def held(self) -> Lease | None:
        """The lease while it is held."""
        return None


class NoLease(LeaseKeeper):
    """The right to publish, of a writer without a lease. Once, it says what that means at a store that ignores
    conditions, or does not know them."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._asked = False
        self._exclusive = True

    async def begin(self) -> None:
        if self._asked:
            return
        try:
            await require_exclusive_create(self._storage)
        except ConditionsIgnored as exc:
            self._exclusive = False
            log.warning("%s; a second writer would overwrite what this one publishes: let none run", exc.message)
        self._asked = True

    def creates_exclusively(self) -> bool:
        return self._exclusive


class RootLease:
    """The lease of a root, for all databases below it. `waits`: a standby while another has it."""

    def __init__(self, lease: ReplicaLease, storage: Storage, *, waits: bool) -> None:
        self.lease = lease
        self.waits = waits
        self._storage = storage
        self._conditions_hold = False
        self._probing = trio.Lock()
        self._standing_by = trio.Lock()
        self._told = ""

    async def require_conditions(self) -> None:
        """The store is asked once. Raises `ConditionsIgnored`."""
        async with self._probing:
            if not self._conditions_hold:
                await require_conditions(self._storage)
                self._conditions_hold = True

    async def stand_by(self, stop: trio.Event) -> None:
        """As `LeaseKeeper.stand_by`; however many wait, one asks the store."""
        while self.waits and not stop.is_set():
            async with self._standing_by:
                wait_s = await self._try_to_take()
                if wait_s is None:
                    return
                with trio.move_on_after(wait_s):
                    await stop.wait()

    async def end(self) -> None:
        """Give the lease back."""
        with trio.move_on_after(END_LIMIT_S):
            try:
                await self.lease.release()
            except (StorageError, DamagedFile) as exc:
                log.warning("the lease was not given back, and expires: %s", exc)

    async def _try_to_take(self) -> float | None:
        """None when it is ours, else the seconds until the next attempt."""
        wait_s = STAND_BY_INTERVAL_S
        try:
            await self.require_conditions()
            await self.lease.ensure()
            return None
        except LeaseHeld as held:
            wait_s = min(wait_s, max(held.left_s, 0.0))
            reason, news = held.owner, held.message
        except TransientStorageError as exc:
            reason = news = exc.message
        if reason != self._told:
            log.info("standing by: %s", news)
            self._told = reason
        return wait_s


class DatabaseLease(LeaseKeeper):
    """The right to publish, of a database below a root whose lease is held. `owns` the lease: gives it back, too."""

    def __init__(self, shared: RootLease, *, owns: bool = True) -> None:
        self._shared = shared
        self._owns = owns
        self._lease = shared.lease
        self._publication = Publication(shared.lease)
        self._from_another = False  # the lease was not ours before we took it

    async def stand_by(self, stop: trio.Event) -> None:
        await self._shared.stand_by(stop)

    async def begin(self) -> None:
        await self._shared.require_conditions()
        self._from_another |= await self._publication.resume()

    def has_taken_over(self) -> bool:
        return self._shared.waits and self._from_another

    def epoch(self) -> int:
        return self._lease.epoch

    def known_epoch(self) -> int:
        return self._publication.known_epoch

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        await self._lease.ensure()
        async with self._renewed():
            yield

    async def put(self, put: Callable[[], Awaitable[None]], *, verify: Callable[[], Awaitable[None]]) -> None:
        async def put_renewed() -> None:
            async with self._renewed():
                await put()

        await self._publication.put(put_renewed, verify=verify)

    async def end(self) -> None:
        if not self._owns:
            return
        with trio.move_on_after(END_LIMIT_S):
            try:
                await self._lease.release()
            except (StorageError, DamagedFile) as exc:
                log.warning("the lease was not given back, and expires: %s", exc)

    def held(self) -> Lease | None:
        return self._lease.held()

    @asynccontextmanager
    async def _renewed(self) -> AsyncIterator[None]:
        """Renew when it is due, until the block is left, which is ended when the lease is lost.

        A renewal that is cut off may take effect: the next one then finds our own lease, of another content.
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
            await trio.sleep(self._lease.renewal_due_s())
            try:
                await self._lease.ensure()
            except StorageError as exc:
                log.warning("cannot renew the lease: %s", exc)
                await trio.sleep(RENEWAL_RETRY_S)
            except (ConflictError, DamagedFile) as exc:
                errors.append(exc)
                block.cancel()


def open_root_lease(storage: Storage, *, writer_id: str, waits: bool) -> RootLease:
    """The lease at the root of `storage`. Makes no request.

    `writer_id` is what tells this writer from others, the same after a restart.
    """
    identity = Identity(f"{socket.gethostname()}:{os.getpid()}", writer_id)
    return RootLease(ReplicaLease(storage, identity, now=now, lock=trio.Lock()), storage, waits=waits)


def open_lease_keeper(storage: Storage, mode: LeaseMode, *, writer_id: Callable[[], str]) -> LeaseKeeper:
    """The right to publish to the replica at the root of `storage`, with a lease of its own if it is to have one."""
    if mode is LeaseMode.OFF:
        return NoLease(storage)
    return DatabaseLease(open_root_lease(storage, writer_id=writer_id(), waits=mode is LeaseMode.WAIT))


def now() -> Moment:
    """By this machine's clocks."""
    return Moment(wall_clock_ms(), time.monotonic())
