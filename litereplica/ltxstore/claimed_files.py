"""Keeps of the files of a plan what is needed of them: they are opened from the newest to the oldest.

A page is taken from the newest file that has it, unless a later transaction truncated the database before it. So each
file *claims* the pages that no newer one has, and the other rows of its index are dropped, with their pages. A backlog
of many small files so takes memory for the pages of the database, not for all of their versions, and a record for each
file. The oldest file keeps its whole index: the state that it makes may be the base of other plans.

The contents of small files, which were read with their indexes, are kept up to `KEPT_BYTES`, those of the newest files:
a cache of pages would drop more.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from litereplica.errors import DamagedFile
from litereplica.format import ltx
from litereplica.ltxstore.limits import pages_in_memory, require_commit, require_growth
from litereplica.ltxstore.store import LTXStore, OpenedFile

KEPT_BYTES = 16 * 1024 * 1024
"""Bytes of pages that are kept until the plan is applied: half of those that a mount has in memory."""

_NOTHING = ltx.PageIndex(np.empty(0, np.uint32), np.empty(0, np.uint64), np.empty(0, np.uint32))


class ClaimedFiles:
    """The opened files of one plan. `take` them newest first; `finish` returns them in the order of applying."""

    def __init__(self, store: LTXStore) -> None:
        self._store = store
        self._files: list[OpenedFile] = []
        self._above: OpenedFile | None = None  # the file taken last, whole, until the one below it is known
        self._claimed: NDArray[np.bool_] = np.zeros(0, np.bool_)  # by pgno
        self._missing = 0  # pages that no file has claimed
        self._limit = 0  # the smallest commit of the files that have claimed
        self._kept_bytes = 0

    @property
    def is_complete(self) -> bool:
        """True if every page of the newest state has been claimed, so that no older file is needed."""
        return bool(self._files) and self._missing == 0

    def take(self, opened: OpenedFile, *, is_oldest: bool) -> DamagedFile | None:
        """Keep what is needed of the next older file. Returns the first damage that it shows.

        Either this file claims too large a database, or the one taken before makes the database grow by pages that it
        does not have.
        """
        above, self._above = self._above, opened
        try:
            if above is not None:
                self._require_pages(above, onto=opened.header)
            if not self._files:
                self._begin(opened, is_oldest=is_oldest)
        except DamagedFile as exc:
            return exc
        self._files.append(self._within_budget(opened if is_oldest else self._needed(opened)))
        return None

    def skip(self) -> None:
        """Leave a file out that could not be opened: what it makes of the database is unknown."""
        self._above = None

    def finish(self, onto: int | None) -> list[OpenedFile]:
        """Return the files in the order of applying, to a database of `onto` pages; None if that is unknown.

        Raises `DamagedFile` as `take`, for the oldest file.
        """
        above, self._above = self._above, None
        if above is not None and onto is not None and not self.is_complete:
            with self._store.blame(above.info):
                require_growth(above.header, above.index, commit=onto)
        return self._files[::-1]

    def _require_pages(self, above: OpenedFile, *, onto: ltx.Header) -> None:
        same_size = above.header.page_size == onto.page_size  # else the database is made anew
        with self._store.blame(above.info):
            require_growth(above.header, above.index, commit=onto.commit if same_size else 0)

    def _begin(self, newest: OpenedFile, *, is_oldest: bool) -> None:
        self._limit = newest.header.commit
        self._missing = newest.header.snapshot_page_count
        if not is_oldest:
            with self._store.blame(newest.info):
                require_commit(newest.header, pages_in_memory())
            self._claimed = np.zeros(newest.header.commit + 1, np.bool_)

    def _needed(self, opened: OpenedFile) -> OpenedFile:
        """Return the file with those of its pages that no newer file has; they are claimed then."""
        index = opened.index
        taken = index.pgno[: np.searchsorted(index.pgno, self._limit, side="right")]
        if self._files and opened.header.page_size != self._files[0].header.page_size:
            taken = taken[:0]
        free = ~self._claimed[taken]
        self._claimed[taken] = True
        count = int(np.count_nonzero(free))
        self._missing -= count
        self._limit = min(self._limit, opened.header.commit)
        if count == len(index):
            return opened
        if not count:
            return replace(opened, index=_NOTHING, pages=None)
        rows = np.flatnonzero(free)
        pages = None if opened.pages is None else [opened.pages[row] for row in rows.tolist()]
        needed = ltx.PageIndex(index.pgno[rows], index.offset[rows], index.size[rows])
        return replace(opened, index=needed, pages=pages)

    def _within_budget(self, opened: OpenedFile) -> OpenedFile:
        if opened.pages is None:
            return opened
        self._kept_bytes += len(opened.pages) * opened.header.page_size
        return opened if self._kept_bytes <= KEPT_BYTES else replace(opened, pages=None)
