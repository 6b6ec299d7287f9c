"""A storage that consists of the objects of another storage below a prefix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace

from litereplica.errors import StorageError
from litereplica.file_access import FileAccess
from litereplica.file_events import Changes, Matters
from litereplica.storage.base import Blob, Body, DirectoryListing, ObjectInfo, Range, Storage


class PrefixStorage(Storage):
    """The objects of `inner` whose keys begin with `prefix`, which ends with `/`. `url` is the URL of the prefix.

    `aclose` leaves `inner` open.
    """

    def __init__(self, inner: Storage, prefix: str, *, url: str) -> None:
        self._inner = inner
        self._prefix = prefix
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    async def get(self, key: str, range: Range | None = None) -> Blob:
        with self._errors():
            return await self._inner.get(self._prefix + key, range)

    async def put(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        with self._errors():
            return await self._inner.put(self._prefix + key, body, modified_ms=modified_ms)

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        with self._errors():
            return await self._inner.put_if_absent(self._prefix + key, body, modified_ms=modified_ms)

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        with self._errors():
            return await self._inner.put_if_match(self._prefix + key, body, etag, modified_ms=modified_ms)

    async def head(self, key: str) -> ObjectInfo:
        with self._errors():
            return self._without(await self._inner.head(self._prefix + key))

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        after = None if start_after is None else self._prefix + start_after
        with self._errors():
            return [self._without(info) for info in await self._inner.list(self._prefix + prefix, start_after=after)]

    async def list_directory(self, prefix: str) -> DirectoryListing:
        with self._errors():
            found = await self._inner.list_directory(self._prefix + prefix)
            return DirectoryListing(found.directories, [self._without(info) for info in found.objects])

    async def delete(self, keys: Sequence[str]) -> None:
        with self._errors():
            await self._inner.delete([self._prefix + key for key in keys])

    async def delete_if_match(self, key: str, etag: str) -> None:
        with self._errors():
            await self._inner.delete_if_match(self._prefix + key, etag)

    def set_access(self, access: FileAccess, *, prefix: str = "") -> None:
        self._inner.set_access(access, prefix=self._prefix + prefix)

    def watch(self, prefix: str, matters: Matters) -> AbstractAsyncContextManager[Changes]:
        return self._inner.watch(self._prefix + prefix, matters)

    async def aclose(self) -> None:
        """Do nothing: `inner` stays open."""

    def _without(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, key=info.key.removeprefix(self._prefix))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Remove the prefix from the `key` of errors in the block; their messages keep the whole key."""
        try:
            yield
        except StorageError as exc:
            exc.below(self._prefix)
            raise
