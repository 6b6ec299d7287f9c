"""The restore plan: which files, in which order, make the database at a TXID. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from litereplica.errors import GapError, NoReplica
from litereplica.format.names import SNAPSHOT_LEVEL
from litereplica.types import TXID, FileInfo


def plan_restore(files: Sequence[FileInfo], *, target: TXID | None = None) -> list[FileInfo]:
    """The files to apply, oldest first: a snapshot, then whatever carries it furthest, step by step.

    `target` None means as far as the files reach. Raises `NoReplica` when there are no files, `GapError` when
    the target (or the newest TXID) is not reached exactly.
    """
    if not files:
        raise NoReplica("the replica has no LTX files", hint="check the URL, or start 'litereplica replicate'")
    newest = max(info.max_txid for info in files)
    want = newest if target is None else target
    usable = [info for info in files if info.max_txid <= want]
    snapshots = [info for info in usable if info.level == SNAPSHOT_LEVEL and info.min_txid == 1]
    first = max(snapshots, key=lambda info: info.max_txid, default=None)
    plan = [first] if first is not None else []
    reached = plan_steps(usable, after=first.max_txid if first is not None else 0)
    plan += reached
    have = plan[-1].max_txid if plan else 0
    if have != want:
        raise GapError(
            f"the replica's files lead to TXID {have:016x}, not to {want:016x}",
            have=have,
            want=want,
            hint="run 'litereplica ltx --level all' to see which files there are",
        )
    return plan


def plan_steps(files: Iterable[FileInfo], *, after: TXID) -> list[FileInfo]:
    """The files that lead on from a position, as far as they go: each contiguous with the one before.

    Of those that fit, the one that reaches furthest is taken; then the one that begins first; then the highest level.
    """
    by_start = sorted(files, key=lambda info: info.min_txid)
    steps: list[FileInfo] = []
    position, i = after, 0
    best: FileInfo | None = None
    while True:
        while i < len(by_start) and by_start[i].min_txid <= position + 1:
            if best is None or _reach(by_start[i]) > _reach(best):
                best = by_start[i]
            i += 1
        if best is None or best.max_txid <= position:
            return steps
        steps.append(best)
        position = best.max_txid


def _reach(info: FileInfo) -> tuple[int, int, int]:
    return info.max_txid, -info.min_txid, info.level
