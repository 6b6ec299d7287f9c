"""A store that ignores conditions, as several do."""

from __future__ import annotations

from litereplica.storage.base import Body, Storage
from litereplica.storage.wrappers import Operation, WrapperStorage


class Careless(WrapperStorage):
    """Carries out some conditional operations whether or not their condition is met."""

    def __init__(self, inner: Storage, *ignored: Operation) -> None:
        super().__init__(inner)
        self._ignored = ignored

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        if Operation.PUT_IF_ABSENT in self._ignored:
            return await self.put(key, body, modified_ms=modified_ms)
        return await super().put_if_absent(key, body, modified_ms=modified_ms)

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        if Operation.PUT_IF_MATCH in self._ignored:
            return await self.put(key, body, modified_ms=modified_ms)
        return await super().put_if_match(key, body, etag, modified_ms=modified_ms)

    async def delete_if_match(self, key: str, etag: str) -> None:
        if Operation.DELETE_IF_MATCH in self._ignored:
            return await self.delete([key])
        return await super().delete_if_match(key, etag)
