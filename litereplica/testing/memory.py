"""Objects in a dictionary: the store that tests use.

Deterministic and without threads, so that it works with trio's autojump clock. Each operation takes effect
at one instant, after one checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from litereplica.errors import NotFound, PreconditionFailed
from litereplica.storage.base import Blob, Body, DirectoryListing, ObjectInfo, Range, Storage
from litereplica.storage.keys import validate_directory, validate_key, validate_prefix
from litereplica.storage.ranges import resolve_range, validate_range
from litereplica.times import wall_clock_ms


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it lies in the dictionary; `modified_ms` in milliseconds since the epoch."""

    data: bytes
    modified_ms: int

    @property
    def etag(self) -> str:
        """As S3 has it: a function of the content alone."""
        return f'"{hashlib.md5(self.data, usedforsecurity=False).hexdigest()}"'


class MemoryStorage(Storage):
    """Objects of one process. `objects` is open for tests to look at and to tamper with."""

    def __init__(self, *, name: str = "test", now_ms: Callable[[], int] = wall_clock_ms) -> None:
        self.objects: dict[str, StoredObject] = {}
        self._name = name
        self._now_ms = now_ms

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    async def get(self, key: str, range: Range | None = None) -> Blob:
        validate_range(range)
        stored = await self._find(key)
        part = resolve_range(range, len(stored.data))
        return Blob(data=stored.data[part], size=len(stored.data), etag=stored.etag)

    async def put(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        await self._arrive(key)
        return self._store(key, body, modified_ms)

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        await self._arrive(key)
        if key in self.objects:
            raise PreconditionFailed(f"{key} exists in {self.url}", key=key)
        return self._store(key, body, modified_ms)

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        await self._arrive(key)
        self._require_etag(key, etag)
        return self._store(key, body, modified_ms)

    async def head(self, key: str) -> ObjectInfo:
        return _info(key, await self._find(key))

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        validate_prefix(prefix)
        await trio.lowlevel.checkpoint()
        after = start_after or ""
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        return [_info(key, self.objects[key]) for key in keys]

    async def list_directory(self, prefix: str) -> DirectoryListing:
        validate_directory(prefix)
        await trio.lowlevel.checkpoint()
        names = {key: key.removeprefix(prefix).partition("/") for key in sorted(self.objects) if key.startswith(prefix)}
        directories = sorted({name for name, slash, _ in names.values() if slash})
        return DirectoryListing(
            directories, [_info(key, self.objects[key]) for key, (_, slash, _) in names.items() if not slash]
        )

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            validate_key(key)
        await trio.lowlevel.checkpoint()
        for key in keys:
            self.objects.pop(key, None)

    async def delete_if_match(self, key: str, etag: str) -> None:
        await self._arrive(key)
        self._require_etag(key, etag)
        del self.objects[key]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _arrive(self, key: str) -> None:
        validate_key(key)
        await trio.lowlevel.checkpoint()

    async def _find(self, key: str) -> StoredObject:
        await self._arrive(key)
        try:
            return self.objects[key]
        except KeyError:
            raise NotFound(f"{key} does not exist in {self.url}", key=key) from None

    def _require_etag(self, key: str, etag: str) -> None:
        stored = self.objects.get(key)
        if stored is None or stored.etag != etag:
            raise PreconditionFailed(f"{key} has changed in {self.url}", key=key)

    def _store(self, key: str, body: Body, modified_ms: int | None) -> str:
        data = body.read_bytes() if isinstance(body, Path) else bytes(body)
        stored = StoredObject(data, self._now_ms() if modified_ms is None else modified_ms)
        self.objects[key] = stored
        return stored.etag


def _info(key: str, stored: StoredObject) -> ObjectInfo:
    return ObjectInfo(key=key, size=len(stored.data), modified_ms=stored.modified_ms, etag=stored.etag)
