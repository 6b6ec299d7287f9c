"""What the store has below a prefix: databases and directories, found by name.

A name is a *database* if an LTX file lies directly in one of its levels, else a *directory* if any object lies below
it. A listing with a delimiter does not tell the one from the other, so `names` returns names alone. `find` lists the
name and its level 0 at the same time, and in doubt further levels that the first listing shows, the highest first,
since it has the fewest files.

Paths are relative to the prefix, without slashes at their ends; the prefix itself is the empty path.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial

from litereplica.concurrent import gather
from litereplica.format import names
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import DirectoryListing
from litereplica.storage.wrappers import MeteredStorage, StorageStatistics


class Kind(StrEnum):
    """What a name below a prefix is."""

    DATABASE = "database"
    DIRECTORY = "directory"


class Prefix:
    """The names below the root of `store`. `url_of` returns the URL of a path, for messages."""

    def __init__(self, store: LTXStore, *, url_of: Callable[[str], str]) -> None:
        self._store = store
        self._storage = MeteredStorage(store.storage)
        self._url_of = url_of
        parent, _, leaf = names.level_prefix(store.layout, 0).rstrip("/").rpartition("/")
        self._levels_in = f"{parent}/" if parent else ""  # where the directories of the levels are
        self._shown = parent or None  # the one name that a listing of a database shows, if they are not there
        levels = [names.level_prefix(store.layout, level).rstrip("/") for level in reversed(names.LEVELS)]
        self._levels = [level.removeprefix(self._levels_in) for level in levels]
        assert leaf in self._levels

    def statistics(self) -> StorageStatistics:
        """Return the requests that were made for names."""
        return self._storage.statistics()

    def database(self, path: str) -> LTXStore:
        """Return the store of the database at `path`; closing it leaves the others open."""
        return self._store.below(path, url=self._url_of(path))

    async def names(self, path: str) -> list[str]:
        """Return the names of what is directly below a directory, ascending. One listing."""
        return (await self._list(path)).directories

    async def find(self, path: str) -> Kind | None:
        """Return what a path is; None if the store has nothing there."""
        found, files = await gather([partial(self._list, path), partial(self._level_0, path)])
        if _has_file(files):
            return Kind.DATABASE
        shown = set(found.directories)
        levels = shown.intersection([self._shown] if self._shown else self._levels)
        if levels and await self._has_files(path, shown):
            return Kind.DATABASE
        if found.objects or shown - levels:
            return Kind.DIRECTORY
        for level in levels:  # a directory may have the name of a level
            below = await self._list(f"{path}/{level}".strip("/"))
            if below.objects or set(below.directories).difference(self._levels if self._shown else ()):
                return Kind.DIRECTORY
        return None

    async def _has_files(self, path: str, shown: set[str]) -> bool:
        if self._shown:
            shown = set((await self._list(f"{path}/{self._levels_in}".strip("/"))).directories)
        for level in self._levels:
            if level in shown and _has_file(await self._list(f"{path}/{self._levels_in}{level}".strip("/"))):
                return True
        return False

    async def _level_0(self, path: str) -> DirectoryListing:
        return await self._list(f"{path}/{self._levels_in}{self._levels[-1]}".strip("/"))

    async def _list(self, path: str) -> DirectoryListing:
        return await self._storage.list_directory(f"{path}/" if path else "")


def _has_file(found: DirectoryListing) -> bool:
    """True if there is an LTX file directly in a directory."""
    return any(names.parse_name(info.key.rpartition("/")[2]) for info in found.objects)
