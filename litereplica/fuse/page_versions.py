"""Where a superseded version of a page lies, after the file that it was read from has been deleted.

A client that stays in a transaction reads pages as they were. The newest version of a page is in every plan for the
current position, but one that was changed since is in none. It is in older states that the store still leads to: a page
that was last changed at TXID `since`, and then at `until`, has this version at each TXID from `since` to `until - 1`.

    TXID      1 ─────────── 5 ─────── 8 ───── 9        a reader's transaction is at 8
    page 7    changed                         changed  since 1, until 9: the state at 5 has it, from a merged file

So a state at one TXID gives other locations to all versions whose range contains it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class PageVersions:
    """Some versions of pages, those of the base or of frames: number, first TXID, TXID at which another one follows."""

    pgnos: NDArray[np.uint32]
    since: NDArray[np.uint64]
    until: NDArray[np.uint64]
    is_base: bool

    def at(self, txid: int) -> NDArray[np.intp]:
        """Return the rows of the versions that the database has at a TXID."""
        return np.flatnonzero((self.since <= txid) & (txid < self.until))


def next_change(pgnos: NDArray[np.uint32], txids: NDArray[np.uint64], last: int) -> NDArray[np.uint64]:
    """Return for each of these changes, in order, the TXID of the next one of its page; `last` if there is none."""
    order = np.argsort(pgnos, kind="stable")
    follows = pgnos[order][1:] == pgnos[order][:-1]
    found = np.full(len(pgnos), last, np.uint64)
    found[order[:-1][follows]] = txids[order[1:][follows]]
    return found


def first_change(
    wanted: NDArray[np.uint32], pgnos: NDArray[np.uint32], txids: NDArray[np.uint64], last: int
) -> NDArray[np.uint64]:
    """Return the TXID of the first of these changes of each page `wanted`; `last` if there is none."""
    found = np.full(len(wanted), last, np.uint64)
    changed, first = np.unique(pgnos, return_index=True)
    row = np.minimum(np.searchsorted(changed, wanted), max(0, len(changed) - 1))
    known = changed[row] == wanted if len(changed) else np.zeros(len(wanted), bool)
    found[known] = txids[first[row[known]]]
    return found
