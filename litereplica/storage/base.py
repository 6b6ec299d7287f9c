"""The storage contract: opaque objects by key.

A backend knows nothing of LTX. Every method is required, and conditional operations are atomic in the store itself,
never a check followed by a change. All methods are coroutines of trio and may be cancelled; a request that was sent may
still take effect then. Errors are those of `litereplica.errors`: `NotFound`, `PreconditionFailed`,
`TransientStorageError` (may be retried; the effect is unknown), `AccessDenied`, `BucketNotFound`, `StorageError`
(final). A backend tries once: only `wrappers.RetryStorage` retries.

Keys are relative to the root that the URL names. They have components separated by `/`, none of them empty, `.` or
`..`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from litereplica.file_access import FileAccess
from litereplica.file_events import Changes, Matters
from litereplica.storage.keys import is_key


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes `start <= i < stop`; a `stop` beyond the object's end means up to its end."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Suffix:
    """The last `length` bytes; the whole object when it is shorter."""

    length: int


Range: TypeAlias = ByteRange | Suffix

Body: TypeAlias = bytes | Path
"""The content of a put: bytes, or a local file that is streamed, in several parts if the store needs that.
The file must not change until `put` has returned: a retry reads it again."""


@dataclass(frozen=True, slots=True)
class Blob:
    """The result of `get`: `data` is the requested part, `size` the size of the whole object in bytes."""

    data: bytes
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object in a listing or the answer of `head`.

    `modified_ms` (milliseconds since the epoch) is the time given to `put` where the store returns it
    (`file://`: always; S3: `head` only), else the time of the upload. `etag` may be empty in a listing.
    """

    key: str
    size: int
    modified_ms: int
    etag: str = ""


@dataclass(frozen=True, slots=True)
class DirectoryListing:
    """The objects directly in a directory, ascending by key, and the names of the directories in it, ascending.

    A directory has an object in it, or in a directory in it; some stores also show one whose last object was deleted.
    """

    directories: list[str]
    objects: list[ObjectInfo]

    @classmethod
    def of(cls, prefix: str, prefixes: Iterable[str], objects: Iterable[ObjectInfo]) -> DirectoryListing:
        """Return the directory at `prefix`, of a store's answer: keys that begin with it, beginnings of longer ones."""
        names = {each.removeprefix(prefix).strip("/") for each in prefixes if each.startswith(prefix)}
        directly = {info.key: info for info in objects if info.key.startswith(prefix) and is_key(info.key)}
        here = [info for key, info in sorted(directly.items()) if "/" not in key.removeprefix(prefix)]
        return cls(sorted(name for name in names if is_key(name) and "/" not in name), here)


def listed(prefix: str, start_after: str | None, objects: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """Return what `Storage.list` returns of a store's answer: not every store lists in the order of bytes."""
    after = start_after or ""
    wanted = (each for each in objects if each.key.startswith(prefix) and is_key(each.key) and each.key > after)
    return sorted(wanted, key=lambda info: info.key)


class Storage(ABC):
    """A store of objects below one root. Obtain one from `storage.open.open_storage`."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL of the root, without credentials: for messages."""

    @abstractmethod
    async def get(self, key: str, range: Range | None = None) -> Blob:
        """Read an object or a part of it. Raises `NotFound` if it does not exist.

        A range that begins at or beyond the end gives empty data (with the true size), not an error.
        """

    @abstractmethod
    async def put(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        """Write an object atomically and durably, replacing one that exists. Returns the etag.

        `modified_ms` is the time to store with the object, in milliseconds since the epoch; by default that of the put.
        """

    @abstractmethod
    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        """Like `put`; raises `PreconditionFailed` if the key exists, and leaves it unchanged."""

    @abstractmethod
    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        """Like `put`; raises `PreconditionFailed` unless the object exists with this etag."""

    @abstractmethod
    async def head(self, key: str) -> ObjectInfo:
        """Return size, etag and time of an object. Raises `NotFound` if it does not exist."""

    @abstractmethod
    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        """Return the objects whose key begins with `prefix` and is greater than `start_after`, ascending by key."""

    @abstractmethod
    async def list_directory(self, prefix: str) -> DirectoryListing:
        """Return what is directly below `prefix`, which is empty or ends with `/`; nothing if no key begins with it."""

    @abstractmethod
    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; a key that does not exist is not an error."""

    @abstractmethod
    async def delete_if_match(self, key: str, etag: str) -> None:
        """Delete an object. Raises `PreconditionFailed` unless it exists with this etag."""

    def set_access(self, access: FileAccess, *, prefix: str = "") -> None:  # noqa: B027 - optional
        """Give new objects below `prefix` this access. Without effect on a store whose objects have no mode."""

    def watch(self, prefix: str, matters: Matters) -> AbstractAsyncContextManager[Changes]:
        """Tell during the block when objects may have changed whose names directly below `prefix`, up to a `/`, matter.

        A hint: most stores have none.
        """
        return nullcontext(Changes(matters))

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections. No other method may be called afterwards."""

    async def __aenter__(self) -> Storage:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
