"""The restore plan: which files, in which order, make the database at a TXID. Pure functions.

A file can be applied at any position from `min - 1` to `max - 1`: files may overlap, since the pages of transactions
that are already applied are then written again with the same content. So every file that can be applied at a position,
and leads beyond a greater one, can be applied at the greater one too. Therefore the greedy choice of the file that
reaches furthest finds a plan whenever there is one, and the newest snapshot is the best first file.

The plan is Litestream's, except that files before one that begins at TXID 1 are left out, since it replaces them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from litereplica.errors import GapError, NoReplica
from litereplica.types import TXID, FileInfo


def plan_restore(files: Sequence[FileInfo], *, target: TXID | None = None) -> list[FileInfo]:
    """Return the files to apply, oldest first: one that begins at TXID 1, then each file that reaches furthest.

    `target` is by default the newest TXID of all files.

    Raises:
        NoReplica: there are no files.
        GapError: no sequence of files ends at the target.
    """
    require_files(files)
    want = max(info.max_txid for info in files) if target is None else target
    plan = _plan([info for info in files if info.max_txid <= want])
    have = plan[-1].max_txid if plan else 0
    if not plan or have != want:
        raise GapError(
            f"the replica's files lead to TXID {have:016x}, not to {want:016x}",
            have=have,
            want=want,
            hint=_gap_hint(have),
        )
    return plan


def plan_newest(files: Sequence[FileInfo]) -> list[FileInfo]:
    """Return the plan for the newest TXID that can be reached, ignoring files beyond a gap.

    For readers that must serve some state, since files may temporarily be missing from a listing.

    Raises:
        NoReplica: there are no files.
        GapError: no file begins at TXID 1.
    """
    require_files(files)
    plan = _plan(files)
    if not plan:
        oldest = min(info.min_txid for info in files)
        raise GapError(
            f"the replica has no snapshot: its files begin at TXID {oldest:016x}",
            have=0,
            want=oldest,
            hint="wait for the writer's next snapshot, or run 'litereplica ltx --level all'",
        )
    return plan


def plan_steps(files: Iterable[FileInfo], *, after: TXID) -> list[FileInfo]:
    """Return the files that continue from TXID `after`, each contiguous with its predecessor, as far as they reach.

    At each step the file that reaches furthest is taken; of several, the one that begins first, then that of the
    highest level.
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


def reachable_txids(files: Iterable[FileInfo]) -> list[TXID]:
    """Return every TXID that can be restored, ascending: those for which `plan_restore` finds a plan."""
    reached = 0
    txids: list[TXID] = []
    for info in sorted(files, key=lambda info: (info.max_txid, info.min_txid)):
        if info.max_txid > reached and info.min_txid <= reached + 1:
            reached = info.max_txid
            txids.append(reached)
    return txids


def _plan(files: Sequence[FileInfo]) -> list[FileInfo]:
    """The newest snapshot and the files that continue from it; empty if no file begins at TXID 1."""
    snapshots = [info for info in files if info.is_snapshot]
    first = max(snapshots, key=lambda info: info.max_txid, default=None)
    plan = [first] if first is not None else []
    plan += plan_steps(files, after=first.max_txid if first is not None else 0)
    last_whole = max((i for i, info in enumerate(plan) if info.min_txid == 1), default=0)
    return plan[last_whole:]


def _gap_hint(have: TXID) -> str:
    if not have:
        return "run 'litereplica verify' to see what is missing"
    return f"--txid {have:016x} can be restored; 'litereplica verify' shows what is missing"


def require_files(files: Sequence[FileInfo]) -> None:
    """Raise `NoReplica` if a replica has no files."""
    if not files:
        raise NoReplica("the replica has no LTX files", hint="check the URL, or start 'litereplica replicate'")


def _reach(info: FileInfo) -> tuple[int, int, int]:
    return info.max_txid, -info.min_txid, info.level
