"""A database at one TXID, and what the files of a poll make of it. Pure: no I/O, no clock.

A file is applied by the one rule of LTX: take its pages, drop every page beyond its commit, the size is its
commit. Files come in the order of a plan, each contiguous with the position or straddling it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import PageSizeChanged, ReplicaError
from litereplica.format.sqlite import lock_pgno
from litereplica.ltxstore.store import OpenedFile
from litereplica.replica.files import FileTable
from litereplica.replica.page_key import Translation
from litereplica.replica.page_map import LOCATION, PageMap
from litereplica.types import Pos


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A database of `commit` pages at `pos`. `timestamp_ms` is that of the last file applied."""

    pos: Pos
    timestamp_ms: int
    page_size: int
    commit: int
    pages: PageMap


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What one poll, or one healing, brought.

    `changed`: the pages ≤ commit whose content may differ from that of the snapshot before, ascending. `relocated`:
    pages that have not changed lie in other files now, so that whoever holds locations should take the new ones.
    """

    snapshot: Snapshot
    changed: NDArray[np.uint32]
    relocated: bool


def locations_of(opened: OpenedFile, file_id: int) -> NDArray[np.void]:
    """LOCATION of each page of a file, in the order of its index."""
    rows = np.empty(len(opened.index), LOCATION)
    rows["file"] = file_id
    rows["size"] = opened.index.size
    rows["offset"] = opened.index.offset
    return rows


def first_snapshot(files: Sequence[OpenedFile], table: FileTable) -> Snapshot:
    """The database that a whole plan makes. Raises `ReplicaError` when a page is in none of its files.

    After a change of the page size only the files from there on count; the first of them has every page.
    """
    page_size = files[-1].header.page_size
    start = max((i + 1 for i, file in enumerate(files) if file.header.page_size != page_size), default=0)
    snapshot = _apply(PageMap.empty(page_size), files[start:], table)
    missing = snapshot.pages.missing()
    if len(missing):
        raise ReplicaError(
            f"{len(missing)} of {snapshot.commit} pages are in no file, the first of them page {missing[0]}",
            hint="run 'litereplica ltx --level all' to see which files there are",
        )
    return snapshot


def advance(before: Snapshot, files: Sequence[OpenedFile], table: FileTable) -> Update:
    """The update that `files` make of a snapshot. Raises `PageSizeChanged`."""
    for file in files:
        if file.header.page_size != before.page_size:
            raise page_size_changed(before.page_size, file)
    return Update(_apply(before.pages, files, table), changed_pages(before.commit, files), relocated=False)


def changed_pages(commit: int, files: Sequence[OpenedFile]) -> NDArray[np.uint32]:
    """The pages that may differ once `files` have been applied to a database of `commit` pages, ascending.

    Those that the files have, and those that were cut off in between and are part of the database again.
    """
    final = files[-1].header.commit
    lowest = min(commit, *(file.header.commit for file in files))
    regrown = np.arange(lowest + 1, final + 1, dtype=np.uint32)
    pgnos = np.unique(np.concatenate([regrown, *(file.index.pgno for file in files)]))
    changed: NDArray[np.uint32] = pgnos[(pgnos <= final) & (pgnos != lock_pgno(files[-1].header.page_size))]
    return changed


def changed_since(before: Snapshot, after: Snapshot, plan: Sequence[OpenedFile]) -> NDArray[np.uint32]:
    """The pages of `after`, which `plan` makes, that may differ from those of `before`, ascending.

    All of them when the plan contradicts what we know.
    """
    later = [file for file in plan if file.header.max_txid > before.pos.txid]
    if later:
        return changed_pages(before.commit, later)
    return np.empty(0, np.uint32) if after.commit == before.commit else all_pages(after)


def renaming(before: PageMap, after: PageMap, changed: NDArray[np.uint32], table: FileTable) -> Translation:
    """The keys of cached pages when `after` takes the place of `before`: those not in `changed` are the same pages."""

    def translate(checksums: NDArray[np.uint64], pgnos: NDArray[np.uint32]) -> NDArray[np.uint64]:
        rows = np.flatnonzero((pgnos > 0) & ~np.isin(pgnos, changed))
        old = table.checksums(before.lookup(pgnos[rows])["file"])
        new = table.checksums(after.lookup(pgnos[rows])["file"])
        moved = (old == checksums[rows]) & (new != 0)
        renamed = checksums.copy()
        renamed[rows[moved]] = new[moved]
        return renamed

    return translate


def page_size_changed(before: int, file: OpenedFile) -> PageSizeChanged:
    """The error for a file whose pages have another size than those `before` it."""
    after = file.header.page_size
    return PageSizeChanged(
        f"{file.info} has pages of {after} bytes, the database before it of {before}", before=before, after=after
    )


def all_pages(snapshot: Snapshot) -> NDArray[np.uint32]:
    """Every page of a database but the lock page."""
    pgnos = np.arange(1, snapshot.commit + 1, dtype=np.uint32)
    changed: NDArray[np.uint32] = pgnos[pgnos != lock_pgno(snapshot.page_size)]
    return changed


def _apply(pages: PageMap, files: Sequence[OpenedFile], table: FileTable) -> Snapshot:
    for file in files:
        pages = pages.applied(file.index.pgno, locations_of(file, table.add(file)), commit=file.header.commit)
    last = files[-1].header
    return Snapshot(Pos(last.max_txid), last.timestamp_ms, last.page_size, last.commit, pages)
