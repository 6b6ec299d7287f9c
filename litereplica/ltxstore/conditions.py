"""Probes whether a store honours conditional requests: some ignore them without an error.

A probe makes six small requests on a temporary object with a new name: three whose condition is not met, which must be
refused, and the same three with the condition met. A writer without a lease needs the first two only.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable

import trio

from litereplica.errors import (
    ConditionsIgnored,
    LiteReplicaError,
    NotFound,
    NotSupported,
    PreconditionFailed,
    StorageError,
    TransientStorageError,
)
from litereplica.storage.base import Storage

log = logging.getLogger(__name__)

PROBE_PREFIX = "lock-probe-"
WRONG_ETAG = '"00000000000000000000000000000000"'
"""An etag in the usual form that no object has."""
CLEANING_LIMIT_S = 5.0

HINT = (
    "use a store that honours conditional requests, or make sure that no other writer ever publishes there and add "
    "--no-lease, as two writers could overwrite each other's transactions"
)

_CREATE = "If-None-Match on a put"
_REPLACE = "If-Match on a put"
_DELETE = "If-Match on a delete"


async def require_conditions(storage: Storage) -> None:
    """Raise `ConditionsIgnored` unless the store honours every condition that a lease needs.

    Raises the other errors of the store as they are.
    """
    probe = _Probe(storage, PROBE_PREFIX + secrets.token_hex(8))
    clean = False
    try:
        await probe.run()
        clean = True
    finally:
        if not clean:
            await probe.remove()


async def require_exclusive_create(storage: Storage) -> None:
    """Raise `ConditionsIgnored` unless the store honours If-None-Match, on which a writer without a lease relies."""
    probe = _Probe(storage, PROBE_PREFIX + secrets.token_hex(8))
    try:
        await probe.create()
    finally:
        await probe.remove()


class _Probe:
    """The requests on the object `key`."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self._key = key
        self._etag = ""
        self._left = ""  # what is known of the object: nothing, "is left", or "may be left"

    async def run(self) -> None:
        """Make all six requests."""
        storage, key = self._storage, self._key
        await self.create()
        await self._must_fail(_REPLACE, storage.put_if_match(key, b"2", WRONG_ETAG))
        await self._must_fail(_DELETE, storage.delete_if_match(key, WRONG_ETAG))
        await self._must_succeed(_REPLACE, storage.put_if_match(key, b"3", self._etag))
        await self._must_succeed(_DELETE, storage.delete_if_match(key, self._etag))

    async def create(self) -> None:
        """Make the two requests with If-None-Match."""
        self._left = "may be left"
        try:
            await self._must_succeed(_CREATE, self._storage.put_if_absent(self._key, b"1"))
        except LiteReplicaError as exc:
            if not isinstance(exc, TransientStorageError):
                self._left = ""
            raise
        self._left = "is left"
        await self._must_fail(_CREATE, self._storage.put_if_absent(self._key, b"2"))

    async def remove(self) -> None:
        """Delete the object, if it was put or may have been."""
        if not self._left:
            return
        with trio.move_on_after(CLEANING_LIMIT_S, shield=True):
            try:
                await self._storage.delete([self._key])
            except StorageError as exc:
                log.warning("%s %s in %s: %s", self._key, self._left, self._storage.url, exc)

    async def _must_succeed(self, condition: str, request: Awaitable[str | None]) -> None:
        try:
            self._etag = await request or ""
        except PreconditionFailed as exc:
            if condition != _CREATE:
                await self._require_there()
            raise self._error(f"refuses {condition} although the condition is met") from exc
        except NotSupported as exc:
            raise self._error(f"does not support {condition}") from exc

    async def _require_there(self) -> None:
        """Raise `TransientStorageError` unless the object that was put is there as it was: the store forgets."""
        try:
            if (await self._storage.head(self._key)).etag == self._etag:
                return
        except NotFound:
            pass
        raise TransientStorageError(f"{self._storage.url} does not show {self._key}, which was just put", key=self._key)

    async def _must_fail(self, condition: str, request: Awaitable[str | None]) -> None:
        try:
            await request
        except PreconditionFailed:
            return
        except NotSupported as exc:
            raise self._error(f"does not support {condition}") from exc
        raise self._error(f"ignores {condition}")

    def _error(self, reason: str) -> ConditionsIgnored:
        return ConditionsIgnored(f"no lease is possible at {self._storage.url}, which {reason}", hint=HINT)
