"""Deletes the files of a replica that `retention.py` finds superfluous, and frame checksums without a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import trio

from litereplica.compaction.checked_files import CheckedFiles
from litereplica.compaction.retention import Deletion, RetentionPolicy, due_deletions, next_deletion_ms
from litereplica.ltxstore.frame_checksums import parse_frame_checksums_key
from litereplica.ltxstore.store import LTXStore
from litereplica.times import DAY_MS, SteadyClock
from litereplica.types import FileInfo, FileName

T = TypeVar("T")

FILES_AT_ONCE = 256
"""Retention is decided in a worker thread for more files; up to this many take a millisecond or two."""


class Pruner:
    """Deletes superfluous files of the replica in `store`.

    Keep one for the life of the process: it remembers when files appeared, and which are checked; those also in
    `directory`, if there is one.
    """

    def __init__(
        self, store: LTXStore, policy: RetentionPolicy, clock: SteadyClock, *, directory: Path | None = None
    ) -> None:
        self.store = store
        self.checked = CheckedFiles(store, directory)
        self._policy = policy
        self._clock = clock
        self._seen_ms: dict[FileName, int] | None = None
        self._sweep_ms = clock.steady_ms()  # when the next sweep of frame checksums is due

    def appeared(self, info: FileInfo) -> None:
        """Record that a file has just appeared in the store, before it is in a listing."""
        if self._seen_ms is not None:
            self._seen_ms.setdefault(info.name, self._clock.steady_ms())

    async def made(self, info: FileInfo, checksum: int) -> None:
        """Record that a file was made here; `checksum` is that of its trailer."""
        self.checked.add(info, checksum)
        await trio.to_thread.run_sync(self.checked.save)

    async def due(self, files: Sequence[FileInfo]) -> list[Deletion]:
        """Return the files to delete now, in this order. `files` are the known files of all levels."""
        await self._load()
        return await _in_thread(due_deletions, self._aged(files), self._policy, self._clock.now_ms())

    async def next_due_ms(self, files: Sequence[FileInfo]) -> int | None:
        """Return the time from which more may be due than now; None: never, with these files."""
        await self._load()
        return await _in_thread(next_deletion_ms, self._aged(files), self._policy, self._clock.now_ms())

    async def delete(self, due: Sequence[Deletion], *, deleted: Callable[[FileInfo], None] = lambda info: None) -> None:
        """Delete these files one by one; `deleted` is called for each.

        First reads every file whole that covers a deleted one, unless that was made or read here before. An interrupted
        run leaves a valid replica.

        Raises:
            DamagedFile, NotFound: a covering file cannot be read; nothing has been deleted.
            StorageError: a request failed.
        """
        try:
            for info in {deletion.covered_by for deletion in due}:
                await self.checked.require(info)
        finally:
            if due:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self.checked.save)
        for deletion in due:
            await self.store.delete([deletion.info])
            deleted(deletion.info)
        if due and self._clock.steady_ms() >= self._sweep_ms:
            self._sweep_ms = self._clock.steady_ms() + DAY_MS
            await sweep_frame_checksums(self.store, self._clock.now_ms())

    async def _load(self) -> None:
        if self._seen_ms is None:
            await trio.to_thread.run_sync(self.checked.load)

    def _aged(self, files: Sequence[FileInfo]) -> list[FileInfo]:
        """The files, where `modified_ms` of those that appeared after the first listing is at least that time."""
        before, now_ms = self._seen_ms, self._clock.steady_ms()
        names = [info.name for info in files]
        self._seen_ms = (
            dict.fromkeys(names, 0) if before is None else {name: before.get(name, now_ms) for name in names}
        )
        self.checked.keep(names)
        return [replace(info, modified_ms=max(info.modified_ms, self._seen_ms[info.name])) for info in files]


async def sweep_frame_checksums(store: LTXStore, now_ms: int) -> list[str]:
    """Delete the frame checksums of files that do not exist. Returns the keys of the deleted objects.

    Frame checksums are put before their file, which may take hours to upload: those younger than a day are kept. Makes
    one listing, and those of all levels if any are old enough.
    """
    old = [item.key for item in await store.list_frame_checksums() if now_ms - item.modified_ms > DAY_MS]
    names = {key: name for key in old if (name := parse_frame_checksums_key(key)) is not None}
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
    """Run `decide`, in a worker thread if there are many files."""
    if len(files) <= FILES_AT_ONCE:
        return decide(files, policy, now_ms)
    return await trio.to_thread.run_sync(decide, files, policy, now_ms)
