"""The content of a live database's three files: the base, the virtual WAL above it, and the wal-index.

`LiveFiles` knows where each page of the base and each frame of the WAL is stored, and answers READs from there. Which
frames are added, and when the base moves, is decided by `LiveDatabase` (`live.py`).

Page 1 of the base, which every client reads first, is kept once it was read: connections can be opened while the store
is away, whatever the caches have forgotten.

A version that readers of an older position need, and whose file has been deleted, is looked for in older states
(`page_versions.py`).

A READ takes no lock: a store that `LiveDatabase` makes under its lock may be waiting for that READ. If the base moves
while a READ of it waits for the store, the READ starts over.
"""

from __future__ import annotations

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import DamagedFile, FileVanished, TransientStorageError
from litereplica.format.names import MAX_TXID
from litereplica.format.sqlite import with_journal_mode
from litereplica.format.walindex import Patch, WalIndex
from litereplica.fuse.kernel_cache import LiveFile
from litereplica.fuse.page_versions import PageVersions, first_change, next_change
from litereplica.fuse.read_now import read_now
from litereplica.fuse.virtual_wal import VirtualWal
from litereplica.replica.database import Replica
from litereplica.replica.page_map import PageMap
from litereplica.replica.patience import READ_TIMEOUT_S
from litereplica.replica.snapshot import Snapshot, Update
from litereplica.types import Pos

READ_ATTEMPTS = 4
"""How often a READ starts over because the base moved or a file vanished."""

HEAL_RETRY_S = 0.5
"""Pause between attempts to find other files for a READ while the store fails."""

OLDER_STATES = 4
"""Older states that are looked at for what one READ has lost: some hot pages may be in none."""

_SALT1, _SALT2 = 1, 2


class LiveFiles:
    """The three files, from the replica's current snapshot on. Only the event loop's thread changes them.

    `pending` are the pages that have changed since the newest frame, ascending: the next transaction. `reads` counts
    the READs of each file, `reads_at_once` those that `read_now` answered.
    """

    def __init__(self, replica: Replica) -> None:
        snapshot = replica.snapshot
        self.base: PageMap = snapshot.pages
        self.base_pos = snapshot.pos
        self.wal = VirtualWal(snapshot.page_size, replica.holders, start_txid=snapshot.pos.txid)
        self.index = WalIndex(page_size=snapshot.page_size, commit=snapshot.commit, salt1=_SALT1, salt2=_SALT2)
        self.pending: NDArray[np.uint32] = np.empty(0, np.uint32)
        self.reads = dict.fromkeys((LiveFile.DATABASE, LiveFile.WAL, LiveFile.SHM), 0)
        self.reads_at_once = 0
        self._replica = replica
        self._is_mixed = False  # frames before `_new_from`, or all if that is 0, may be of another history
        self._new_from = 0
        self._first_pages: dict[bytes, bytes] = {}  # location of page 1 → content: that of the base, and the last read

    def size(self, file: LiveFile) -> int:
        """Return the current size of a file in bytes."""
        if file is LiveFile.DATABASE:
            return self.base.commit * self.base.page_size
        return self.wal.size if file is LiveFile.WAL else len(self.index.data)

    async def read(self, file: LiveFile, offset: int, size: int) -> bytes:
        """Answer a READ: exactly `size` bytes, zeroes beyond the end. Raises as `Replica.read`."""
        self.reads[file] += 1
        if file is LiveFile.SHM:
            return bytes(self.index.data[offset : offset + size]).ljust(size, b"\0")
        if file is LiveFile.WAL:
            return await self._read_wal(offset, size)
        return await self._read_database(offset, size)

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        """Answer a READ of the database as `read` does, if that takes no waiting; else None. No checkpoint."""
        found = read_now(self._replica.read_now, self.base, offset, size, wal=True)
        if found is not None:
            self.reads[LiveFile.DATABASE] += 1
            self.reads_at_once += 1
        return found

    async def _read_database(self, offset: int, size: int) -> bytes:
        page_size = self.base.page_size
        first, last = offset // page_size + 1, (offset + size - 1) // page_size + 1
        pages = await self._base_pages(np.arange(first, last + 1, dtype=np.uint32))
        start = offset - (first - 1) * page_size
        return b"".join(pages)[start : start + size].ljust(size, b"\0")

    async def _base_pages(self, pgnos: NDArray[np.uint32]) -> list[bytes]:
        """Pages of the base as it is when the last of them arrives; those behind its end are left out."""
        for attempt in range(READ_ATTEMPTS):
            base = self.base
            present = pgnos[pgnos <= base.commit]
            locations = base.lookup(present)
            try:
                pages = await self.load(present, locations, around=base)
            except (FileVanished, DamagedFile):
                if attempt == READ_ATTEMPTS - 1:
                    raise
                await self._heal_patiently()
                if self._unchanged(present, locations):
                    await self._find_older_of_base(present)
                continue
            if self.base is base or self._unchanged(present, locations):
                return pages
        return pages

    def _unchanged(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> bool:
        return bool((self.base.lookup(pgnos) == locations).all())

    async def _read_wal(self, offset: int, size: int) -> bytes:
        for attempt in range(READ_ATTEMPTS):
            first, pgnos, locations = self.wal.frames_at(offset, size)
            try:
                pages = await self.load(pgnos, locations)
                break
            except (FileVanished, DamagedFile):
                if attempt == READ_ATTEMPTS - 1:
                    raise
                await self._heal_patiently()
                if (self.wal.frames_at(offset, size)[2][: len(locations)] == locations).all():
                    await self._find_older(self._frame_versions(), np.arange(first - 1, first - 1 + len(pgnos)))
        out = bytearray(self.wal.header[offset : offset + size].ljust(size, b"\0"))
        for i, (pgno, page) in enumerate(zip(pgnos.tolist(), pages, strict=True)):
            frame = self.wal.encode(pgno, page)
            start = self.wal.offset(first + i) - offset
            low, high = max(0, start), min(size, start + len(frame))
            out[low:high] = frame[low - start : high - start]
        return bytes(out)

    async def load(
        self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], *, around: PageMap | None = None
    ) -> list[bytes]:
        """Return pages as clients see them: page 1 says that the database is in WAL mode. Raises as `Replica.read`."""
        if not len(pgnos):
            return []
        if len(pgnos) == 1 and pgnos[0] == 1 and (kept := self._first_pages.get(locations.tobytes())) is not None:
            return [kept]
        pages = await self._replica.read(pgnos, locations, around=around)
        for row in np.flatnonzero(pgnos == 1).tolist():  # a run of frames may have it several times
            pages[row] = with_journal_mode(pages[row], wal=True)
            self._keep_first(locations[row].tobytes(), pages[row])
        return pages

    def _keep_first(self, location: bytes, page: bytes) -> None:
        base = self._base_first()
        self._first_pages = {key: self._first_pages[key] for key in self._first_pages if key == base}
        self._first_pages[location] = page

    def _base_first(self) -> bytes:
        """Return the location of the base's page 1."""
        return self.base.lookup(np.array([1], np.uint32)).tobytes()

    async def _heal_patiently(self) -> None:
        """Heal for a READ, which outlives errors of the store that pass; the request's own limit is shorter."""
        deadline = trio.current_time() + READ_TIMEOUT_S
        while True:
            try:
                return await self.heal()
            except TransientStorageError:
                if trio.current_time() + HEAL_RETRY_S >= deadline:
                    raise
            await trio.sleep(HEAL_RETRY_S)

    async def heal(self) -> None:
        """Take new locations of the pages after a file has vanished or proved damaged."""
        update = await self._replica.heal()
        if update is not None:
            self.take(update)

    async def _find_older_of_base(self, pgnos: NDArray[np.uint32]) -> None:
        versions = self._base_versions()
        await self._find_older(versions, np.flatnonzero(np.isin(versions.pgnos, pgnos)))

    async def _find_older(self, versions: PageVersions, lost: NDArray[np.intp]) -> None:
        """Look for the `lost` ones among superseded versions in older states, which serve for others, too."""
        missing = set(lost[versions.until[lost] < MAX_TXID].tolist())
        for _ in range(OLDER_STATES):
            if not missing or self._is_mixed:
                return
            row = min(missing)
            first, last = int(versions.since[row]), int(versions.until[row]) - 1
            state = await self._replica.state_between(first, last)
            if state is not None and not self._is_mixed:
                self._move_versions(state)
                missing.difference_update(versions.at(state.pos.txid).tolist())
            missing.discard(row)

    def _move_versions(self, state: Snapshot) -> None:
        """Give versions that an older state has its locations."""
        for versions in (self._base_versions(), self._frame_versions()):
            rows = versions.at(state.pos.txid)
            rows = rows[(versions.pgnos[rows] <= state.commit) & (versions.until[rows] < MAX_TXID)]
            locations = state.pages.lookup(versions.pgnos[rows])
            rows, locations = rows[locations["file"] != 0], locations[locations["file"] != 0]
            if versions.is_base:
                self._set_base(self.base.applied(versions.pgnos[rows], locations, commit=self.base.commit))
            else:
                self.wal.move_frames(rows, locations)

    def _base_versions(self) -> PageVersions:
        """The pages of the base that have changed since: the others are found in the current state."""
        changes, later = self.wal.changes(), slice(self.index.backfilled, None)
        pgnos = self._superseded(self.index.header.commit)
        until = first_change(pgnos, changes.pgnos[later], changes.after[later] + np.uint64(1), self.base_pos.txid + 1)
        for begin, commit, txid in changes.shrinks:
            if begin >= self.index.backfilled:
                until[pgnos > commit] = np.minimum(until[pgnos > commit], np.uint64(txid + 1))
        ends = self._replica.newest_txids(self.base.lookup(pgnos)["file"])
        return PageVersions(pgnos, np.minimum(ends, np.uint64(self.base_pos.txid)), until, is_base=True)

    def _frame_versions(self) -> PageVersions:
        """The frames; `until` is the highest TXID for those that are current."""
        changes = self.wal.changes()
        pgnos, one = changes.pgnos, np.uint64(1)
        until = next_change(pgnos, changes.after + one, MAX_TXID)
        gone = (until == MAX_TXID) & (np.isin(pgnos, self.pending) | (pgnos > self.index.header.commit))
        until[gone] = changes.upto[gone] + one
        for begin, commit, txid in changes.shrinks:
            cut_off = np.flatnonzero(pgnos[:begin] > commit)
            until[cut_off] = np.minimum(until[cut_off], np.uint64(txid + 1))
        ends = self._replica.newest_txids(changes.locations["file"])
        return PageVersions(pgnos, np.minimum(ends, changes.upto), until, is_base=False)

    def take(self, update: Update) -> None:
        """Add an update's changes to `pending`, and take its locations if pages were relocated."""
        if update.relocated and len(update.changed) >= update.snapshot.commit - 1:
            self._is_mixed, self._new_from = True, 0  # it may be another history: no older state is ours
        self.pending = np.union1d(self.pending, update.changed).astype(np.uint32)
        if update.relocated:
            self._relocate(update.snapshot.pages)

    def append(self, target: Snapshot, pgnos: NDArray[np.uint32]) -> tuple[int, list[Patch]]:
        """Append the pages of `pending` as the frames of one transaction: (first frame, changes of the wal-index)."""
        first = self.wal.append(pgnos, target.pages.lookup(pgnos), commit=target.commit, pos=target.pos)
        self._new_from = self._new_from or first
        self.pending = np.empty(0, np.uint32)
        return first, self.index.append(pgnos)

    def frames_for_base(self, upto: int, commit: int) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
        """Return the pages that change if the base moves to frame `upto`, of that `commit`: (pgnos, locations)."""
        pgnos, locations = self.wal.latest(after=self.index.backfilled, upto=upto)
        kept = pgnos <= commit
        return pgnos[kept], locations[kept]

    def move_base(self, upto: int, commit: int, pos: Pos) -> None:
        """Move the base to the commit that ends with frame `upto`."""
        self.base = self.base.applied(*self.frames_for_base(upto, commit), commit=commit)
        self.base_pos = pos
        self._is_mixed = self._is_mixed and not 0 < self._new_from <= upto

    def _superseded(self, commit: int) -> NDArray[np.uint32]:
        """Return the pages of the base of which the current state, of `commit` pages, has another version or none."""
        changed, _ = self.wal.latest(after=self.index.backfilled, upto=self.wal.frames)
        cut_off = np.arange(commit + 1, self.base.commit + 1, dtype=np.uint32)
        pgnos = np.union1d(np.union1d(changed, self.pending), cut_off).astype(np.uint32)
        return pgnos[pgnos <= self.base.commit]

    def _set_base(self, base: PageMap) -> None:
        """Take another map of the same pages."""
        first = self._first_pages.get(self._base_first())
        self.base = base
        if first is not None:
            self._first_pages[self._base_first()] = first

    def _relocate(self, current: PageMap) -> None:
        """Take the current map's locations of pages that have not changed since; their content is the same."""
        base, kept = self.base, self._superseded(current.commit)
        self._set_base(current.applied(kept, base.lookup(kept), commit=base.commit))
        overlay, _ = self.wal.latest(after=0, upto=self.wal.frames)
        newest = np.setdiff1d(overlay, self.pending)
        newest = newest[newest <= current.commit]
        self.wal.relocate(newest, current.lookup(newest))
