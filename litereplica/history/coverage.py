"""Checks the files of a replica against each other, by their headers, page numbers and page digests. Pure functions.

    restore_steps         the last file of the plan for every point
    uncovered             the pages that no file of a plan supplies
    sources, difference   the inputs of a merged file, and how it differs from them

A point is a TXID that can be restored. The plan for a point is the plan for an earlier point and one more file. So all
plans form a tree, and examining each file once, at its place in the tree, covers all plans. `restore_steps` returns
this tree without making the plans.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from litereplica.format.ltx import Header
from litereplica.format.names import SNAPSHOT_LEVEL
from litereplica.ltxstore.plan import plan_steps
from litereplica.types import TXID, FileInfo, Pgno

PageRange = tuple[Pgno, Pgno]
"""The first and the last page of a run."""


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The content of a file: header, page numbers (ascending), and a digest of each page, or None if none were read.

    `file_checksum` is that of its trailer.
    """

    header: Header
    pgno: NDArray[np.uint32]
    digest: NDArray[np.uint64] | None
    file_checksum: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """The last file of the plan for `txid`. The plan for `before` has the other files, unless it is 0."""

    txid: TXID
    before: TXID
    info: FileInfo


def restore_steps(files: Iterable[FileInfo]) -> list[Step]:
    """Return the last file of the plan for every point, ascending; the plans are those of `plan_restore`."""
    steps = []
    chain = [0]  # from the newest snapshot on, the positions that the plan for the last point goes through
    reached = 0
    for txid, group in groupby(sorted(files, key=attrgetter("max_txid")), key=attrgetter("max_txid")):
        best = min(group, key=lambda info: (info.min_txid, -info.level))
        if best.min_txid > reached + 1:
            continue
        reached = txid
        if best.is_snapshot:
            steps.append(Step(txid, 0, best))
            chain = [txid]
            continue
        # a plan takes the first position at which a file that ends here can be applied
        row = bisect_left(chain, best.min_txid - 1)
        steps.append(Step(txid, 0 if best.min_txid == 1 else chain[row], best))
        chain[row + 1 :] = [txid]
    return steps


def uncovered(steps: Iterable[Step], contents: Mapping[FileInfo, Contents]) -> dict[TXID, list[PageRange]]:
    """Return, for each point whose plan does not supply all pages, the missing ones."""
    lacking: dict[TXID, list[PageRange]] = {}
    headers: dict[TXID, Header] = {}
    for step in steps:
        held = contents[step.info]
        header = headers[step.txid] = held.header
        before = headers.get(step.before)
        if before is None or header.is_snapshot or before.page_size != header.page_size:
            wanted = [(1, header.commit)]
        else:
            wanted = [(low, min(high, header.commit)) for low, high in lacking.get(step.before, ())]
            wanted.append((before.commit + 1, header.commit))
        ranges = [found for each in wanted for found in _holes(held.pgno, each, header.lock_pgno)]
        if ranges:
            lacking[step.txid] = ranges
    return lacking


def sources(info: FileInfo, by_end: Sequence[FileInfo]) -> list[FileInfo]:
    """Return files, oldest first, that together have exactly the transactions of a merged file; empty if none have.

    `by_end` are all files, ascending by max TXID. Files of lower levels are used, and for a snapshot other snapshots.
    """
    first = bisect_left(by_end, info.min_txid, key=attrgetter("max_txid"))
    last = bisect_right(by_end, info.max_txid, key=attrgetter("max_txid"))
    among = by_end[first:last]
    chain: list[FileInfo] = []
    if info.level == SNAPSHOT_LEVEL:
        chain = [each for each in among if each.level == info.level and each.min_txid == 1 and each != info][-1:]
    start = chain[0].max_txid if chain else info.min_txid - 1
    chain += plan_steps((each for each in among if each.level < info.level), after=start)
    complete = bool(chain) and chain[0].min_txid == info.min_txid and chain[-1].max_txid == info.max_txid
    return chain if complete else []


def difference(merged: Contents, chain: Sequence[Contents]) -> str | None:
    """Describe how a merged file differs from its sources, which are oldest first; None if it does not.

    It may have additional pages, from a source that overlapped others.
    """
    last = chain[-1].header
    for name in ("page_size", "commit"):
        expected, found = getattr(last, name), getattr(merged.header, name)
        if expected != found:
            return f"{name.replace('_', ' ')} is {found}, but that of the files it was merged from is {expected}"
    pgno, digest = _folded(chain)
    row = np.searchsorted(merged.pgno, pgno)
    row[row == len(merged.pgno)] = 0
    absent = pgno if not len(merged.pgno) else pgno[merged.pgno[row] != pgno]
    if len(absent):
        return f"page {absent[0]} is missing, but is in the files it was merged from"
    if digest is not None and merged.digest is not None:
        other = pgno[merged.digest[row] != digest]
        if len(other):
            return f"page {other[0]} differs from the files it was merged from ({len(other)} such pages)"
    return None


def _folded(chain: Sequence[Contents]) -> tuple[NDArray[np.uint32], NDArray[np.uint64] | None]:
    """The result of applying files in their order: page numbers, ascending, and digests."""
    limit = chain[-1].header.commit
    pgnos, digests = [], []
    for held in reversed(chain):
        limit = min(limit, held.header.commit)
        count = int(np.searchsorted(held.pgno, np.uint64(limit), side="right"))
        pgnos.append(held.pgno[:count])
        digests.append(None if held.digest is None else held.digest[:count])
    pgno, newest = np.unique(np.concatenate(pgnos), return_index=True)
    known = [each for each in digests if each is not None]
    return pgno, np.concatenate(known)[newest] if len(known) == len(digests) else None


def _holes(pgno: NDArray[np.uint32], wanted: PageRange, lock: Pgno) -> list[PageRange]:
    """The pages of a range that a file does not have, without the lock page."""
    low, high = wanted
    if low > high:
        return []
    start, stop = (int(np.searchsorted(pgno, np.uint64(end))) for end in (low, high + 1))
    if stop - start + (low <= lock <= high) == high - low + 1:
        return []
    there = pgno[start:stop].astype(np.int64)
    if low <= lock <= high:
        there = np.sort(np.append(there, lock))
    edges = np.concatenate(([low - 1], there, [high + 1]))
    rows = np.flatnonzero(np.diff(edges) > 1)
    return [(int(edges[row]) + 1, int(edges[row + 1]) - 1) for row in rows]
