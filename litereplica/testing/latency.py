"""A store that is far away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from litereplica.storage.base import Storage
from litereplica.storage.wrappers.delegate import Call, WrapperStorage, received_bytes

T = TypeVar("T")


class LatencyStorage(WrapperStorage):
    """Adds a round trip to each operation, and the time its bytes take.

    Half of `round_trip_s` passes before the effect, half after it. `bytes_per_s` is the bandwidth of each
    operation on its own, not shared; None means unlimited.
    """

    def __init__(self, inner: Storage, round_trip_s: float, bytes_per_s: float | None = None) -> None:
        super().__init__(inner)
        self._one_way_s = round_trip_s / 2
        self._s_per_byte = 1 / bytes_per_s if bytes_per_s else 0.0

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        await trio.sleep(self._one_way_s + call.sent_bytes * self._s_per_byte)
        result = await perform()
        await trio.sleep(self._one_way_s + received_bytes(result) * self._s_per_byte)
        return result
