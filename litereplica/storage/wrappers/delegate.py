"""The base of the wrappers: every operation goes through one method that a wrapper overrides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from litereplica.file_access import FileAccess
from litereplica.file_events import Changes, Matters
from litereplica.storage.base import Blob, Body, DirectoryListing, ObjectInfo, Range, Storage

T = TypeVar("T")


class Operation(StrEnum):
    """The operations of a storage, by the names of its methods."""

    GET = "get"
    PUT = "put"
    PUT_IF_ABSENT = "put_if_absent"
    PUT_IF_MATCH = "put_if_match"
    HEAD = "head"
    LIST = "list"
    DELETE = "delete"
    DELETE_IF_MATCH = "delete_if_match"


@dataclass(frozen=True, slots=True)
class Call:
    """One operation. `key` is the prefix of a list, and the first key of a delete."""

    operation: Operation
    key: str
    body: Body = b""

    @property
    def sent_bytes(self) -> int:
        """The size of the body."""
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)


def received_bytes(result: object) -> int:
    """The size of the data in an operation's result."""
    return len(result.data) if isinstance(result, Blob) else 0


class WrapperStorage(Storage):
    """Passes every operation on to `inner`. A wrapper overrides `_around`."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        """Carry out one operation. `perform` calls the inner storage, and may be called repeatedly."""
        return await perform()

    @property
    def url(self) -> str:
        return self._inner.url

    async def get(self, key: str, range: Range | None = None) -> Blob:
        return await self._around(Call(Operation.GET, key), lambda: self._inner.get(key, range))

    async def put(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        return await self._around(
            Call(Operation.PUT, key, body), lambda: self._inner.put(key, body, modified_ms=modified_ms)
        )

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        return await self._around(
            Call(Operation.PUT_IF_ABSENT, key, body),
            lambda: self._inner.put_if_absent(key, body, modified_ms=modified_ms),
        )

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        return await self._around(
            Call(Operation.PUT_IF_MATCH, key, body),
            lambda: self._inner.put_if_match(key, body, etag, modified_ms=modified_ms),
        )

    async def head(self, key: str) -> ObjectInfo:
        return await self._around(Call(Operation.HEAD, key), lambda: self._inner.head(key))

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        return await self._around(
            Call(Operation.LIST, prefix), lambda: self._inner.list(prefix, start_after=start_after)
        )

    async def list_directory(self, prefix: str) -> DirectoryListing:
        return await self._around(Call(Operation.LIST, prefix), lambda: self._inner.list_directory(prefix))

    async def delete(self, keys: Sequence[str]) -> None:
        first = keys[0] if keys else ""
        await self._around(Call(Operation.DELETE, first), lambda: self._inner.delete(keys))

    async def delete_if_match(self, key: str, etag: str) -> None:
        await self._around(Call(Operation.DELETE_IF_MATCH, key), lambda: self._inner.delete_if_match(key, etag))

    def set_access(self, access: FileAccess, *, prefix: str = "") -> None:
        self._inner.set_access(access, prefix=prefix)

    def watch(self, prefix: str, matters: Matters) -> AbstractAsyncContextManager[Changes]:
        return self._inner.watch(prefix, matters)

    async def aclose(self) -> None:
        await self._inner.aclose()
