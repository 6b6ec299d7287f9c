"""Lists files, makes a plan and reads its files; plans again when a file has vanished or is damaged.

    list_levels ──► choose ──► read ──► result
        ▲  no plan     │          │  NotFound, DamagedFile
        └──────────────┴──────────┘

A listing and the reading of what it names are not atomic: compaction moves transactions to higher levels, and retention
deletes files. So `plan_and_read` lists again, up to a limit, and then avoids the files that failed. A damaged file is
avoided only when it has been damaged twice: the damage may have happened in transit. It is avoided as long as other
files do instead; when none do any more, because they were merged into it and deleted, it is asked for again.

Concurrent listings of the levels are not atomic either: a file that is compacted in between may be missing from both
its old and its new level. So before a plan is considered impossible, the levels are listed once more, one after the
other from level 0 up. Since transactions only move up, such a listing misses none of them.

The callers define the plan and what is read of it: restore, compaction, verification, resuming, and `catalog.py`,
through which a mount opens its files, at the start and after a 404 (`replica/relocator.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol, TypeVar

import trio

from litereplica.errors import DamagedFile, NotFound, ReplicaError
from litereplica.ltxstore.store import LTXStore
from litereplica.types import FileInfo

P = TypeVar("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_PLANS = 8
"""A file may vanish between listing and reading; a replica in which this happens so often cannot be read."""

RELIST_DELAY_S = 0.25
"""Delay before another listing, which must show what has changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The files of one listing. `sound` are those not known to be damaged, `present` those that have not vanished.

    A listing may still show a file that has vanished, and a file may reappear. `in_order`: the levels were listed one
    after the other, from 0 up.
    """

    listed: Sequence[FileInfo]
    sound: list[FileInfo]
    present: list[FileInfo]
    in_order: bool


class FailedFiles:
    """Files of one store that have vanished or are damaged, by key. `damaged` may be shared with other objects.

    A file is `damaged` from its second failure on. `trusting` is False if its reader has read it twice already.
    """

    def __init__(
        self, store: LTXStore, *, damaged: dict[str, DamagedFile] | None = None, trusting: bool = True
    ) -> None:
        self.damaged: dict[str, DamagedFile] = {} if damaged is None else damaged
        self._store = store
        self._trusting = trusting
        self._suspected: set[str] = set()
        self._confirmed: set[str] = set()  # damaged since `doubt` was called last
        self._vanished: set[str] = set()

    def note(self, error: NotFound | DamagedFile) -> None:
        """Record the file that `error` is about. A damaged one is read once more at first."""
        if not isinstance(error, DamagedFile):
            self._vanished.add(error.key)
        elif self._trusting and error.key not in self._suspected:
            log.info("%s is read again: %s", error.key, error.reason)
            self._suspected.add(error.key)
        else:
            self.damaged[error.key] = error
            self._confirmed.add(error.key)

    def doubt(self) -> bool:
        """Take files for sound that were damaged the last time, for want of others; False if there are none.

        Those that were read since the last call, or since this object was made, were damaged just now.
        """
        doubted = self.damaged.keys() - self._confirmed
        for key in doubted:
            del self.damaged[key]
        self._confirmed.clear()
        return bool(doubted)

    def sound(self, files: Iterable[FileInfo]) -> list[FileInfo]:
        """Return the files that are not known to be damaged."""
        return [info for info in files if self._store.key(info) not in self.damaged] if self.damaged else [*files]

    def listing(self, listed: Sequence[FileInfo], *, in_order: bool) -> Listing:
        """Return the listing without the files that failed."""
        sound = self.sound(listed)
        present = [info for info in sound if self._store.key(info) not in self._vanished] if self._vanished else sound
        return Listing(listed, sound, present, in_order)

    def damage_in(self, files: Iterable[FileInfo]) -> DamagedFile | None:
        """Return the error of the first of the files that is damaged."""
        return next((self.damaged[key] for key in map(self._store.key, files) if key in self.damaged), None)


class ListFiles(Protocol):
    """Lists the files of a replica, level by level from 0 up if `in_order`."""

    async def __call__(self, *, in_order: bool) -> Sequence[FileInfo]:
        """Return the files."""
        ...


async def plan_and_read(
    store: LTXStore,
    choose: Callable[[Listing], Awaitable[P]],
    read: Callable[[P], Awaitable[T]],
    *,
    list_files: ListFiles | None = None,
    failed: FailedFiles | None = None,
    max_plans: int = MAX_PLANS,
    delay_s: float = RELIST_DELAY_S,
) -> T:
    """Return what `read` returns for the plan that `choose` makes of a listing, and plan again if a file fails.

    `choose` raises `ReplicaError` if there is no plan. `list_files` is `store.list_levels` by default. `failed` are
    files to avoid from the start; files that fail are added.

    Raises:
        DamagedFile: there is no plan without a damaged file.
        NotFound: files vanish in every plan.
        ReplicaError: from `choose`.
        StorageError: from the store.
    """
    lister: ListFiles = list_files or store.list_levels
    failed = failed or FailedFiles(store)
    for attempt in count(1):
        plan = await _plan(lister, choose, failed, delay_s)
        try:
            return await read(plan)
        except (NotFound, DamagedFile) as exc:
            if attempt == max_plans:
                raise
            failed.note(exc)
        await trio.sleep(delay_s)
    raise AssertionError("the last attempt returns or raises")


async def find_point(store: LTXStore, choose: Callable[[Listing], Awaitable[P]]) -> P:
    """Return what `choose` finds in a listing. If it raises `ReplicaError`, try once more level by level."""
    return await _plan(store.list_levels, choose, FailedFiles(store), RELIST_DELAY_S)


async def _plan(
    list_files: ListFiles,
    choose: Callable[[Listing], Awaitable[P]],
    failed: FailedFiles,
    delay_s: float,
) -> P:
    listed = await list_files(in_order=False)
    try:
        return await choose(failed.listing(listed, in_order=False))
    except ReplicaError:
        if not listed:
            raise
    await trio.sleep(delay_s)
    listed = await list_files(in_order=True)
    try:
        return await choose(failed.listing(listed, in_order=True))
    except ReplicaError as exc:
        damage = failed.damage_in(listed)
        if damage is None:
            raise
        if not failed.doubt():
            raise damage from exc
    return await choose(failed.listing(listed, in_order=True))
