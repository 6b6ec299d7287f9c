"""Limits on what a store may send: a least rate for every part of an answer, and a largest size of a listing.

A server that sends a byte now and then never lets a socket's timeout expire. So an answer, from its first header to the
end of its body, may take `READ_TIMEOUT_S` plus the time of its bytes at `MIN_BYTES_PER_S`; a listing is limited as a
whole as well, since a store may always name another page. Objects are limited by the range that was requested.
"""

from __future__ import annotations

import time

from litereplica.errors import StorageError
from litereplica.memory import memory_bytes

MIN_BYTES_PER_S = 64 << 10
"""The least rate of an answer; a slower one is given up."""

LIST_PATIENCE_S = 30.0
MIN_KEYS_PER_S = 500
"""A listing may take `LIST_PATIENCE_S` plus the time of its keys at this rate: a page of 1,000 keys in two seconds."""

MEMORY_PER_KEY = 2048
"""Bytes that a key of a listing takes in memory, with what is made of it, at most."""


class Pace:
    """The progress of one answer, which has `patience_s` seconds beyond those of its bytes."""

    def __init__(self, patience_s: float) -> None:
        self._started = time.monotonic()
        self._patience_s = patience_s
        self.bytes = 0

    def received(self, size: int) -> None:
        """Count bytes. Raises `ConnectionAbortedError` if the answer is too slow."""
        self.bytes += size
        if time.monotonic() - self._started > self._patience_s + self.bytes / MIN_BYTES_PER_S:
            raise ConnectionAbortedError(f"the answer arrived at less than {MIN_BYTES_PER_S} bytes a second")


class ListingPace:
    """The progress of one listing of the store at `url`, over all its pages."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._started = time.monotonic()
        self._keys = 0

    def received(self, keys: int) -> None:
        """Count keys. Raises `TimeoutError` if the listing is too slow, `StorageError` if it has too many keys."""
        self._keys += keys
        taken_s = time.monotonic() - self._started
        if taken_s > LIST_PATIENCE_S + self._keys / MIN_KEYS_PER_S:
            raise TimeoutError(f"the listing has not ended after {taken_s:.0f} s and {self._keys} keys")
        most = memory_bytes() // MEMORY_PER_KEY
        if self._keys > most:
            raise StorageError(
                f"the listing of {self._url} has more than {most} keys, which is too many for this machine's memory",
                hint="delete what does not belong there, or let retention delete old files",
            )
