"""A database at one TXID, and what the files of a poll make of it. Pure: no I/O, no clock.

A file is applied by the one rule of LTX: take its pages, drop every page beyond its commit, the size is its
commit. Files come in the order of a plan, each contiguous with the position or straddling it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import FormatError, PageSizeChanged, ReplicaError
from litereplica.format.sqlite import lock_pgno
from litereplica.ltxstore.limits import require_growth
from litereplica.ltxstore.store import OpenedFile
from litereplica.replica.file_holders import FileHolders
from litereplica.replica.file_table import FileTable
from litereplica.replica.page_key import Translation
from litereplica.replica.page_map import CHUNK, LOCATION, PageMap
from litereplica.types import TXID, Pos

APPLIED_AT_ONCE = 64 * CHUNK
"""Pages of a file whose locations are made at a time: 1 MiB, where those of a whole index are as large as the map."""

_NO_PAGES = np.empty(0, np.uint32)


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
    unchanged pages are in other files now, so holders of locations should take the new ones.
    """

    snapshot: Snapshot
    changed: NDArray[np.uint32]
    relocated: bool


def locations_of(opened: OpenedFile, file_id: int, part: slice = slice(None)) -> NDArray[np.void]:
    """LOCATION of each page of a file, or of a part of them, in the order of its index."""
    size = opened.index.size[part]
    rows = np.empty(len(size), LOCATION)
    rows["file"] = file_id
    rows["size"] = size
    rows["offset"] = opened.index.offset[part]
    return rows


def first_snapshot(files: Sequence[OpenedFile], table: FileTable) -> Snapshot:
    """The database that a whole plan makes. Raises `ReplicaError` when a page is in none of its files.

    After a change of the page size only the files from there on count; the first of them has every page.
    """
    return assemble(files, [table.add(file) for file in files], table.holders)


def assemble(
    files: Sequence[OpenedFile], file_ids: Sequence[int], holders: FileHolders, *, base: Snapshot | None = None
) -> Snapshot:
    """As `first_snapshot`, for files whose ids are known, upon the database that the files before them make."""
    if base is not None and not files:
        return base
    page_size = files[-1].header.page_size
    start = max((i + 1 for i, file in enumerate(files) if file.header.page_size != page_size), default=0)
    pages = PageMap.empty(page_size, holders)
    if base is not None and start == 0 and base.page_size == page_size:
        pages = base.pages
    snapshot = _apply(pages, files[start:], file_ids[start:])
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
    require_pages(files[0], commit=before.commit)
    after = _apply(before.pages, files, [table.add(file) for file in files])
    return Update(after, changed_pages(before.commit, files), relocated=False)


def changed_pages(commit: int, files: Sequence[OpenedFile]) -> NDArray[np.uint32]:
    """Return the pages that may differ once `files` are applied to a database of `commit` pages, ascending.

    Those that the files have, and those that were cut off in between and are part of the database again.
    """
    final = files[-1].header.commit
    lowest = min(commit, *(file.header.commit for file in files))
    regrown = np.arange(lowest + 1, final + 1, dtype=np.uint32)
    pgnos = np.unique(np.concatenate([regrown, *(file.index.pgno for file in files)]))
    changed: NDArray[np.uint32] = pgnos[(pgnos <= final) & (pgnos != lock_pgno(files[-1].header.page_size))]
    return changed


def changed_since(before: Snapshot, after: Snapshot, plan: Sequence[OpenedFile]) -> NDArray[np.uint32]:
    """Return the pages of `after`, which `plan` makes, that may differ from those of `before`, ascending.

    All of them if the plan ends no later than `before` but makes a database of another size.
    """
    later = [file for file in plan if file.header.max_txid > before.pos.txid]
    if later:
        return changed_pages(before.commit, later)
    return np.empty(0, np.uint32) if after.commit == before.commit else all_pages(after)


def renaming(before: PageMap, after: PageMap, changed: NDArray[np.uint32], table: FileTable) -> Translation:
    """Return how cached pages are renamed when `after` replaces `before`. Pages not in `changed` are the same."""

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
    """Return the error for a file whose pages have another size than those `before` it."""
    after = file.header.page_size
    return PageSizeChanged(
        f"{file.info} has pages of {after} bytes, the database before it of {before}", before=before, after=after
    )


def all_pages(snapshot: Snapshot) -> NDArray[np.uint32]:
    """Return every page of a database but the lock page."""
    pgnos = np.arange(1, snapshot.commit + 1, dtype=np.uint32)
    changed: NDArray[np.uint32] = pgnos[pgnos != lock_pgno(snapshot.page_size)]
    return changed


def sharing(
    pages: PageMap, other: PageMap, last_txids: tuple[NDArray[np.uint32], NDArray[np.uint64]], common: TXID
) -> PageMap:
    """Return `pages` with the locations of `other` for pages that are known to have the same version in both.

    Both maps have the same history up to TXID `common`, and reach that far. A page that is in no file that ends later,
    in either map, has not changed after `common`. `last_txids` are the ids of files, ascending, and their max TXIDs.
    """
    early = last_txids[0][last_txids[1] <= common]

    def share(_: int, own: NDArray[np.void], theirs: NDArray[np.void]) -> NDArray[np.void]:
        if own is theirs:
            return own
        same = np.isin(own["file"], early) & np.isin(theirs["file"], early)
        if bool((same | (own == theirs)).all()):
            return theirs
        return _exchanged(own, theirs, same & (own["file"] != theirs["file"]))

    return pages.combined(share, other)


def following(pages: PageMap, before: PageMap, after: PageMap, changed: NDArray[np.uint32]) -> PageMap:
    """Return `pages` with the locations of `after` where it has those of `before`, except for pages in `changed`."""

    def follow(first: int, own: NDArray[np.void], old: NDArray[np.void], new: NDArray[np.void]) -> NDArray[np.void]:
        if old is new:
            return own
        span = changed[np.searchsorted(changed, first) : np.searchsorted(changed, first + len(own))]
        kept = np.ones(len(own), np.bool_)
        kept[span.astype(np.int64) - first] = False
        moved = kept & (own["file"] != 0) & (own == old) & (new["file"] != 0)
        return new if bool((moved | (own == new)).all()) else _exchanged(own, new, moved)

    return pages.combined(follow, before, after)


def _exchanged(own: NDArray[np.void], others: NDArray[np.void], rows: NDArray[np.bool_]) -> NDArray[np.void]:
    """Return `own` with the given rows of `others`; `own` itself if there are none."""
    if not rows.any():
        return own
    exchanged = own.copy()
    exchanged[rows] = others[rows]
    return exchanged


def require_pages(file: OpenedFile, *, commit: int) -> None:
    """Raise `ReplicaError` if a file makes a database of `commit` pages grow by pages that it does not have."""
    try:
        require_growth(file.header, file.index, commit=commit)
    except FormatError as exc:
        raise ReplicaError(f"{file.info}: {exc.message}", hint="run 'litereplica verify' on the replica") from exc


_Group: TypeAlias = list[tuple[OpenedFile, int]]
"""Files that are applied at once, oldest first, with their ids."""


def _apply(pages: PageMap, files: Sequence[OpenedFile], file_ids: Sequence[int]) -> Snapshot:
    """The database that files make. That each has the pages by which it grows was checked when they were opened."""
    for group in _groups(files, file_ids):
        if len(group) == 1:
            pages = _applied(pages, *group[0])
        else:
            lowest = min(file.header.commit for file, _ in group)
            if lowest < pages.commit:
                pages = pages.applied(_NO_PAGES, np.empty(0, LOCATION), commit=lowest)
            pages = pages.applied(*merged(group), commit=group[-1][0].header.commit)
    last = files[-1].header
    return Snapshot(Pos(last.max_txid), last.timestamp_ms, last.page_size, last.commit, pages)


def _groups(files: Sequence[OpenedFile], file_ids: Sequence[int]) -> Iterator[_Group]:
    """Yield files in groups of up to `APPLIED_AT_ONCE` pages: each application copies every chunk that it changes."""
    group: _Group = []
    rows = 0
    for file, file_id in zip(files, file_ids, strict=True):
        if group and rows + len(file.index) > APPLIED_AT_ONCE:
            yield group
            group, rows = [], 0
        group.append((file, file_id))
        rows += len(file.index)
    yield group


def _applied(pages: PageMap, file: OpenedFile, file_id: int) -> PageMap:
    """Return the map after one file, whose locations are made in parts."""
    for start in range(0, max(1, len(file.index)), APPLIED_AT_ONCE):
        part = slice(start, start + APPLIED_AT_ONCE)
        pages = pages.applied(file.index.pgno[part], locations_of(file, file_id, part), commit=file.header.commit)
    return pages


def merged(group: Sequence[tuple[OpenedFile, int]]) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
    """Return the pages that files make together and their locations: of each page the newest that was not cut off."""
    limit = group[-1][0].header.commit
    pgnos: list[NDArray[np.uint32]] = []
    locations: list[NDArray[np.void]] = []
    for file, file_id in reversed(group):
        limit = min(limit, file.header.commit)
        kept = slice(int(np.searchsorted(file.index.pgno, limit, side="right")))
        pgnos.append(file.index.pgno[kept])
        locations.append(locations_of(file, file_id, kept))
    every = np.concatenate(pgnos)
    _, newest = np.unique(every, return_index=True)
    return every[newest], np.concatenate(locations)[newest]
