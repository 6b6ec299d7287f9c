"""Which slot of the page file holds which page: a hash table over the slots, and the choice of what to evict.

A page is identified by a 64-bit hash of its key; the reader of the slot checks the whole key. Chains run through arrays
with one entry a slot, so a page takes 19 to 23 bytes of memory. Eviction is second chance: slots are reused in turn,
and those read since the last turn are passed over once. An owner that has more than its share of a full table reuses
its own slots. Pure; not safe for threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from litereplica.replica.page_key import PageKey

_MASK = (1 << 64) - 1
_MULTIPLIER_1 = 0x9E3779B97F4A7C15
_MULTIPLIER_2 = 0xBF58476D1CE4E5B9


def key_hash(key: PageKey) -> int:
    """Return a 64-bit hash of a page's key, never 0."""
    x = (key >> 32) ^ ((key & 0xFFFFFFFF) * _MULTIPLIER_1 & _MASK)
    x = (x ^ x >> 29) * _MULTIPLIER_2 & _MASK
    return (x ^ x >> 32) or 1


def key_hashes(checksums: NDArray[np.uint64], pgnos: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return `key_hash` of each of many keys."""
    x = checksums ^ (pgnos.astype(np.uint64) * np.uint64(_MULTIPLIER_1))
    x = (x ^ x >> np.uint64(29)) * np.uint64(_MULTIPLIER_2)
    hashes: NDArray[np.uint64] = x ^ x >> np.uint64(32)
    hashes[hashes == 0] = 1
    return hashes


class SlotIndex:
    """The table of a page file with `len(hashes)` slots; `hashes[slot]` is 0 for an empty slot."""

    def __init__(self, hashes: NDArray[np.uint64], *, owners: NDArray[np.uint16] | None = None) -> None:
        self._hashes = hashes
        buckets = 1 << max(0, len(hashes) - 1).bit_length()
        self._bucket_mask = buckets - 1
        self._heads = np.zeros(buckets, np.uint32)  # slot + 1, 0 = none; so are the links
        self._links = np.zeros(len(hashes), np.uint32)
        self._read = np.zeros(len(hashes), np.uint8)
        self._owners = np.zeros(len(hashes), np.uint16) if owners is None else owners  # 0 = unknown
        self._owned = Counter(self._owners[hashes != 0].tolist())
        self._used = int(np.count_nonzero(hashes))
        self._link_all()
        empty = np.flatnonzero(hashes == 0)
        self._hand = int(empty[0]) if len(empty) else 0

    def __len__(self) -> int:
        """Return the number of slots in use."""
        return self._used

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return len(self._hashes)

    def find(self, key: PageKey) -> Iterator[int]:
        """The slots that may hold a page. Taking one from the table while iterating is allowed."""
        wanted = key_hash(key)
        entry = self._heads.item(wanted & self._bucket_mask)
        while entry:
            following = self._links.item(entry - 1)
            if self._hashes.item(entry - 1) == wanted:
                yield entry - 1
            entry = following

    def first(self, hashed: int) -> int:
        """Return the first slot of a page by its `key_hash`; -1 if there is none. Others may follow: see `find`."""
        entry = self._heads.item(hashed & self._bucket_mask)
        while entry and self._hashes.item(entry - 1) != hashed:
            entry = self._links.item(entry - 1)
        return entry - 1

    def contains(self, checksums: NDArray[np.uint64], pgnos: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of many pages `find` would find a slot for: all chains are followed at the same time."""
        wanted = key_hashes(checksums, pgnos)
        entries = self._heads[(wanted & np.uint64(self._bucket_mask)).astype(np.int64)]
        found = np.zeros(len(wanted), np.bool_)
        rows = np.flatnonzero(entries)
        while len(rows):
            slots = entries[rows] - 1
            hit = self._hashes[slots] == wanted[rows]
            found[rows[hit]] = True
            entries[rows] = self._links[slots]
            rows = rows[~hit & (entries[rows] != 0)]
        return found

    def mark_read(self, slot: int, count: int = 1) -> None:
        """Record that the page in a slot, or those in `count` slots, have been read."""
        self._read[slot : slot + count] = 1

    def take(self, count: int, *, owner: int = 0, share: int = 0) -> list[int]:
        """Empty up to `count` different slots for new pages of an owner: at least one, if there are any.

        `share` is how many slots the owner may take from others; 0 for any number.
        """
        count = min(count, len(self._hashes))
        slots: dict[int, None] = {}
        if share:
            owned = self._owned[owner]
            growth = min(count, max(share - owned, len(self._hashes) - self._used))
            slots = dict.fromkeys(self._oldest_of(owner, count - growth))
            for slot in slots:
                self.remove(slot)
            count = growth + len(slots)
        while len(slots) < count:
            while self._read.item(self._hand) or self._hand in slots:
                self._read[self._hand] = 0
                self._hand = (self._hand + 1) % len(self._hashes)
            self.remove(self._hand)
            slots[self._hand] = None
            self._hand = (self._hand + 1) % len(self._hashes)
        return list(slots)

    def _oldest_of(self, owner: int, count: int) -> list[int]:
        """Return slots of an owner: those that come first in turn, unread ones before others."""
        if not count:
            return []
        rows = np.flatnonzero(self._owners == owner)
        rows = np.roll(rows, -int(np.searchsorted(rows, self._hand)))
        order = np.argsort(self._read[rows], kind="stable")
        self._read[rows] = 0
        oldest: list[int] = rows[order[:count]].tolist()
        return oldest

    def insert(self, slots: Sequence[int], keys: Sequence[PageKey], *, owner: int = 0) -> None:
        """Enter pages of an owner whose slots, taken before, are written now."""
        for slot, key in zip(slots, keys, strict=True):
            self.remove(slot)
            self._owners[slot] = owner
            self._owned[owner] += 1
            self._used += 1
            hashed = key_hash(key)
            bucket = hashed & self._bucket_mask
            self._hashes[slot] = hashed
            self._links[slot] = self._heads[bucket]
            self._heads[bucket] = slot + 1

    def remove(self, slot: int) -> None:
        """Empty a slot."""
        hashed = self._hashes.item(slot)
        if not hashed:
            return
        bucket = hashed & self._bucket_mask
        link = self._links[slot]
        if self._heads.item(bucket) == slot + 1:
            self._heads[bucket] = link
        else:
            before = self._heads.item(bucket) - 1
            while self._links.item(before) != slot + 1:
                before = self._links.item(before) - 1
            self._links[before] = link
        self._owned[self._owners.item(slot)] -= 1
        self._used -= 1
        self._owners[slot] = 0
        self._hashes[slot] = 0
        self._links[slot] = 0
        self._read[slot] = 0

    def renamed(self, hashes: NDArray[np.uint64]) -> SlotIndex:
        """Return the table of the same slots after pages have been given other keys."""
        return SlotIndex(hashes, owners=self._owners)

    def _link_all(self) -> None:
        """Chain every slot in use to the next one of its bucket."""
        slots = np.flatnonzero(self._hashes)
        buckets = (self._hashes[slots] & np.uint64(self._bucket_mask)).astype(np.int64)
        order = np.argsort(buckets, kind="stable")
        slots, buckets = slots[order], buckets[order]
        same = np.flatnonzero(buckets[1:] == buckets[:-1])
        self._links[slots[same]] = slots[same + 1] + 1
        first = np.ones(len(slots), np.bool_)
        first[1:] = buckets[1:] != buckets[:-1]
        self._heads[buckets[first]] = slots[first] + 1
