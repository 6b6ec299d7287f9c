"""Finding the files of a replica, and opening those of a plan although they may vanish or be damaged meanwhile.

A plan is chosen and its files are opened at the same time; when one has gone, the replica is listed again
(`replan.py`). A file that fails its checks is read once more, in case it was damaged in transit; then it is
remembered, and avoided while other files have its transactions. What to choose is up to the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

from litereplica.concurrent import gather
from litereplica.errors import DamagedFile, NotFound, TransientStorageError
from litereplica.ltxstore.replan import FailedFiles, Listing, plan_and_read
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.types import TXID, FileInfo

T = TypeVar("T")

Chooser: TypeAlias = Callable[[Sequence[FileInfo]], list[FileInfo]]
"""Picks the files to open, in the order of applying; raises `ReplicaError` when they do not suffice."""

PARALLEL_REQUESTS = 8
"""Requests at the same time when a plan is opened: hides the round trips, leaves connections for readers."""

MAX_PLANS = 5
"""Plans for one call. A file vanishes between listing and reading once in a while, not five times in a row."""


class Catalog:
    """The usable files below one root. `damaged`: the known damaged ones, by key; catalogs of a root may share it."""

    def __init__(self, store: LTXStore, *, damaged: dict[str, DamagedFile] | None = None) -> None:
        self.store = store
        self.damaged: dict[str, DamagedFile] = {} if damaged is None else damaged

    def avoid(self, damage: DamagedFile) -> bool:
        """Remember a damaged file. Returns True if it was not known as such."""
        is_new = damage.key not in self.damaged
        self.damaged[damage.key] = damage
        return is_new

    def trust(self, info: FileInfo) -> None:
        """Forget that a file was damaged: it has been read, and may have been seen half written before."""
        if self.damaged:
            self.damaged.pop(self.store.key(info), None)

    async def list_all(self, *, after: TXID = 0, in_order: bool = False) -> Sequence[FileInfo]:
        """Return the files of all levels with a max TXID greater than `after`; see `LTXStore.list_levels`."""
        return await self.store.list_levels(after=after, in_order=in_order)

    async def open(self, choose: Chooser, *, after: TXID = 0) -> list[OpenedFile]:
        """Return the files that `choose` picks from those with a max TXID greater than `after`, opened.

        Raises what `choose` raises, or `DamagedFile` if it raises that for want of a damaged file.
        """
        failed = FailedFiles(self.store, damaged=self.damaged)

        async def choose_files(listing: Listing) -> list[FileInfo]:
            return choose(listing.present)

        async def open_files(plan: list[FileInfo]) -> list[OpenedFile]:
            opened = await gather([partial(self._open, info) for info in plan], width=PARALLEL_REQUESTS)
            errors = [each for each in opened if not isinstance(each, OpenedFile)]
            for error in errors:
                failed.note(error)
            if errors:
                raise errors[-1]
            return [each for each in opened if isinstance(each, OpenedFile)]

        try:
            return await plan_and_read(
                self.store,
                choose_files,
                open_files,
                list_files=partial(self.list_all, after=after),
                failed=failed,
                max_plans=MAX_PLANS,
                delay_s=0,
            )
        except NotFound as exc:
            raise TransientStorageError(f"files of {self.store.url} vanish as fast as they are listed") from exc

    async def _open(self, info: FileInfo) -> OpenedFile | DamagedFile | NotFound:
        try:
            return await again_if_damaged(partial(self.store.open, info))
        except (NotFound, DamagedFile) as exc:
            return exc


async def again_if_damaged(read: Callable[[], Awaitable[T]]) -> T:
    """Return what `read` returns. Damage is believed if it is there twice: it may have happened in transit."""
    try:
        return await read()
    except DamagedFile:
        return await read()
