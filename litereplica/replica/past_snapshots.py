"""Past states of the database, as many at once as are wanted, read through the files and pages of the live one.

A `PastDatabase` is a map of the pages at one TXID, made from a restore plan. It never changes its content, only where
it reads it from: when files that it needs have gone, it plans again for the same TXID.

What is at hand is not fetched again. Pages are known by the content they come from, so two maps that name the same
files share them. Beyond that, where the live map, or that of another past state, has the same version of a page in
another file than the plan does, that location is taken; and when the live database moves to newer files and renames
its cached pages, the maps of past states follow it (`on_relocation`).

That two maps speak of the same history is not taken for granted, since a replica may be made anew under its URL: a file
of the other map has to be in the store still, with the same checksum in its trailer. It vouches for all before its end.

Who looks at past states, and for how long, is the caller's; one that nobody holds any more is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TypeVar
from weakref import WeakValueDictionary

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import (
    DamagedFile,
    FileVanished,
    LiteReplicaError,
    NotFound,
    PageSizeChanged,
    PointNotFound,
    ReplicaError,
)
from litereplica.format.ltx import TRAILER_SIZE, decode_trailer
from litereplica.history.timeline import find_txid
from litereplica.ltxstore.catalog import Catalog
from litereplica.ltxstore.plan import plan_restore
from litereplica.ltxstore.store import LTXStore, OpenedFile
from litereplica.replica.current import Current, keep_pages
from litereplica.replica.file_holders import FileHolders, HeldFiles
from litereplica.replica.file_table import SourceFile
from litereplica.replica.observer import ReplicaObserver
from litereplica.replica.page_map import PageMap
from litereplica.replica.page_reader import PageReader
from litereplica.replica.past_catalog import PastCatalog, Point
from litereplica.replica.readahead import ReadAhead
from litereplica.replica.snapshot import Snapshot, assemble, following, sharing
from litereplica.storage.base import Suffix
from litereplica.types import TXID, FileInfo

log = logging.getLogger(__name__)

READ_ATTEMPTS = 3
"""How often a read starts over because files had vanished under it."""

LOST_FOR_S = 10.0
"""When no files have a past state any more, the store is asked again after this time; a listing may miss a file."""

PAGES_AT_ONCE = 16_384
"""Pages of a map that are worked on at once, in a millisecond."""

NEIGHBOURS = 4
"""Other past states that a new one shares pages with, beside the live one: each has to be looked through."""

STREAMS_EACH = 1 << 32
"""Numbers of read-ahead streams that each past state has for itself; the live one begins at 1."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """By what a state is known to be the one that it was, when it is made from other files.

    The timestamp is that of the transaction in the files that the writer makes, also after their compaction. Litestream
    gives its snapshots the time of the snapshot instead. So it also counts that the live database, which notices when
    a replica is made anew, vouches for it: `history` is the number of the live history that it is part of, 0 for none.
    """

    timestamp_ms: int
    commit: int
    history: int

    def is_same(self, other: Identity) -> bool:
        """Is there reason to take these two, of one TXID, for one state?"""
        same_history = self.history == other.history != 0
        return self.commit == other.commit and (self.timestamp_ms == other.timestamp_ms or same_history)


class PastDatabase:
    """The database at one TXID. Obtain it from `PastSnapshots.open`."""

    def __init__(self, past: PastSnapshots, state: State, policy: ReadAhead) -> None:
        self.snapshot = state.snapshot
        self.identity = state.identity
        self.error: LiteReplicaError | None = None  # why some of its pages cannot be read any more
        self._past = past
        self._base = state.base
        self._policy = policy
        self._turn = trio.Lock()
        self._failed_at = -np.inf

    async def read(self, first: int, last: int) -> list[bytes]:
        """The pages from `first` to `last`, both within the database.

        Raises `ReplicaError`, `FileVanished` or `DamagedFile` when no file in the store has one of them at this TXID,
        and what the store raises.
        """
        pgnos = np.arange(first, last + 1, dtype=np.uint32)
        for attempt in range(READ_ATTEMPTS):
            pages = self.snapshot.pages
            try:
                return await self._past.read(pgnos, pages, self._policy)
            except (FileVanished, DamagedFile):
                if attempt == READ_ATTEMPTS - 1:
                    raise
                await self._relocate(pages)
        raise AssertionError("the last attempt returns or raises")

    async def _relocate(self, pages: PageMap) -> None:
        """Find the pages in other files, unless somebody has since they were looked for by `pages`."""
        async with self._turn:
            if self.snapshot.pages is not pages:
                return
            if self.error is not None and trio.current_time() - self._failed_at < LOST_FOR_S:
                raise self.error.with_traceback(None)
            try:
                state = await self._past.rebuild(self.snapshot.pos.txid, self.identity)
            except (ReplicaError, FileVanished, DamagedFile) as exc:
                self.error, self._failed_at = exc, trio.current_time()
                raise
            self.snapshot, self._base, self.error = state.snapshot, state.base, None
            log.info("TXID %016x is read from other files now", self.snapshot.pos.txid)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Base:
    """What the first file of a plan makes; the states that begin with it share its chunks."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A state that was built, and upon what others can be built."""

    snapshot: Snapshot
    base: Base | None
    identity: Identity


class PastSnapshots(ReplicaObserver):
    """Past states of the database whose live state is `current`. Obtain it from `Replica.past_snapshots`."""

    def __init__(self, current: Current, reader: PageReader, *, store: LTXStore, catalog: Catalog) -> None:
        self._current = current
        self._reader = reader
        self._store = store
        self._listed = PastCatalog(store, beside=catalog)
        self._files = current.files
        self._pages = current.pages
        self._open: WeakValueDictionary[TXID, PastDatabase] = WeakValueDictionary()
        self._bases: WeakValueDictionary[FileInfo, Base] = WeakValueDictionary()
        self._numbers = count(1)
        self._history = 1  # goes up when the live database turns out to be another one
        self._decoders = trio.CapacityLimiter(1)

    async def points(self, newest: int) -> list[Point]:
        """The newest points, ascending. Lists the store if that was long ago, and reads headers that are not known."""
        return await self._listed.points(newest)

    async def point(self, txid: TXID) -> Point | None:
        """The point of a TXID, or None when nothing in the store leads there."""
        if txid == self._current.snapshot.pos.txid:
            return Point(txid, self._current.snapshot.timestamp_ms)
        return await self._listed.point(txid)

    async def before(self, time_ms: int) -> Point | None:
        """The newest point before a time, or None when there is none. Lists the store and reads some headers."""
        self._listed.forget()
        files = await self._listed.list_all()
        try:
            return await self.point(await find_txid(self._store, files, before_ms=time_ms))
        except PointNotFound:
            return None

    async def open(self, txid: TXID) -> PastDatabase:
        """The database at a TXID: at once when somebody holds it, or when the live one is there.

        Otherwise the files of a restore plan are opened. Raises `ReplicaError` when there is none, `PageSizeChanged`
        when its pages have another size than those of the live database, `DamagedFile`, and what the store raises.
        """
        known = self._open.get(txid)
        if known is not None:
            return known
        live = self._current.snapshot
        if live.pos.txid == txid:
            state = State(live, None, Identity(live.timestamp_ms, live.commit, self._history))
        else:
            state = await self._build(txid, beside=self._others(txid))
        known = self._open.get(txid)  # somebody may have been faster
        if known is None:
            policy = ReadAhead(live.page_size, first_stream=next(self._numbers) * STREAMS_EACH)
            known = self._open[txid] = PastDatabase(self, state, policy)
        return known

    async def read(self, pgnos: NDArray[np.uint32], pages: PageMap, policy: ReadAhead) -> list[bytes]:
        """Return pages of a map; see `PageReader.read`."""
        return await self._reader.read(pgnos, pages.lookup(pgnos), around=pages, policy=policy)

    async def rebuild(self, txid: TXID, identity: Identity) -> State:
        """The same state from what the store has now. Locations of others are not taken over: they may be lost, too."""
        self._listed.forget(indexes=True)
        self._bases.clear()
        state = await self._build(txid, beside=None)
        if not state.identity.is_same(identity):
            raise ReplicaError(f"TXID {txid:016x} of {self._store.url} is not the state that it was")
        return state

    async def on_relocation(self, before: PageMap, after: PageMap, changed: NDArray[np.uint32]) -> None:
        """Let the past states read from `after` what they read from the same places of `before`."""
        if len(changed) >= after.commit - 1:
            self._history += 1
        for past in list(self._open.values()):
            snapshot = past.snapshot
            pages = await self._compute(after.commit, partial(following, snapshot.pages, before, after, changed))
            if past.snapshot is snapshot:
                past.snapshot = replace(snapshot, pages=pages)

    # --- building ----------------------------------------------------------------------------------

    def _others(self, txid: TXID) -> list[Snapshot]:
        """The past states whose pages may be at hand, the nearest last: it is taken where it has a page."""
        pasts = sorted((past.snapshot for past in self._open.values()), key=lambda each: -abs(each.pos.txid - txid))
        return pasts[-NEIGHBOURS:]

    async def _build(self, txid: TXID, *, beside: Sequence[Snapshot] | None) -> State:
        """The state at a TXID, read from where the others, or else the live database, have the same pages."""
        base: Base | None = None

        def choose(files: Sequence[FileInfo]) -> list[FileInfo]:
            nonlocal base
            plan = plan_restore(files, target=txid)
            base = self._bases.get(plan[0])
            return plan if base is None else plan[1:]

        live, history = self._current.snapshot, self._history
        opened = await self._listed.open(choose)
        ids = [self._files.add(file) for file in opened]
        held = HeldFiles(ids, self._files.holders)
        entries = sum(len(file.index) for file in opened)
        snapshot, base = await self._compute(entries, partial(_make, opened, ids, self._files.holders, base))
        del held  # the map holds the files now
        if snapshot.page_size != self._pages.page_size:
            raise PageSizeChanged(
                f"TXID {txid:016x} has pages of {snapshot.page_size} bytes, the live database {self._pages.page_size}",
                before=snapshot.page_size,
                after=self._pages.page_size,
            )
        if opened and base is not None and base.snapshot.pos.txid == opened[0].header.max_txid:
            self._bases[opened[0].info] = base
        agreed = await self._agreed(live)
        if beside is not None:
            for other in beside:
                snapshot = await self._shared(snapshot, other, await self._agreed(other))
            snapshot = await self._shared(snapshot, live, agreed)
        keep_pages(self._pages, snapshot.pages, opened, self._files)
        is_ours = agreed >= txid and history == self._history
        return State(snapshot, base, Identity(snapshot.timestamp_ms, snapshot.commit, history if is_ours else 0))

    async def _shared(self, snapshot: Snapshot, other: Snapshot, agreed: TXID) -> Snapshot:
        """`snapshot`, read from where `other` reads its pages wherever both have the same version."""
        if not agreed:
            return snapshot
        last = min(agreed, snapshot.pos.txid, other.pos.txid)
        share = partial(sharing, snapshot.pages, other.pages, self._files.last_txids(), last)
        return replace(snapshot, pages=await self._compute(snapshot.commit, share))

    async def _agreed(self, other: Snapshot) -> TXID:
        """Up to here the history of `other` is that of the store: the end of its newest file that is there still."""
        file_ids = await self._compute(other.commit, other.pages.files)
        listed = set(map(str, self._listed.files))
        found = [file for file_id in file_ids.tolist() if (file := self._files.get(file_id)) is not None]
        there = [file for file in found if str(file.info) in listed]
        newest = max(there, key=lambda file: file.info.max_txid, default=None)
        return newest.info.max_txid if newest is not None and await self._is_in_store(newest) else 0

    async def _is_in_store(self, file: SourceFile) -> bool:
        """Is it still there, and not another one under its name? One request for its trailer, unless that is known."""
        if file.checksum not in self._listed.seen:
            try:
                tail = await self._store.get(file.info, Suffix(TRAILER_SIZE))
                with self._store.blame(file.info):
                    if tail.size != file.info.size or decode_trailer(tail.data) != file.checksum:
                        return False
            except (NotFound, DamagedFile):
                return False
            self._listed.seen.add(file.checksum)
        return True

    async def _compute(self, pages: int, work: Callable[[], T]) -> T:
        """The result of work on so many pages: in a thread if it takes long for those who wait for this one."""
        return work() if pages <= PAGES_AT_ONCE else await trio.to_thread.run_sync(work, limiter=self._decoders)


def _make(
    opened: Sequence[OpenedFile], ids: Sequence[int], holders: FileHolders, base: Base | None
) -> tuple[Snapshot, Base | None]:
    """The state that a plan makes, and what its first file makes; `base` is that if it was known."""
    start = base.snapshot if base is not None else None
    if base is None and opened[0].header.page_size == opened[-1].header.page_size:
        start = assemble(opened[:1], ids[:1], holders)
        base = Base(start)
        opened, ids = opened[1:], ids[1:]
    return assemble(opened, ids, holders, base=start), base
