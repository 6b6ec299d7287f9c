"""Deletes the files of a replica that `retention.py` finds superfluous, and checksums that have lost their file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import trio

from litereplica.compaction.retention import Deletion, RetentionPolicy, due_deletions, next_deletion_ms
from litereplica.ltxstore.frame_checksums import parse_sums_key
from litereplica.ltxstore.store import LTXStore
from litereplica.times import DAY_MS, SteadyClock
from litereplica.types import FileInfo, FileName

T = TypeVar("T")

FILES_AT_ONCE = 256
"""To decide about this many takes a millisecond or two; more are decided about in a thread."""


class Pruner:
    """Deletes superfluous files of the replica in `store`. One for the life of a process: it remembers which files
    have appeared meanwhile."""

    def __init__(self, store: LTXStore, policy: RetentionPolicy, clock: SteadyClock) -> None:
        self.store = store
        self._policy = policy
        self._clock = clock
        self._seen_ms: dict[FileName, int] | None = None
        self._readable: set[FileName] = set()  # that were read once
        self._sweep_ms = clock.steady_ms()  # when to look for checksums without a file

    def appeared(self, info: FileInfo) -> None:
        """A file has just appeared in the store. (Otherwise the next listing shows it.)"""
        if self._seen_ms is not None:
            self._seen_ms.setdefault(info.name, self._clock.steady_ms())

    async def due(self, files: Sequence[FileInfo]) -> list[Deletion]:
        """Returns the files to delete now, in this order. `files` are those of all levels, as far as they are known."""
        return await _in_thread(due_deletions, self._aged(files), self._policy, self._clock.now_ms())

    async def next_due_ms(self, files: Sequence[FileInfo]) -> int | None:
        """Returns the time from which more may be due than now; None: never, with these files."""
        return await _in_thread(next_deletion_ms, self._aged(files), self._policy, self._clock.now_ms())

    async def delete(self, due: Sequence[Deletion], *, deleted: Callable[[FileInfo], None] = lambda info: None) -> None:
        """Delete these files one by one; `deleted` is called for each.

        Deletes nothing unless every file that covers a deleted one can be read, header and page index: otherwise raises
        `DamagedFile` or `NotFound`, and the errors of storage. An interrupted run leaves nothing half done.
        """
        for info in {deletion.covered_by for deletion in due}:
            await self._require_readable(info)
        for deletion in due:
            await self.store.delete([deletion.info])
            deleted(deletion.info)
        if due and self._clock.steady_ms() >= self._sweep_ms:
            self._sweep_ms = self._clock.steady_ms() + DAY_MS
            await sweep_sums(self.store, self._clock.now_ms())

    def _aged(self, files: Sequence[FileInfo]) -> list[FileInfo]:
        """The files, those that appeared after the first listing no older than their appearance."""
        before, now_ms = self._seen_ms, self._clock.steady_ms()
        names = [info.name for info in files]
        self._seen_ms = (
            dict.fromkeys(names, 0) if before is None else {name: before.get(name, now_ms) for name in names}
        )
        self._readable &= self._seen_ms.keys()
        return [replace(info, modified_ms=max(info.modified_ms, self._seen_ms[info.name])) for info in files]

    async def _require_readable(self, info: FileInfo) -> None:
        """Read the file once; afterwards only check that it still exists, by a request without a body."""
        name = info.name
        if name in self._readable:
            await self.store.storage.head(self.store.key(info))
        else:
            await self.store.open(info)
            self._readable.add(name)


async def sweep_sums(store: LTXStore, now_ms: int) -> list[str]:
    """Delete the frame checksums of files that do not exist. Returns their keys. One LIST, and those of all levels if
    any checksums are old enough.

    Checksums are put before their file, which may take hours to upload: those younger than a day stay.
    """
    old = [item.key for item in await store.list_sums() if now_ms - item.modified_ms > DAY_MS]
    names = {key: name for key in old if (name := parse_sums_key(key)) is not None}
    if not names:
        return []
    files = {info.name for info in await store.list_levels()}
    orphans = [key for key, name in names.items() if name not in files]
    if orphans:
        await store.storage.delete(orphans)
    return orphans


async def _in_thread(
    decide: Callable[[Sequence[FileInfo], RetentionPolicy, int], T],
    files: Sequence[FileInfo],
    policy: RetentionPolicy,
    now_ms: int,
) -> T:
    """Runs `decide`, in a worker thread if there are many files."""
    if len(files) <= FILES_AT_ONCE:
        return decide(files, policy, now_ms)
    return await trio.to_thread.run_sync(decide, files, policy, now_ms)
