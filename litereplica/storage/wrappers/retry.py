"""Retries failed operations. No other layer retries, except a read of a mount, which has a time limit of its own.

Only `TransientStorageError` is retried, after a random delay between 0 and a limit that doubles with each failure
("full jitter"). The effect of a failed attempt is unknown, so a conditional operation that is refused *after* such a
failure may have been refused because our own earlier attempt succeeded. The object is then read: if its content equals
ours, or if an object that we were deleting is missing, the operation counts as successful.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import trio

from litereplica.errors import NotFound, PreconditionFailed, StorageError, TransientStorageError
from litereplica.storage.base import Body, ByteRange, Storage
from litereplica.storage.wrappers.delegate import Call, Operation, WrapperStorage, received_bytes

log = logging.getLogger(__name__)

T = TypeVar("T")

COMPARE_BYTES = 8 << 20
"""An object is compared with a local file in pieces of this size."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, for how long and with which delays an operation is retried.

    `attempts` includes the first one. No attempt starts later than `total_s` after the first failure.
    """

    attempts: int = 7
    base_delay_s: float = 0.1
    max_delay_s: float = 5.0
    total_s: float = 20.0

    def delay_limit_s(self, failures: int) -> float:
        """The maximum delay, in seconds, after this many failures (1, 2, …)."""
        return min(self.max_delay_s, self.base_delay_s * 2.0 ** (failures - 1))


DEFAULT_POLICY = RetryPolicy()
"""Bridges a restart of the store of some 10 s, and reports an outage to a reader within 30 s."""


class RetryStorage(WrapperStorage):
    """Retries transient failures, and raises the last one. `rng` is the source of jitter."""

    def __init__(
        self, inner: Storage, policy: RetryPolicy = DEFAULT_POLICY, *, rng: random.Random | None = None
    ) -> None:
        super().__init__(inner)
        self._policy = policy
        self._rng = rng or random.Random()

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        return await self._conditional_put(
            Call(Operation.PUT_IF_ABSENT, key, body),
            lambda: self._inner.put_if_absent(key, body, modified_ms=modified_ms),
        )

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        return await self._conditional_put(
            Call(Operation.PUT_IF_MATCH, key, body),
            lambda: self._inner.put_if_match(key, body, etag, modified_ms=modified_ms),
        )

    async def delete_if_match(self, key: str, etag: str) -> None:
        attempts = _Attempts(lambda: self._inner.delete_if_match(key, etag))
        try:
            await self._around(Call(Operation.DELETE_IF_MATCH, key), attempts)
        except PreconditionFailed:
            if not attempts.effect_unknown or await self._exists(key):
                raise

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        failures = 0
        give_up_at = 0.0
        while True:
            try:
                return await self._logged(call, perform)
            except TransientStorageError:
                failures += 1
                now = trio.current_time()
                if failures == 1:
                    give_up_at = now + self._policy.total_s
                delay_s = self._rng.uniform(0, self._policy.delay_limit_s(failures))
                if failures >= self._policy.attempts or now + delay_s > give_up_at:
                    raise
            await trio.sleep(delay_s)

    async def _logged(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        """Perform an operation; at level DEBUG, log each attempt with its outcome."""
        if not log.isEnabledFor(logging.DEBUG):
            return await perform()
        began = trio.current_time()
        try:
            result = await perform()
        except StorageError as exc:
            log.debug("%s %s of %s: %s", call.operation, call.key, self.url, exc)
            raise
        duration_ms, received, sent = (trio.current_time() - began) * 1000, received_bytes(result), call.sent_bytes
        log.debug(
            "%s %s of %s: %d bytes received, %d sent, in %.1f ms",
            call.operation, call.key, self.url, received, sent, duration_ms,
            extra={"received_bytes": received, "sent_bytes": sent, "duration_ms": round(duration_ms, 1)},
        )  # fmt: skip
        return result

    async def _conditional_put(self, call: Call, perform: Callable[[], Awaitable[str]]) -> str:
        attempts = _Attempts(perform)
        try:
            return await self._around(call, attempts)
        except PreconditionFailed:
            etag = await self._etag_if_equal(call.key, call.body) if attempts.effect_unknown else None
            if etag is None:
                raise
            return etag

    async def _exists(self, key: str) -> bool:
        try:
            await self.head(key)
        except NotFound:
            return False
        return True

    async def _etag_if_equal(self, key: str, body: Body) -> str | None:
        """The etag of the object if its content is `body`, else None."""
        size = Call(Operation.GET, key, body).sent_bytes
        offset = 0
        etag: str | None = None
        while offset < size or etag is None:
            expected = await _piece(body, offset)
            try:
                found = await self.get(key, ByteRange(offset, offset + len(expected)))
            except NotFound:
                return None
            if found.size != size or found.data != expected or found.etag != (etag or found.etag):
                return None
            etag = found.etag
            offset += len(expected)
        return etag


class _Attempts(Generic[T]):
    """An operation. `effect_unknown` is True once an attempt has failed and may have taken effect nevertheless."""

    def __init__(self, perform: Callable[[], Awaitable[T]]) -> None:
        self._perform = perform
        self.effect_unknown = False

    async def __call__(self) -> T:
        try:
            return await self._perform()
        except TransientStorageError:
            self.effect_unknown = True
            raise


async def _piece(body: Body, offset: int) -> bytes:
    if isinstance(body, bytes):
        return body[offset : offset + COMPARE_BYTES]
    path: Path = body

    def read() -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(COMPARE_BYTES)

    return await trio.to_thread.run_sync(read)
