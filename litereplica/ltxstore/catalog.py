"""Lists the files of a replica, and opens those of a plan, although files may vanish or be damaged.

`choose`, given by the caller, makes a plan, and its files are opened concurrently. If one has vanished, the replica is
listed again (`replan.py`). A file that fails a check is read once more, in case it was damaged in transit; if it fails
again, it is avoided as long as other files contain its transactions, and then asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

from litereplica.concurrent import in_order
from litereplica.errors import DamagedFile, NotFound, TransientStorageError
from litereplica.ltxstore.claimed_files import ClaimedFiles
from litereplica.ltxstore.replan import FailedFiles, Listing, plan_and_read
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.types import TXID, FileInfo

log = logging.getLogger(__name__)

T = TypeVar("T")

Chooser: TypeAlias = Callable[[Sequence[FileInfo]], list[FileInfo]]
"""Picks the files to open, in the order of applying; raises `ReplicaError` if they do not suffice."""

PARALLEL_REQUESTS = 16
"""Concurrent requests when many files are opened: hides the round trips, and leaves half of the connections to S3 for
readers."""

MAX_PLANS = 5
"""Maximum number of plans for one call. A file may vanish between listing and reading, but not five times in a row."""


class Catalog:
    """The files below one root. `damaged` are the known damaged ones, by key; catalogs of one root may share it."""

    def __init__(self, store: LTXStore, *, damaged: dict[str, DamagedFile] | None = None) -> None:
        self.store = store
        self.damaged: dict[str, DamagedFile] = {} if damaged is None else damaged
        self._avoided: set[str] = set()

    def avoid(self, damage: DamagedFile) -> bool:
        """Record a damaged file. Returns True for the first time that it is damaged."""
        is_new = damage.key not in self._avoided
        self._avoided.add(damage.key)
        self.damaged[damage.key] = damage
        return is_new

    def trust(self, info: FileInfo) -> None:
        """Record that a file is not damaged, after it has been read: it may have been incomplete before."""
        if self.damaged:
            self.damaged.pop(self.store.key(info), None)

    async def list_all(self, *, after: TXID = 0, in_order: bool = False) -> Sequence[FileInfo]:
        """Return the files of all levels with a max TXID greater than `after`; see `LTXStore.list_levels`."""
        return await self.store.list_levels(after=after, in_order=in_order)

    async def open(
        self, choose: Chooser, *, after: TXID = 0, onto: int | None = 0, only_needed: bool = False
    ) -> list[OpenedFile]:
        """Return the files that `choose` picks from those with a max TXID greater than `after`, opened.

        Of all but the oldest, only the pages that no newer one has are kept (`claimed_files.py`). `onto` is the number
        of pages of the database that they are applied to; None if it is unknown. If `only_needed`, the plan is for a
        whole database, and the oldest files are left out if the newer ones have all of its pages.

        Raises the errors of `choose`; `DamagedFile` if only a damaged file would complete the plan.
        """
        failed = FailedFiles(self.store, damaged=self.damaged, trusting=False)

        def note(error: NotFound | DamagedFile) -> None:
            if isinstance(error, DamagedFile) and error.key not in self.damaged:
                log.info("%s is not used: %s", error.key, error.reason)
            failed.note(error)

        async def choose_files(listing: Listing) -> list[FileInfo]:
            return choose(listing.present)

        async def open_files(plan: list[FileInfo]) -> list[OpenedFile]:
            return await self._open_plan(plan, onto, note, only_needed=only_needed)

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

    async def _open_plan(
        self,
        plan: list[FileInfo],
        onto: int | None,
        note: Callable[[NotFound | DamagedFile], None],
        *,
        only_needed: bool,
    ) -> list[OpenedFile]:
        """Open the files of a plan, newest first. Each that fails is passed to `note`; the first error is raised."""
        files = ClaimedFiles(self.store)
        errors: list[NotFound | DamagedFile] = []

        async def take(opened: OpenedFile | DamagedFile | NotFound) -> bool:
            error: NotFound | DamagedFile | None
            if isinstance(opened, OpenedFile):
                error = files.take(opened, is_oldest=opened.info.max_txid == plan[0].max_txid)
            else:
                error = opened
                files.skip()
            if error is not None:
                errors.append(error)
                note(error)
            return not (only_needed and files.is_complete)

        await in_order((partial(self._open, info) for info in reversed(plan)), take, width=PARALLEL_REQUESTS)
        if errors:
            raise errors[0]
        return files.finish(onto)

    async def _open(self, info: FileInfo) -> OpenedFile | DamagedFile | NotFound:
        try:
            return await self.store.open(info)
        except (NotFound, DamagedFile) as exc:
            return exc


class SmallCatalog(Catalog):
    """A catalog that lists a replica by one request, if it has few files."""

    async def list_all(self, *, after: TXID = 0, in_order: bool = False) -> Sequence[FileInfo]:
        """Return the files of all levels; in order, level by level, if that is wanted."""
        if in_order:
            return await super().list_all(after=after, in_order=True)
        return await self.store.list_at_once(after=after)
