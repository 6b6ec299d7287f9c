"""Compacting a replica's files, as `levels.py` proposes it: merge, check, publish.

`merge.py` checks the inputs and merges them. Here the result is read back and checked before it gets its name in the
store, where it never replaces a file: if one has the name already, it must hold the same pages, and it is then the
result. After any error nothing has been published.

A plan and the reading of it are not atomic. `compact_level` and `snapshot` plan again when a file vanishes or turns out
damaged.
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
    """What came of a compaction: the file that has the result, and whether it was there already."""

    compaction: Compaction
    info: FileInfo
    adopted: bool


async def run_compaction(
    store: LTXStore, compaction: Compaction, *, spool_dir: Path | None = None, progress: Progress | None = None
) -> Compacted:
    """Merge the files and publish the result.

    `spool_dir` is for temporary files (default: the system's place for them). Raises `NotFound` when an input has
    gone, `DamagedFile` when one is wrong or the inputs do not add up, `ConflictError` when a file of that name holds
    other pages, `EnvironmentProblem` when this machine has no room, and the errors of storage.
    """
    merge = Merge(store, spool_dir)
    try:
        with (progress or no_progress)(compaction.size) as advance:
            spool, header = await merge.run(compaction, advance)
        await merge.verify(spool, header)
        info = FileInfo(compaction.level, compaction.min_txid, compaction.max_txid, spool.size, header.timestamp_ms)
        try:
            await publish(store, info, spool, timestamp_ms=header.timestamp_ms)
        except PreconditionFailed:
            return Compacted(compaction, await _adopted(store, merge, spool, info), adopted=True)
        return Compacted(compaction, info, adopted=False)
    finally:
        merge.discard()


async def compact_level(
    store: LTXStore, level: int, *, spool_dir: Path | None = None, progress: Progress | None = None
) -> Compacted | None:
    """Merge into `level`, now, what the level below has gained; None when it has not gained anything.

    Files that vanish meanwhile, or are damaged, are got around where others hold the same transactions.
    Raises as `run_compaction`.
    """
    return await _replanning(store, partial(next_compaction, level=level), spool_dir, progress)


async def snapshot(
    store: LTXStore, *, spool_dir: Path | None = None, progress: Progress | None = None
) -> Compacted | None:
    """Publish a snapshot of the newest TXID, now; None when there is one already.

    Raises `NoReplica`, `GapError`, and as `compact_level`.
    """
    return await _replanning(store, next_snapshot, spool_dir, progress)


async def _replanning(
    store: LTXStore, plan: Plan, spool_dir: Path | None, progress: Progress | None
) -> Compacted | None:
    """Plan and run; if an input fails, again. A plan without a damaged input must reach as far as the last one."""
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
    """The file that has the name of our result, if it holds the same pages."""
    found = await store.storage.head(store.key(info))
    theirs = replace(info, size=found.size, modified_ms=found.modified_ms)
    if not await merge.compare(spool, theirs):
        raise ConflictError(
            f"{store.key(info)} exists in {store.url} with other pages",
            hint="see whether several writers publish to this replica, and let only one of them go on",
        )
    return theirs
