"""Finding the files of a replica, and opening those of a plan although they may vanish or be damaged meanwhile.

A listing and the reading of what it names are not atomic: compaction and retention delete files in between. So a
plan is chosen, its files are opened at the same time, and when one has gone the whole is done again with a new
listing and without that file. A file that fails its checks is read once more, in case that happened on the way; then it
is remembered, and avoided while others will do. What to choose is the caller's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

from litereplica.concurrent import gather
from litereplica.errors import DamagedFile, NotFound, ReplicaError, TransientStorageError
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.types import TXID, FileInfo

T = TypeVar("T")

Chooser: TypeAlias = Callable[[Sequence[FileInfo]], list[FileInfo]]
"""Picks the files to open, in the order of applying; raises `ReplicaError` when they do not suffice."""

PARALLEL_REQUESTS = 8
"""Requests at the same time when a plan is opened: hides the round trips, leaves connections for readers."""

ATTEMPTS = 5
"""Listings for one plan. A file vanishes between listing and reading once in a while, not five times running."""


class Catalog:
    """The usable files below one root. `damaged`: the known damaged ones, by name; catalogs of a root may share it."""

    def __init__(self, store: LTXStore, *, damaged: dict[str, DamagedFile] | None = None) -> None:
        self.store = store
        self.damaged: dict[str, DamagedFile] = {} if damaged is None else damaged

    def avoid(self, info: FileInfo, damage: DamagedFile) -> bool:
        """Remember a damaged file. True when it was not known as such."""
        is_new = str(info) not in self.damaged
        self.damaged[str(info)] = damage
        return is_new

    def trust(self, info: FileInfo) -> None:
        """A file has been read, and is sound: it may have been seen half written before."""
        self.damaged.pop(str(info), None)

    async def list_all(self, *, after: TXID = 0) -> list[FileInfo]:
        """The files of all levels with a max TXID greater than `after`."""
        return await self.store.list_levels(after=after)

    async def open(self, choose: Chooser, *, after: TXID = 0) -> list[OpenedFile]:
        """The files that `choose` picks from those with a max TXID greater than `after`, opened.

        Raises what `choose` raises, and `DamagedFile` when it does so for want of a damaged file.
        """
        vanished: set[str] = set()
        damage: DamagedFile | None = None
        for _ in range(ATTEMPTS):
            files = [info for info in await self.list_all(after=after) if str(info) not in vanished]
            opened, damage = await self._open_chosen(choose, files, vanished)
            if opened is not None:
                return opened
        raise damage or TransientStorageError(f"files of {self.store.url} vanish as fast as they are listed")

    async def _open_chosen(
        self, choose: Chooser, files: Sequence[FileInfo], vanished: set[str]
    ) -> tuple[list[OpenedFile] | None, DamagedFile | None]:
        plan = self._choose(choose, files)
        results = await gather([partial(self._open, info) for info in plan], width=PARALLEL_REQUESTS)
        damage = None
        for info, result in zip(plan, results, strict=True):
            if isinstance(result, DamagedFile):
                damage = result
                self.avoid(info, damage)
            elif result is None:
                vanished.add(str(info))
        opened = [result for result in results if isinstance(result, OpenedFile)]
        return (opened if len(opened) == len(plan) else None), damage

    def _choose(self, choose: Chooser, files: Sequence[FileInfo]) -> list[FileInfo]:
        sound = [info for info in files if str(info) not in self.damaged]
        try:
            return choose(sound)
        except ReplicaError as exc:
            for info in files:
                if str(info) in self.damaged:
                    raise self.damaged[str(info)] from exc
            raise

    async def _open(self, info: FileInfo) -> OpenedFile | DamagedFile | None:
        try:
            return await again_if_damaged(partial(self.store.open, info))
        except NotFound:
            return None
        except DamagedFile as exc:
            return exc


async def again_if_damaged(read: Callable[[], Awaitable[T]]) -> T:
    """What `read` returns; damage is believed when it is there twice, since it may have happened on the way."""
    try:
        return await read()
    except DamagedFile:
        return await read()
