"""Where each page of a database lies at one TXID: an immutable map pgno → place in a file of the store.

The rows are kept in chunks of `CHUNK` pages that maps share: applying a transaction copies only the chunks that it
touches, so old maps stay valid for readers that still use them. 16 bytes a page.

Invariants: a chunk is never written once a map holds it; rows beyond `commit` in the last chunk have file 0,
so that a database that shrinks and grows again has no page there until a file supplies it.

Files are applied by `snapshot.py`; what a file id stands for is known to `file_table.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from litereplica.format.sqlite import lock_pgno
from litereplica.replica.file_holders import FileHolders
from litereplica.types import Pgno

LOCATION: np.dtype[np.void] = np.dtype([("file", np.uint32), ("size", np.uint32), ("offset", np.uint64)])
"""Place of a page: id of the file in a `FileTable` (0 = no page there), size and offset of its frame in bytes."""

ChunkRule: TypeAlias = Callable[..., NDArray[np.void]]

_SHIFT = 10
CHUNK = 1 << _SHIFT
"""Pages a chunk: 16 KiB to copy for a change in one place, 2,000 chunks to list for 2 million pages."""

_NOWHERE: NDArray[np.void] = np.zeros(CHUNK, LOCATION)
_NOWHERE.flags.writeable = False


class PageMap:
    """Place of every page of a database of `commit` pages. Immutable; `empty` and `applied` make new ones."""

    __slots__ = ("__weakref__", "_chunks", "_holders", "commit", "page_size")

    def __init__(
        self, page_size: int, commit: int, chunks: list[NDArray[np.void]], holders: FileHolders | None = None
    ) -> None:
        self.page_size = page_size
        self.commit = commit
        self._chunks = chunks
        self._holders = holders
        if holders is not None:
            holders.add(self)

    @classmethod
    def empty(cls, page_size: int, holders: FileHolders | None = None) -> PageMap:
        """Return the map of a database without pages. It and all maps made from it register with `holders`."""
        return cls(page_size, 0, [], holders)

    def lookup(self, pgnos: NDArray[np.uint32]) -> NDArray[np.void]:
        """Return the LOCATION of each page, in the order asked; file 0 beyond `commit`."""
        rows = pgnos.astype(np.int64) - 1
        found = np.zeros(len(rows), LOCATION)
        if len(rows) == 0:
            return found
        if rows.min() < 0:
            raise ValueError("there is no page 0")
        chunk_ids = rows >> _SHIFT
        first = int(chunk_ids[0])
        if (chunk_ids == first).all():
            if first < len(self._chunks):
                found[:] = self._chunks[first][rows & (CHUNK - 1)]
            return found
        order = np.argsort(chunk_ids, kind="stable")
        for chunk_id, part in _runs(chunk_ids[order]):
            if chunk_id < len(self._chunks):
                at = order[part]
                found[at] = self._chunks[chunk_id][rows[at] & (CHUNK - 1)]
        return found

    def file_ids(self, first: Pgno, last: Pgno) -> list[int]:
        """Return the file id of each page from `first` to `last`, which are within `commit`: 0 for none."""
        start, stop = first - 1, last
        ids: list[int] = []
        while start < stop:
            chunk, row = self._chunks[start >> _SHIFT], start & (CHUNK - 1)
            ids += chunk["file"][row : row + stop - start].tolist()
            start += CHUNK - row
        return ids

    def applied(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], *, commit: int) -> PageMap:
        """Return the map after a file with these pages (ascending) has made the database `commit` pages long.

        Pages beyond `commit` are dropped. Pages that the database gains and the file does not have are absent.
        """
        chunks = self._resized(commit)
        count = int(np.searchsorted(pgnos, commit, side="right"))
        rows = pgnos[:count].astype(np.int64) - 1
        for chunk_id, part in _runs(rows >> _SHIFT):
            chunk = chunks[chunk_id].copy()
            chunk[rows[part] & (CHUNK - 1)] = locations[part]
            chunks[chunk_id] = _frozen(chunk)
        return PageMap(self.page_size, commit, chunks, self._holders)

    def chunks(self, *, since: PageMap | None = None) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.void]]]:
        """Yield all pages in order, in pieces: (pgnos, LOCATION). Pieces that `since` shares are left out."""
        known = since._chunks if since is not None else []
        for chunk_id, chunk in enumerate(self._chunks):
            if chunk_id < len(known) and known[chunk_id] is chunk:
                continue
            first = chunk_id << _SHIFT
            count = min(CHUNK, self.commit - first)
            yield np.arange(first + 1, first + count + 1, dtype=np.uint32), chunk[:count]

    def combined(self, rule: ChunkRule, *others: PageMap) -> PageMap:
        """Return a map of the same pages, each chunk made by `rule` from the chunks of this map and the others.

        `rule` gets the first pgno of the chunk and the chunks, `self`'s first, and returns one of them or a new one.
        Chunks that one of the others does not have stay as they are.
        """
        chunks = list(self._chunks)
        for chunk_id, parts in enumerate(zip(self._chunks, *(each._chunks for each in others), strict=False)):
            chunks[chunk_id] = _frozen(rule((chunk_id << _SHIFT) + 1, *parts))
        return PageMap(self.page_size, self.commit, chunks, self._holders)

    def files(self) -> NDArray[np.uint32]:
        """Return the ids of the files that hold at least one page, ascending. Looks at every page."""
        ids: set[int] = set()
        for chunk in self._chunks:
            ids.update(np.unique(chunk["file"]).tolist())
        ids.discard(0)
        return np.array(sorted(ids), np.uint32)

    def missing(self, *, after: int = 0) -> NDArray[np.uint32]:
        """Return the pages in `after` < pgno ≤ commit that have no location, ascending, without the lock page."""
        first = after >> _SHIFT
        absent = [
            np.flatnonzero(chunk["file"] == 0) + (chunk_id << _SHIFT) + 1
            for chunk_id, chunk in enumerate(self._chunks[first:], first)
        ]
        pgnos: NDArray[np.uint32] = np.concatenate([np.empty(0, np.int64), *absent]).astype(np.uint32)
        wanted: NDArray[np.uint32] = pgnos[
            (pgnos > after) & (pgnos <= self.commit) & (pgnos != lock_pgno(self.page_size))
        ]
        return wanted

    def _resized(self, commit: int) -> list[NDArray[np.void]]:
        """Return the chunks of the database truncated, or grown by absent pages, to `commit` pages."""
        wanted = -(-commit >> _SHIFT)
        chunks = self._chunks[:wanted]
        chunks += [_NOWHERE] * (wanted - len(chunks))
        rest = commit & (CHUNK - 1)
        if commit < self.commit and rest:
            last = chunks[-1].copy()
            last[rest:] = 0
            chunks[-1] = _frozen(last)
        return chunks


def _frozen(chunk: NDArray[np.void]) -> NDArray[np.void]:
    chunk.flags.writeable = False
    return chunk


def _runs(chunk_ids: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """Yield runs of equal values in an ascending array: (value, slice)."""
    if len(chunk_ids) == 0:
        return
    starts = [0, *(np.flatnonzero(chunk_ids[1:] != chunk_ids[:-1]) + 1).tolist(), len(chunk_ids)]
    for start, stop in pairwise(starts):
        yield int(chunk_ids[start]), slice(start, stop)
