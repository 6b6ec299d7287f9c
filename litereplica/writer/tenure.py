"""The right to publish: when the writer asks for the lease, keeps it and gives it back.

With a lease, nothing is published unless it is held, and it is renewed in time while a file is being made or sent.
Nothing else renews it: that of an idle writer lapses, and is taken again with the next change, without a request in
between. Without one, everything may be published at any time; what keeps two writers apart then is only that no file is
ever put in another's place.
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

from litereplica.errors import ConflictError, DamagedFile, LeaseHeld, StorageError, TransientStorageError
from litereplica.ltxstore.conditions import require_conditions
from litereplica.ltxstore.lease import Identity, Lease, Moment, ReplicaLease
from litereplica.storage.base import Storage

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


class Tenure:
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

    async def end(self) -> None:
        """Give the right back."""

    def lease(self) -> Lease | None:
        """The lease while it is held."""
        return None


class LeasedTenure(Tenure):
    """The right to publish, of a writer that holds the lease. `waits`: it stands by while another has it."""

    def __init__(self, lease: ReplicaLease, storage: Storage, *, waits: bool) -> None:
        self._lease = lease
        self._storage = storage
        self._waits = waits
        self._conditions_hold = False

    async def stand_by(self, stop: trio.Event) -> None:
        told = ""
        while self._waits and not stop.is_set():
            wait_s = STAND_BY_INTERVAL_S
            try:
                await self.begin()
                return
            except LeaseHeld as held:
                wait_s = min(wait_s, max(held.left_s, 0.0))
                reason, news = held.owner, held.message
            except TransientStorageError as exc:
                reason = news = exc.message
            if reason != told:
                log.info("standing by: %s", news)
                told = reason
            with trio.move_on_after(wait_s):
                await stop.wait()

    async def begin(self) -> None:
        if not self._conditions_hold:
            await require_conditions(self._storage)
            self._conditions_hold = True
        await self._lease.ensure()
        self._lease.interrupted = False

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        await self._lease.ensure()
        async with self._renewed():
            yield

    async def put(self, put: Callable[[], Awaitable[None]], *, verify: Callable[[], Awaitable[None]]) -> None:
        async def put_renewed() -> None:
            async with self._renewed():
                await put()

        await self._lease.put(put_renewed, verify=verify)

    async def end(self) -> None:
        with trio.move_on_after(END_LIMIT_S):
            try:
                await self._lease.release()
            except (StorageError, DamagedFile) as exc:
                log.warning("the lease was not given back, and expires: %s", exc)

    def lease(self) -> Lease | None:
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


def open_tenure(storage: Storage, mode: LeaseMode, *, writer_id: Callable[[], str]) -> Tenure:
    """The right to publish to the replica at the root of `storage`. Makes no request.

    `writer_id` gives what tells this writer from others, the same after a restart.
    """
    if mode is LeaseMode.OFF:
        return Tenure()
    identity = Identity(f"{socket.gethostname()}:{os.getpid()}", writer_id())
    lease = ReplicaLease(storage, identity, now=now, lock=trio.Lock())
    return LeasedTenure(lease, storage, waits=mode is LeaseMode.WAIT)


def now() -> Moment:
    """By this machine's clocks."""
    return Moment(time.time_ns() // 1_000_000, time.monotonic())
