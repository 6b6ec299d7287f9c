"""A store whose listings may be out of date."""

from __future__ import annotations

from litereplica.storage.base import ObjectInfo
from litereplica.testing.memory import MemoryStorage


class OutdatedListings(MemoryStorage):
    """Lists what `shown` has, what was there at some time or nothing, if it is set."""

    shown: list[ObjectInfo] | None = None

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        if self.shown is None:
            return await super().list(prefix, start_after=start_after)
        return [info for info in self.shown if info.key.startswith(prefix) and info.key > (start_after or "")]
