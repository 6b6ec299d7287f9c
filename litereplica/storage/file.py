"""Objects as files below a directory.

A file appears under its name only when it is complete and durable: it is written under a temporary name in the same
directory, fsynced, then renamed (or linked, which fails if the name exists, if it must not replace anything), and the
directory is fsynced. The file's mtime is the object's time, as in Litestream.

Every change of a name happens under an exclusive `flock` of `.litereplica-lock` in the root, held for a few system
calls, so conditional operations are atomic among all processes that use this module. Other programs do not take the
lock; only `put_if_absent` is atomic against them as well.

A file or directory is no more accessible than its parent directory, the umask and `set_access` allow, which a writer
calls with the mode and group of its database, or with what the user wants.

A root that does not exist is an empty store: the first put makes it. One that was read from and has gone since, as that
of a network file system that is not mounted, is a store that does not answer; no object of it is called missing then.

An etag is a digest of the content for objects up to `CONTENT_ETAG_BYTES`, else inode, mtime and size. Small objects,
such as a lease, are replaced often, and an inode number is soon reused.

Every component of a key is opened relative to its parent and without following symbolic links, so no operation leaves
the root; the root itself may be reached through links.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import trio

from litereplica.errors import PreconditionFailed, StorageError, TransientStorageError
from litereplica.file_access import FileAccess
from litereplica.file_events import Changes, FileEvents, Matters
from litereplica.storage import file_operations as files
from litereplica.storage.base import Blob, Body, DirectoryListing, ObjectInfo, Range, Storage
from litereplica.storage.keys import is_key, validate_directory, validate_key, validate_prefix
from litereplica.storage.pace import ListingPace
from litereplica.storage.ranges import resolve_range, validate_range

T = TypeVar("T")

MAX_THREADS = 16
"""Enough to keep a disk's queue full; more threads would only wait for the interpreter."""

Publish: TypeAlias = Callable[[int, str, str], None]
"""Gives a temporary file its name: (descriptor of the directory, temporary name, name). Called under the lock."""


class FileStorage(Storage):
    """Objects as files below `root`, which the first put creates."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._limiter = trio.CapacityLimiter(MAX_THREADS)
        self._swept: set[str] = set()  # directories whose stale temporary files have been removed
        self._events = FileEvents()
        self._access: dict[str, FileAccess] = {}  # by prefix
        self._was_read = False  # so its root exists, unless its file system is unmounted or somebody moved it away

    @property
    def url(self) -> str:
        return f"file://{self._root}"

    async def get(self, key: str, range: Range | None = None) -> Blob:
        _validate(key)
        validate_range(range)
        return await self._in_thread(key, lambda: self._get(key, range), reading=True)

    async def head(self, key: str) -> ObjectInfo:
        _validate(key)
        return await self._in_thread(key, lambda: self._head(key), reading=True)

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        validate_prefix(prefix)
        listing = _Listing(prefix, start_after or "")
        found = await self._in_thread(prefix, lambda: self._list(listing), reading=True)
        return sorted(found, key=lambda info: info.key)

    async def list_directory(self, prefix: str) -> DirectoryListing:
        validate_directory(prefix)
        return await self._in_thread(prefix, lambda: self._list_directory(prefix), reading=True)

    async def put(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        return await self._put(key, body, modified_ms, _replace)

    async def put_if_absent(self, key: str, body: Body, *, modified_ms: int | None = None) -> str:
        def link(parent: int, temporary: str, name: str) -> None:
            try:
                os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                raise PreconditionFailed(f"{key} exists in {self.url}", key=key) from None

        return await self._put(key, body, modified_ms, link)

    async def put_if_match(self, key: str, body: Body, etag: str, *, modified_ms: int | None = None) -> str:
        def replace_matching(parent: int, temporary: str, name: str) -> None:
            self._require_etag(key, etag, name, parent=parent)
            _replace(parent, temporary, name)

        return await self._put(key, body, modified_ms, replace_matching)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            _validate(key)
        await self._in_thread(", ".join(keys[:1]), lambda: self._delete(keys), reading=False)

    async def delete_if_match(self, key: str, etag: str) -> None:
        _validate(key)
        await self._in_thread(key, lambda: self._delete_if_match(key, etag), reading=False)

    def set_access(self, access: FileAccess, *, prefix: str = "") -> None:
        self._access[prefix] = access

    def watch(self, prefix: str, matters: Matters) -> contextlib.AbstractAsyncContextManager[Changes]:
        return self._events.watching(self._root / prefix, matters)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def _get(self, key: str, range: Range | None) -> Blob:
        with self._opened(key) as (fd, status):
            part = resolve_range(range, status.st_size)
            data = files.read_exactly(fd, part.stop - part.start, part.start)
            return Blob(data=data, size=status.st_size, etag=files.etag_of(fd, status))

    def _head(self, key: str) -> ObjectInfo:
        with self._opened(key) as (fd, status):
            return _info(key, status, files.etag_of(fd, status))

    def _list(self, listing: _Listing) -> Sequence[ObjectInfo]:
        directory = listing.prefix.rpartition("/")[0]
        try:
            with files.open_directory(self._root, _components(directory)) as fd:
                found = []
                pace = ListingPace(self.url)
                for info in listing.walk(fd, directory + "/" if directory else ""):
                    pace.received(1)
                    found.append(info)
                return found
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _list_directory(self, prefix: str) -> DirectoryListing:
        directories, objects = [], []
        pace = ListingPace(self.url)
        try:
            with files.open_directory(self._root, _components(prefix.rstrip("/"))) as fd, os.scandir(fd) as entries:
                for entry in entries:
                    if entry.name.startswith(files.RESERVED_PREFIX) or not is_key(prefix + entry.name):
                        continue
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # deleted meanwhile
                        if entry.is_dir(follow_symlinks=False):
                            below = _Listing(prefix + entry.name + "/", "").descend(fd, entry.name)
                            if next(below, None) is not None:
                                pace.received(1)
                                directories.append(entry.name)
                        elif stat.S_ISREG((status := entry.stat(follow_symlinks=False)).st_mode):
                            pace.received(1)
                            objects.append(_info(prefix + entry.name, status, ""))
        except (FileNotFoundError, NotADirectoryError):
            return DirectoryListing([], [])
        return DirectoryListing(sorted(directories), sorted(objects, key=lambda info: info.key))

    def _write(self, key: str, body: Body, modified_ms: int | None, publish: Publish) -> str:
        access = self._access_of(key)
        files.make_root(self._root, access)
        with self._parent_of(key, create=access) as (parent, name):
            self._sweep(key, parent)
            with (
                files.temporary_file(body, access, parent=parent, modified_ms=modified_ms) as (temporary, etag),
                files.exclusive_lock(self._root),
            ):
                publish(parent, temporary, name)
            os.fsync(parent)
            return etag

    def _delete(self, keys: Sequence[str]) -> None:
        by_directory: dict[str, list[str]] = {}
        for key in keys:
            directory, _, name = key.rpartition("/")
            by_directory.setdefault(directory, []).append(name)
        for directory, names in by_directory.items():
            with (
                contextlib.suppress(FileNotFoundError, NotADirectoryError),
                files.open_directory(self._root, _components(directory)) as parent,
            ):
                with files.exclusive_lock(self._root):
                    for name in names:
                        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                            os.unlink(name, dir_fd=parent)
                os.fsync(parent)

    def _delete_if_match(self, key: str, etag: str) -> None:
        try:
            with self._parent_of(key) as (parent, name):
                with files.exclusive_lock(self._root):
                    self._require_etag(key, etag, name, parent=parent)
                    os.unlink(name, dir_fd=parent)
                os.fsync(parent)
        except (FileNotFoundError, NotADirectoryError):
            raise self._changed(key) from None

    def _require_etag(self, key: str, etag: str, name: str, *, parent: int) -> None:
        try:
            with files.open_file(name, parent=parent) as (fd, status):
                matches = files.etag_of(fd, status) == etag
        except FileNotFoundError:
            matches = False
        if not matches:
            raise self._changed(key)

    def _changed(self, key: str) -> PreconditionFailed:
        return PreconditionFailed(f"{key} has changed in {self.url}", key=key)

    def _sweep(self, key: str, parent: int) -> None:
        directory = key.rpartition("/")[0]
        if directory not in self._swept:
            self._swept.add(directory)
            files.remove_stale(parent)

    @contextlib.contextmanager
    def _parent_of(self, key: str, *, create: FileAccess | None = None) -> Iterator[tuple[int, str]]:
        """The open directory that holds the key's file, and the file's name in it."""
        directory, _, name = key.rpartition("/")
        with files.open_directory(self._root, _components(directory), create=create) as parent:
            yield parent, name

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, os.stat_result]]:
        """The open file of an object. If there is none, the root that it was read from before must still be there."""
        try:
            with self._parent_of(key) as (parent, name), files.open_file(name, parent=parent) as opened:
                self._was_read = True
                yield opened
        except (FileNotFoundError, NotADirectoryError):
            if self._was_read and not self._root.is_dir():
                raise TransientStorageError(
                    f"the directory of {self.url} has gone", key=key, hint="see whether its file system is mounted"
                ) from None
            raise

    async def _put(self, key: str, body: Body, modified_ms: int | None, publish: Publish) -> str:
        _validate(key)
        return await self._in_thread(key, lambda: self._write(key, body, modified_ms, publish), reading=False)

    def _access_of(self, key: str) -> FileAccess:
        """The access of the longest prefix of `key` that has one."""
        prefixes = [prefix for prefix in self._access if key.startswith(prefix)]
        return self._access[max(prefixes, key=len)] if prefixes else FileAccess()

    async def _in_thread(self, key: str, action: Callable[[], T], *, reading: bool) -> T:
        """Run in a thread. A cancelled read is abandoned; a cancelled change is completed or undone first."""
        try:
            return await trio.to_thread.run_sync(action, limiter=self._limiter, abandon_on_cancel=reading)
        except OSError as exc:
            raise files.translated(exc, key, self.url, reading=reading) from exc


@dataclass(frozen=True, slots=True)
class _Listing:
    """The directory walk of one `list`: keys that begin with `prefix` and are greater than `start_after`."""

    prefix: str
    start_after: str

    def walk(self, fd: int, base: str) -> Iterator[ObjectInfo]:
        """Yield the files below the directory `fd`, whose keys begin with `base`, in no particular order."""
        with os.scandir(fd) as entries:
            for entry in entries:
                key = base + entry.name
                if entry.name.startswith(files.RESERVED_PREFIX) or not is_key(key):
                    continue
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # deleted meanwhile
                    if entry.is_dir(follow_symlinks=False):
                        if (key + "/").startswith(self.prefix):
                            yield from self.descend(fd, entry.name, key + "/")
                    elif key.startswith(self.prefix) and key > self.start_after:
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            yield _info(key, status, "")

    def descend(self, parent: int, name: str, base: str = "") -> Iterator[ObjectInfo]:
        """Yield as `walk` for the directory `name` in `parent`."""
        child = files.open_child(name, parent=parent)
        try:
            yield from self.walk(child, base or self.prefix)
        finally:
            os.close(child)


def _replace(parent: int, temporary: str, name: str) -> None:
    os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)


def _components(directory: str) -> list[str]:
    return directory.split("/") if directory else []


def _validate(key: str) -> None:
    validate_key(key)
    if any(component.startswith(files.RESERVED_PREFIX) for component in key.split("/")):
        raise StorageError(f"{key!r} is reserved for the store itself", key=key)


def _info(key: str, status: os.stat_result, etag: str) -> ObjectInfo:
    return ObjectInfo(key=key, size=status.st_size, modified_ms=status.st_mtime_ns // 1_000_000, etag=etag)
