"""Past states of the database, any number at once, read through the files and cached pages of the live one.

A `PastDatabase` is a map of the pages at one TXID, made from a restore plan. Its content never changes, only the files
that it is read from: when one of these has been deleted, it plans again for the same TXID.

Cached pages are not fetched again. A page is identified by the file that it comes from, so two maps that name the same
file share its pages. If the live map, or that of another past state, has the same version of a page in another file
than the plan, that location is taken. When the live database moves to newer files and renames its cached pages, the
maps of past states follow it (`on_relocation`).

Two maps need not be of the same history, since a replica may be recreated under its URL. They share pages only if the
newest file of the other map is still in the store, with the same checksum in its trailer; up to the end of that file
the histories are the same.

A past state lives as long as a caller references it.
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
from litereplica.replica.snapshot import Snapshot, assemble, following, require_pages, sharing
from litereplica.storage.base import Suffix
from litereplica.types import TXID, FileInfo

log = logging.getLogger(__name__)

READ_ATTEMPTS = 3
"""How often a read starts over because a file has vanished."""

LOST_FOR_S = 10.0
"""Time until the store is asked again for a past state that no files lead to; a listing may miss a file."""

PAGES_AT_ONCE = 16_384
"""Pages of a map that are processed on the trio thread: about a millisecond."""

NEIGHBOURS = 4
"""Other past states, beside the live one, that a new one shares pages with: the map of each is searched."""

STREAMS_EACH = 1 << 32
"""Read-ahead streams of each past state: its own range of numbers. The live one begins at 1."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies the state of a TXID when it is built again from other files.

    In files of our writer the timestamp is that of the transaction, also after compaction; Litestream gives a snapshot
    the time at which it was made. So two states also count as the same if both belong to the same history of the live
    database, which notices when a replica is recreated. `history` is the number of that history, 0 for none.
    """

    timestamp_ms: int
    commit: int
    history: int

    def is_same(self, other: Identity) -> bool:
        """True if these two, of the same TXID, count as the same state."""
        same_history = self.history == other.history != 0
        return self.commit == other.commit and (self.timestamp_ms == other.timestamp_ms or same_history)


class PastDatabase:
    """The database at one TXID. Obtain it from `PastSnapshots.open`."""

    def __init__(self, past: PastSnapshots, state: State, policy: ReadAhead) -> None:
        self.snapshot = state.snapshot
        self.identity = state.identity
        self.error: LiteReplicaError | None = None  # why some of its pages can no longer be read
        self._past = past
        self._base = state.base
        self._policy = policy
        self._turn = trio.Lock()
        self._failed_at = -np.inf

    def read_now(self, first: int, last: int, pages: PageMap) -> bytearray | None:
        """Return pages of the snapshot's map one after the other, if that takes no waiting; else None."""
        return self._past.read_now(first, last, pages, self._policy)

    async def read(self, first: int, last: int) -> list[bytes]:
        """Return the pages from `first` to `last`, both within the database.

        Raises:
            ReplicaError, FileVanished, DamagedFile: no file in the store has one of them at this TXID.
            StorageError: from the store.
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
        """Find other files for the pages, unless another read has replaced the map `pages` meanwhile."""
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
    """The snapshot that the first file of a plan makes. States that begin with this file share its chunks."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A state that was built, and the base on which others can be built."""

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
        self._history = 1  # incremented when the replica has been recreated
        self._decoders = trio.CapacityLimiter(1)
        self._warned = ""

    async def points(self, newest: int) -> list[Point]:
        """Return the newest points, ascending. Lists the store if the last listing is old; reads unknown headers."""
        return await self._listed.points(newest)

    async def point(self, txid: TXID) -> Point | None:
        """Return the point of a TXID, or None if no files lead there."""
        if txid == self._current.snapshot.pos.txid:
            return Point(txid, self._current.snapshot.timestamp_ms)
        return await self._listed.point(txid)

    async def before(self, time_ms: int) -> Point | None:
        """Return the newest point before a time, or None. Lists the store and reads some headers."""
        self._listed.forget()
        files = await self._listed.list_all()
        try:
            return await self.point(await find_txid(self._store, files, before_ms=time_ms, warn=self._warn))
        except PointNotFound:
            return None

    async def open(self, txid: TXID) -> PastDatabase:
        """Return the database at a TXID: at once if it is open already, or if the live one is at this TXID.

        Otherwise the files of a restore plan are opened.

        Raises:
            ReplicaError: no files lead there.
            PageSizeChanged: its pages have another size than those of the live database.
            DamagedFile: no sound file covers a transaction.
            StorageError: from the store.
        """
        known = self._open.get(txid)
        if known is not None:
            return known
        live = self._current.snapshot
        if live.pos.txid == txid:
            state = State(live, None, Identity(live.timestamp_ms, live.commit, self._history))
        else:
            state = await self._build(txid, beside=self._others(txid))
        known = self._open.get(txid)  # another task may have opened it meanwhile
        if known is None:
            policy = ReadAhead(live.page_size, first_stream=next(self._numbers) * STREAMS_EACH)
            known = self._open[txid] = PastDatabase(self, state, policy)
        return known

    async def between(self, first: TXID, last: TXID) -> Snapshot | None:
        """Return the newest state in a range of TXIDs that files of the live database's history lead to, or None.

        Its pages lie in files that the store has. Raises `StorageError`.
        """
        try:
            txid = await self._listed.newest_between(first, last)
            state = await self._build(txid, beside=None) if txid is not None else None
        except (ReplicaError, FileVanished, DamagedFile) as exc:
            log.debug("no state from TXID %016x to %016x: %s", first, last, exc)
            return None
        return state.snapshot if state is not None and state.identity.history else None

    def read_now(self, first: int, last: int, pages: PageMap, policy: ReadAhead) -> bytearray | None:
        """Return consecutive pages of a map; see `PageReader.read_now`."""
        found = self._reader.read_now(first, last, pages)
        if found is not None:
            self._reader.note_read(first, last, pages, policy)
        return found

    async def read(self, pgnos: NDArray[np.uint32], pages: PageMap, policy: ReadAhead) -> list[bytes]:
        """Return pages of a map; see `PageReader.read`."""
        return await self._reader.read(pgnos, pages.lookup(pgnos), around=pages, policy=policy)

    async def rebuild(self, txid: TXID, identity: Identity) -> State:
        """Return the same state from the files that the store has now. Shares no locations: they may be lost, too."""
        self._listed.forget(indexes=True)
        self._bases.clear()
        state = await self._build(txid, beside=None)
        if not state.identity.is_same(identity):
            raise ReplicaError(f"TXID {txid:016x} of {self._store.url} is not the state that it was")
        return state

    async def on_relocation(self, before: PageMap, after: PageMap, changed: NDArray[np.uint32]) -> None:
        """Move past states along: what they read from a location of `before`, they read from that of `after`."""
        if len(changed) >= after.commit - 1:
            self._history += 1
        for past in list(self._open.values()):
            snapshot = past.snapshot
            pages = await self._compute(after.commit, partial(following, snapshot.pages, before, after, changed))
            if past.snapshot is snapshot:
                past.snapshot = replace(snapshot, pages=pages)

    def _warn(self, text: str) -> None:
        """Log a warning, once until it changes."""
        if text != self._warned:
            self._warned = text
            log.warning("%s", text)

    # --- building ----------------------------------------------------------------------------------

    def _others(self, txid: TXID) -> list[Snapshot]:
        """Return the past states whose pages may be cached, the nearest last: it takes precedence."""
        pasts = sorted((past.snapshot for past in self._open.values()), key=lambda each: -abs(each.pos.txid - txid))
        return pasts[-NEIGHBOURS:]

    async def _build(self, txid: TXID, *, beside: Sequence[Snapshot] | None) -> State:
        """Return the state at a TXID. Pages are read from where the live database, or `beside`, has the same."""
        base: Base | None = None

        def choose(files: Sequence[FileInfo]) -> list[FileInfo]:
            nonlocal base
            plan = plan_restore(files, target=txid)
            base = self._bases.get(plan[0])
            return plan if base is None else plan[1:]

        live, history = self._current.snapshot, self._history
        opened = await self._listed.open(choose, onto=None)
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
        """Return `snapshot` with the locations of `other` wherever both have the same version of a page."""
        if not agreed:
            return snapshot
        last = min(agreed, snapshot.pos.txid, other.pos.txid)
        share = partial(sharing, snapshot.pages, other.pages, self._files.last_txids(), last)
        return replace(snapshot, pages=await self._compute(snapshot.commit, share))

    async def _agreed(self, other: Snapshot) -> TXID:
        """Return the TXID up to which `other` has the history of the store: the end of its newest file still there."""
        file_ids = await self._compute(other.commit, other.pages.files)
        listed = set(map(str, self._listed.files))
        found = [file for file_id in file_ids.tolist() if (file := self._files.get(file_id)) is not None]
        there = [file for file in found if str(file.info) in listed]
        newest = max(there, key=lambda file: file.info.max_txid, default=None)
        return newest.info.max_txid if newest is not None and await self._is_in_store(newest) else 0

    async def _is_in_store(self, file: SourceFile) -> bool:
        """True if the file is still there, and not another one under its name. One request unless that is known."""
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
        """Return the result of `work` on this number of pages: in a thread if it would block trio for long."""
        return work() if pages <= PAGES_AT_ONCE else await trio.to_thread.run_sync(work, limiter=self._decoders)


def _make(
    opened: Sequence[OpenedFile], ids: Sequence[int], holders: FileHolders, base: Base | None
) -> tuple[Snapshot, Base | None]:
    """The state that a plan makes, and what its first file makes; `base` is that if it was known."""
    start = base.snapshot if base is not None else None
    if start is not None and opened and opened[0].header.page_size == start.page_size:
        require_pages(opened[0], commit=start.commit)
    if base is None and opened[0].header.page_size == opened[-1].header.page_size:
        start = assemble(opened[:1], ids[:1], holders)
        base = Base(start)
        opened, ids = opened[1:], ids[1:]
    return assemble(opened, ids, holders, base=start), base
