"""Carries out a compaction that `levels.py` proposes: merge, check, publish.

`merge.py` checks the inputs and merges them. The result is read back and checked before it is published. It never
replaces a file: if a file of its name exists, it must have the same pages, and is used instead (`adopted`). After an
error nothing has been published.

Files may vanish or turn out to be damaged between listing and reading; `compact_level` and `snapshot` then plan again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from litereplica.compaction.levels import Compaction, next_compaction, next_snapshot
from litereplica.compaction.merge import Merge
from litereplica.errors import ConflictError, PreconditionFailed
from litereplica.ltxstore.progress import Progress, no_progress
from litereplica.ltxstore.replan import FailedFiles, Listing, plan_and_read
from litereplica.ltxstore.spooled_file import SpooledFile, publish
from litereplica.ltxstore.store import LTXStore
from litereplica.types import TXID, FileInfo

Plan: TypeAlias = Callable[[Sequence[FileInfo]], Compaction | None]


@dataclass(frozen=True, slots=True)
class Compacted:
    """The result of a compaction: the file, its checksum, and whether it existed already (`adopted`)."""

    compaction: Compaction
    info: FileInfo
    checksum: int
    adopted: bool


async def run_compaction(
    store: LTXStore, compaction: Compaction, *, spool_dir: Path | None = None, progress: Progress | None = None
) -> Compacted:
    """Merge the files and publish the result.

    `spool_dir` is for temporary files, by default the system's directory for them.

    Raises:
        NotFound: an input has vanished.
        DamagedFile: an input is damaged, or the inputs are not contiguous.
        ConflictError: a file of this name exists with other pages.
        EnvironmentProblem: the local disk is full.
        StorageError: a request failed.
    """
    merge = Merge(store, spool_dir)
    try:
        with (progress or no_progress)(compaction.size) as advance:
            spool, header = await merge.run(compaction, advance)
        checksum = await merge.verify(spool, header)
        info = FileInfo(compaction.level, compaction.min_txid, compaction.max_txid, spool.size, header.timestamp_ms)
        try:
            await publish(store, info, spool, timestamp_ms=header.timestamp_ms)
        except PreconditionFailed:
            return Compacted(compaction, await _adopted(store, merge, spool, info), checksum, adopted=True)
        return Compacted(compaction, info, checksum, adopted=False)
    finally:
        merge.discard()


async def compact_level(
    store: LTXStore, level: int, *, spool_dir: Path | None = None, progress: Progress | None = None
) -> Compacted | None:
    """Merge the new files of the level below into `level` now; returns None if there are none.

    Files that vanish or are damaged are avoided if other files contain their transactions. Raises the errors of
    `run_compaction`.
    """
    return await _replanning(store, partial(next_compaction, level=level), spool_dir, progress)


async def snapshot(
    store: LTXStore, *, spool_dir: Path | None = None, progress: Progress | None = None
) -> Compacted | None:
    """Publish a snapshot of the newest TXID now; returns None if there is one already.

    Raises `NoReplica`, `GapError`, and the errors of `compact_level`.
    """
    return await _replanning(store, next_snapshot, spool_dir, progress)


async def _replanning(
    store: LTXStore, plan: Plan, spool_dir: Path | None, progress: Progress | None
) -> Compacted | None:
    """Plan and run; plan again if an input fails. A plan that avoids a damaged input must reach as far as the first."""
    failed = FailedFiles(store)
    wanted: TXID = 0

    async def choose(listing: Listing) -> Compaction | None:
        nonlocal wanted
        compaction = plan(listing.sound)  # a vanished file that is still listed is no gap
        reached = 0 if compaction is None else compaction.max_txid
        if failed.damaged and reached < wanted:
            raise next(iter(failed.damaged.values()))
        wanted = reached
        return compaction

    async def run(compaction: Compaction | None) -> Compacted | None:
        if compaction is None:
            return None
        return await run_compaction(store, compaction, spool_dir=spool_dir, progress=progress)

    return await plan_and_read(store, choose, run, failed=failed)


async def _adopted(store: LTXStore, merge: Merge, spool: SpooledFile, info: FileInfo) -> FileInfo:
    """The existing file with the name of our result, if it has the same pages. Raises `ConflictError` otherwise."""
    found = await store.storage.head(store.key(info))
    theirs = replace(info, size=found.size, modified_ms=found.modified_ms)
    if not await merge.compare(spool, theirs):
        raise ConflictError(
            f"{store.key(info)} exists in {store.url} with other pages",
            hint="check whether several writers publish to this replica, and stop all but one of them",
        )
    return theirs
