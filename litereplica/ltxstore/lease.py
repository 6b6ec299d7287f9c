"""The lease of a replica: who may publish to it, as one small object that is replaced by compare-and-swap.

`lock.json` below the replica's root is what Litestream's lease library reads and writes:

    {"generation": 3, "expires_at": "2026-01-02T03:04:05.678Z", "owner": "host:4711", "id": "9f…"}

`id` is our addition, which Litestream ignores: it identifies a writer across restarts, as a host name and a process
number cannot.

    no lease                          put with If-None-Match: *
    expired, or our own               put with If-Match: its etag, and the next generation
    held by us, soon to expire        put with If-Match: its etag, and the same generation
    held by another writer            refused
    released                          conditional delete
    not a lease, or with an expiry    read again; if its etag has not changed for `LONGEST_TERM_S` by this machine's
    that no writer gives              monotonic clock, no writer renews it: put with If-Match, and the next generation

Invariants: each write and delete is conditional on the etag that was read or written before, so of two writers that
decide at the same time one is refused; after a refusal the object is read again. While the lease is ours and valid, no
writer whose clock agrees with ours acquires it. Correctness does not depend on that: every put is conditional, because
a writer may be suspended between the check of its lease and the effect of its put.

One lease may cover several databases, whose replicas are below its root. Each has its own `Publication`: in a new epoch
each must read what another writer may have published to its replica.

`acquire` and `renew` are pure: they decide by the lease that was read and the time. `ReplicaLease` carries their
decisions out; it has no task, and waits for the store, and to see whether a lease is abandoned. `lease_record` is the
format; `conditions` probes whether the store honours conditions.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import trio

from litereplica.errors import (
    ConflictError,
    DamagedFile,
    LeaseHeld,
    LeaseLost,
    NotFound,
    PreconditionFailed,
    StorageError,
    TransientStorageError,
)
from litereplica.ltxstore.lease_record import LATEST_MS, LOCK_KEY, MAX_LEASE_BYTES, Lease
from litereplica.storage.base import ByteRange, Storage
from litereplica.times import format_time

log = logging.getLogger(__name__)

TERM_MS = 30_000
"""Litestream's value: a standby takes over half a minute after a writer was killed."""
LONGEST_TERM_S = 30.0
"""The longest term that any version of litereplica or Litestream writes."""
IMPLAUSIBLE_MS = 300_000
"""An expiry that is further away than this is the result of a wrong clock: it leaves room for clocks that differ."""
WATCH_LOOKS = 6
"""How often a lease that may be abandoned is looked at in this time."""
REREAD_DELAY_S = 0.25
"""Before a lease that could not be decoded is read again: it may have been damaged in transit."""
RENEW_BEFORE_MS = 20_000
"""The lease is renewed when less than this is left: one small request every 10 s while publishing, and time for an
outage of 20 s."""
MAX_ATTEMPTS = 4
"""Attempts to acquire the lease: one fails only if another writer was faster."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The time by two clocks. A lease is valid while it is by both.

    `wall_ms` (since the epoch) is what writers agree on; `steady_s` is monotonic, but may stop while the machine is
    suspended.
    """

    wall_ms: int
    steady_s: float


@dataclass(frozen=True, slots=True)
class Identity:
    """A writer. `owner` is its name for people; `id` identifies it, is never empty, and is kept over restarts."""

    owner: str
    id: str


@dataclass(frozen=True, slots=True)
class Found:
    """The lease in the store, and its etag. With `damage` it could not be decoded; `lease` is one without an end."""

    lease: Lease
    etag: str
    damage: DamagedFile | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """The lease of this writer. `until_s` is its end by the steady clock."""

    lease: Lease
    etag: str
    until_s: float

    def left_ms(self, now: Moment) -> float:
        """Milliseconds until the lease expires; 0 or less if it has."""
        return min(self.lease.expires_ms - now.wall_ms, (self.until_s - now.steady_s) * 1000)


@dataclass(frozen=True, slots=True)
class Write:
    """A lease to write if the object has this etag; with etag None, if there is no object."""

    lease: Lease
    etag: str | None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Another writer holds this lease."""

    lease: Lease


def acquire(found: Found | None, me: Identity, *, generation: int, now: Moment) -> Write | Refuse:
    """Decide how a writer without the lease acquires it.

    `found` is the lease that was read, `generation` the newest one that this writer knows.
    """
    if found is None:
        return Write(_granted(me, generation + 1, now), None)
    if found.lease.id != me.id and now.wall_ms < found.lease.expires_ms:
        return Refuse(found.lease)
    return Write(_granted(me, max(found.lease.generation, generation) + 1, now), found.etag)


def renew(held: Held, me: Identity, *, now: Moment) -> Write | None:
    """Decide how the holder renews the lease; None if that is not due.

    An expired lease is written with the next generation, which succeeds if no other writer has written since.
    """
    left_ms = held.left_ms(now)
    if left_ms > RENEW_BEFORE_MS:
        return None
    return Write(_granted(me, held.lease.generation + (left_ms <= 0), now), held.etag)


class ReplicaLease:
    """The lease at the root of `storage`, for the writer `identity`.

    `epoch` is the fencing epoch: it grows whenever another writer may have held the lease since this one did. `lock`
    is needed if several tasks call.
    """

    def __init__(
        self,
        storage: Storage,
        identity: Identity,
        *,
        now: Callable[[], Moment],
        lock: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        self.epoch = 0
        self._storage = storage
        self._me = identity
        self._now = now
        self._lock = lock or nullcontext()
        self._held: Held | None = None
        self._generation = 0
        self._wrote = False  # True: `lock.json` may contain a lease of ours
        self._unsettled: set[Publication] = set()  # those with a put that may still take effect

    def held(self) -> Lease | None:
        """The lease, while it is ours and valid."""
        return self._held.lease if self._held is not None and self._held.left_ms(self._now()) > 0 else None

    def renewal_due_s(self) -> float:
        """Seconds until the lease must be renewed; 0 if that is due, or if the lease is not held."""
        return 0.0 if self._held is None else max(0.0, (self._held.left_ms(self._now()) - RENEW_BEFORE_MS) / 1000)

    async def ensure(self) -> None:
        """Acquire or renew the lease unless it is valid for `RENEW_BEFORE_MS` or longer; then no request is made.

        It can be called again after an error.

        Raises:
            LeaseHeld: another writer holds it.
            LeaseLost: another writer has acquired it since this one held it.
            DamagedFile: `lock.json` is not a lease, and was written while this writer waited.
            StorageError: a request failed.
        """
        async with self._lock:
            if self._held is not None:
                due = renew(self._held, self._me, now=self._now())
                if due is None or await self._write(due):
                    return
            await self._acquire()

    async def release(self) -> None:
        """Delete `lock.json` so that the next writer need not wait. Raises the errors of the store.

        Does so only if it contains our lease, and no put of ours can still take effect.
        """
        async with self._lock:
            held, self._held = self._held, None
            if self._wrote and not self._unsettled and await self._delete_ours(held):
                self._wrote = False
                log.info("released the lease of %s", self._storage.url)

    def settle(self, publication: Publication, *, settled: bool) -> None:
        """Record whether every put of this publication is known to have ended."""
        (self._unsettled.discard if settled else self._unsettled.add)(publication)

    async def _acquire(self) -> None:
        for _ in range(MAX_ATTEMPTS):
            found = await self._read()
            step = acquire(found, self._me, generation=self._generation, now=self._now())
            if found is not None and isinstance(step, Refuse):
                if not await self._is_abandoned(found):
                    raise found.damage or self._refused(step.lease)
                expired = replace(found, lease=replace(found.lease, expires_ms=0))
                step = acquire(expired, self._me, generation=self._generation, now=self._now())
            assert isinstance(step, Write)
            if found is None or found.lease.id != self._me.id:
                self.epoch += 1
            if await self._write(step):
                log.info(
                    "holding the lease of %s as %s, generation %d%s",
                    self._storage.url, self._me.owner, step.lease.generation, _predecessor(found, self._me),
                )  # fmt: skip
                return
        raise ConflictError(
            f"several writers contend for the lease of {self._storage.url}", hint="leave one of them running"
        )

    async def _read(self) -> Found | None:
        found = await self._read_once()
        if found is not None and found.damage is not None:
            await trio.sleep(REREAD_DELAY_S)
            found = await self._read_once()
        return found

    async def _read_once(self) -> Found | None:
        try:
            blob = await self._storage.get(LOCK_KEY, ByteRange(0, MAX_LEASE_BYTES + 1))
        except NotFound:
            return None
        try:
            return Found(Lease.decode(blob.data), blob.etag)
        except DamagedFile as exc:
            return Found(Lease(0, LATEST_MS, ""), blob.etag, exc)

    async def _is_abandoned(self, found: Found) -> bool:
        """True if the lease has an expiry that no writer gives it, and nobody writes it for `LONGEST_TERM_S`."""
        if not found.etag or found.lease.expires_ms - self._now().wall_ms <= IMPLAUSIBLE_MS:
            return False
        what = found.damage.reason if found.damage else f"it expires at {format_time(found.lease.expires_ms)}"
        log.warning(
            "%s of %s may be abandoned (%s): it is replaced if nobody renews it within %.0f s",
            LOCK_KEY, self._storage.url, what, LONGEST_TERM_S,
        )  # fmt: skip
        for _ in range(WATCH_LOOKS):
            await trio.sleep(LONGEST_TERM_S / WATCH_LOOKS)
            now = await self._read_once()
            if now is None or now.etag != found.etag:
                return False
        return True

    async def _write(self, step: Write) -> bool:
        """Returns True if the write took effect. The term runs from before the request."""
        until_s = self._now().steady_s + TERM_MS / 1000
        self._wrote = True
        try:
            if step.etag is None:
                etag = await self._storage.put_if_absent(LOCK_KEY, step.lease.encode())
            else:
                etag = await self._storage.put_if_match(LOCK_KEY, step.lease.encode(), step.etag)
        except PreconditionFailed:
            self._held = None
            return False
        self._held = Held(step.lease, etag, until_s)
        self._generation = step.lease.generation
        return True

    async def _delete_ours(self, held: Held | None) -> bool:
        if held is not None and await self._delete(held.etag):
            return True
        found = await self._read()  # a renewal may have taken effect whose answer we do not have
        return found is not None and found.lease.id == self._me.id and await self._delete(found.etag)

    async def _delete(self, etag: str) -> bool:
        try:
            await self._storage.delete_if_match(LOCK_KEY, etag)
        except PreconditionFailed:
            return False
        return True

    def _refused(self, lease: Lease) -> LeaseHeld | LeaseLost:
        facts: dict[str, Any] = {
            "owner": lease.owner,
            "generation": lease.generation,
            "left_s": (lease.expires_ms - self._now().wall_ms) / 1000,
        }
        whose = (
            f"{lease.owner or 'another writer'} (generation {lease.generation}) until {format_time(lease.expires_ms)}"
        )
        if self._generation:
            message = f"the lease of {self._storage.url} was lost: it is held by {whose}"
            return LeaseLost(message, hint="stop one of the writers", **facts)
        message = f"{self._storage.url} is leased to {whose}, {facts['left_s']:.0f} s from now"
        return LeaseHeld(message, hint="stop that writer, or add --wait-lease to take over when it ends", **facts)


class Publication:
    """Publishes one database below the root of `lease`."""

    def __init__(self, lease: ReplicaLease) -> None:
        self._lease = lease
        self.known_epoch = 0  # the epoch in which this replica was last read

    @property
    def interrupted(self) -> bool:
        """True if another writer may have published to this replica since it was read."""
        return self._lease.epoch != self.known_epoch

    async def resume(self) -> bool:
        """Acquire the lease, before the replica is read. Returns True if another writer may have published before.

        Raises the errors of `ReplicaLease.ensure`.
        """
        await self._lease.ensure()
        interrupted = self.interrupted
        self.known_epoch = self._lease.epoch
        return interrupted

    async def put(self, put: Callable[[], Awaitable[None]], *, verify: Callable[[], Awaitable[None]]) -> None:
        """Publish with `put`, which must be conditional, while the lease is held.

        In a new epoch `verify` is awaited first, which raises if another writer has published. Raises the errors of
        `verify`, `put` and `ReplicaLease.ensure`.
        """
        await self._lease.ensure()
        while self.interrupted:
            epoch = self._lease.epoch
            await verify()
            self.known_epoch = epoch
            await self._lease.ensure()
        self._lease.settle(self, settled=False)
        try:
            await put()
        except TransientStorageError:
            raise
        except StorageError:
            self._lease.settle(self, settled=True)
            raise
        self._lease.settle(self, settled=True)


def _granted(me: Identity, generation: int, now: Moment) -> Lease:
    return Lease(generation, now.wall_ms + TERM_MS, me.owner, me.id)


def _predecessor(found: Found | None, me: Identity) -> str:
    """The previous holder of the lease, for the log."""
    if found is None:
        return ""
    return "; it was ours" if found.lease.id == me.id else f"; that of {found.lease.owner or 'another'} has expired"
