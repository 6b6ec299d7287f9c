"""Reading pages from the store in blocks, each page once however many ask for it.

Frames that lie near each other in a file come in one request, and a cold page brings its neighbourhood with it: the
other pages of the same window of the file that the caller's map still takes from there. How large that is, and what
is fetched ahead of readers that go through the file, is `readahead.py`'s to say.

A fetch is a task of the replica's own: a reader that gives up stops waiting, and the others get their pages. A request
that has not been sent yet is dropped when nobody waits for it any more. What nobody has asked for yet waits in a queue
with slots of its own, so it is never in the way of what somebody waits for; a page that is asked for while it is in the
queue leaves it at once. How long a reader waits is said by `store_outage.py`; a request that is not answered for
seconds is made once more (`second_try.py`). Every frame is checked before it is handed out (`file_reader.py`). Large
blocks are decoded in a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import (
    DamagedFile,
    FileVanished,
    LiteReplicaError,
    TransientStorageError,
)
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.file_reader import read_block
from litereplica.replica.file_table import FileTable, SourceFile
from litereplica.replica.neighbourhood import neighbourhood
from litereplica.replica.observer import ReplicaObserver
from litereplica.replica.page_key import PageKey, page_key
from litereplica.replica.page_map import PageMap
from litereplica.replica.page_store import PageStore
from litereplica.replica.read_plan import Block, Decoded, plan_blocks
from litereplica.replica.readahead import ReadAhead
from litereplica.replica.second_try import first_answer
from litereplica.replica.store_outage import StoreOutage
from litereplica.replica.throughput_model import ThroughputModel
from litereplica.types import Pgno

PARALLEL_FETCHES = 8
"""Requests at the same time for readers. With those for read-ahead they fit a usual pool of 16 connections."""

RETRY_PAUSE_S = 0.5
"""Pause after a request that has failed, and its retries too: a reader would rather wait than get an error."""

PARALLEL_AHEAD = 4
"""Requests at the same time for read-ahead."""

AHEAD_LIMIT = 16 * 1024 * 1024
"""Bytes of pages queued and under way for read-ahead: half of the pages in memory."""

DECODE_HERE = 64 * 1024
"""Bytes of a block that is decoded on the trio thread: 0.1 to 0.3 ms, as long as it takes to use another."""

DECODERS = 2
"""Threads that decode: LZ4 lets others run meanwhile, the rest of it does not."""


@dataclass(slots=True, eq=False)
class _Flight:
    """A request, queued or under way, and its result. `stream` is its read-ahead stream, None for a reader's.

    `waiting` is how many readers wait for it. A probe is sent at once, whatever else is under way.
    """

    block: Block
    keys: list[PageKey]
    stream: int | None
    scope: trio.CancelScope = field(init=False, default_factory=trio.CancelScope)
    done: trio.Event = field(init=False, default_factory=trio.Event)
    pages: dict[PageKey, bytes] = field(init=False, default_factory=dict)
    damaged: dict[PageKey, DamagedFile] = field(init=False, default_factory=dict)
    error: LiteReplicaError | None = field(init=False, default=None)
    timed_out: bool = field(init=False, default=False)
    is_probe: bool = field(init=False, default=False)
    is_sent: bool = field(init=False, default=False)
    waiting: int = field(init=False, default=0)

    def page(self, key: PageKey) -> bytes:
        page = self.pages.get(key)
        if page is None:
            error = self.damaged.get(key) or self.error or TransientStorageError("the replica has been closed")
            raise error.with_traceback(None)
        return page


class Fetcher:
    """Pages from the store. `nursery` outlives every caller; `timeout_s` bounds each request."""

    def __init__(
        self,
        store: LTXStore,
        ahead_store: LTXStore,
        *,
        files: FileTable,
        pages: PageStore,
        nursery: trio.Nursery,
        timeout_s: float,
        on_damage: Callable[[SourceFile, DamagedFile], None],
        observers: Sequence[ReplicaObserver],
    ) -> None:
        self.pages_fetched = 0
        self.link = ThroughputModel()
        self._store = store
        self._ahead_store = ahead_store
        self._files = files
        self._pages = pages
        self._nursery = nursery
        self._page_size = pages.page_size
        self._timeout_s = timeout_s
        self._outage = StoreOutage(timeout_s)
        self._on_damage = on_damage
        self._observers = observers
        self._policy = ReadAhead(pages.page_size)
        self._limiter = trio.CapacityLimiter(PARALLEL_FETCHES)
        self._decoders = trio.CapacityLimiter(DECODERS)
        self._flights: dict[PageKey, _Flight] = {}
        self._queue: deque[_Flight] = deque()
        self._ahead_running: set[_Flight] = set()
        self._demands = 0
        self._quiet = trio.Event()

    # --- what somebody waits for ---------------------------------------------------------------

    async def fetch(
        self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], around: PageMap | None, *, window: int
    ) -> dict[PageKey, bytes]:
        """The pages by their keys, with what `around` has in the same `window` bytes.

        A store that fails is asked again until the time is up. Raises `FileVanished`, `DamagedFile`, or what the store
        raises; `TransientStorageError` when the time is up.
        """
        started = trio.current_time()
        is_probe = self._outage.starts_probe()
        while True:
            try:
                with trio.move_on_at(self._outage.deadline(started)):
                    return await self._fetch(pgnos, locations, around, window, is_probe=is_probe)
            except TransientStorageError:
                if trio.current_time() + RETRY_PAUSE_S >= self._outage.deadline(started):
                    raise
                await trio.sleep(RETRY_PAUSE_S)
            if trio.current_time() >= self._outage.deadline(started):
                waited_s = trio.current_time() - started
                raise TransientStorageError(f"no answer from {self._store.url} in {waited_s:.1f} s")

    async def _fetch(
        self,
        pgnos: NDArray[np.uint32],
        locations: NDArray[np.void],
        around: PageMap | None,
        window: int,
        *,
        is_probe: bool,
    ) -> dict[PageKey, bytes]:
        keys = self._keys(pgnos, locations)
        if is_probe:  # what is under way may have been lost with the store
            for flight in {self._flights[key] for key in keys if key in self._flights}:
                self._remove(flight)
        while True:
            new = [i for i, key in enumerate(keys) if key not in self._flights]
            others = {self._flights[key] for key in keys if key in self._flights}
            if new:
                self._start(pgnos[new], locations[new], around, window, is_probe=is_probe)
            flights = {key: self._flights[key] for key in keys}
            await self._wait_for(set(flights.values()))
            # a request of somebody else began when the store may have been away, and its time was up before ours
            if not any(flight.timed_out for flight in others):
                return {key: flight.page(key) for key, flight in flights.items()}

    async def _wait_for(self, distinct: set[_Flight]) -> None:
        self._demands += 1
        for flight in distinct:
            flight.waiting += 1
            if flight.stream is not None:
                self._promote(flight)
        try:
            for flight in distinct:
                await flight.done.wait()
        finally:
            for flight in distinct:
                flight.waiting -= 1
                if not (flight.waiting or flight.is_sent):
                    self._remove(flight)
                    flight.scope.cancel()
            self._demands -= 1
            self._tell_if_quiet()

    @property
    def is_ahead(self) -> bool:
        """True if a read-ahead request is under way."""
        return bool(self._ahead_running)

    async def wait_until_quiet(self, limit_s: float) -> None:
        """Return when nothing is under way for readers, or after some time."""
        if self._demands or self._ahead_running:
            with trio.move_on_after(limit_s):
                await self._quiet.wait()

    def _tell_if_quiet(self) -> None:
        if not self._demands and not self._ahead_running:
            self._quiet.set()
            self._quiet = trio.Event()

    def _start(
        self,
        pgnos: NDArray[np.uint32],
        locations: NDArray[np.void],
        around: PageMap | None,
        window: int,
        *,
        is_probe: bool,
    ) -> None:
        """Send the requests for these pages, which nobody has asked for yet, and for their neighbours."""
        wanted = set(pgnos.tolist())
        if around is not None:
            pgnos, locations = neighbourhood(around, pgnos, locations, window=window)
        keys = self._keys(pgnos, locations)
        take = [
            i
            for i, (pgno, key) in enumerate(zip(pgnos.tolist(), keys, strict=True))
            if key not in self._flights and (pgno in wanted or not self._pages.holds(key))
        ]
        for block in plan_blocks(pgnos[take], locations[take]):
            flight = self._flight(block, None)
            flight.is_probe = is_probe
            self._nursery.start_soon(self._fly, flight, self._store)

    def _promote(self, flight: _Flight) -> None:
        """Make a read-ahead request a reader's: if it is queued, it starts at once."""
        flight.stream = None
        if flight in self._queue:
            self._queue.remove(flight)
            self._nursery.start_soon(self._fly, flight, self._store)

    # --- what will probably be wanted ----------------------------------------------------------

    def note_read(self, first: Pgno, last: Pgno, around: PageMap, policy: ReadAhead | None = None) -> int:
        """Readers read these pages of a map, wherever they are. Returns the window for those that miss.

        Fetches ahead what the policy says, without waiting. `policy` is that of readers of a map of its own.
        """
        now = trio.current_time()
        advice = (policy or self._policy).read(first, last, commit=around.commit, now=now, link=self.link)
        for stream in advice.over:
            self._abandon(stream)
        if advice.ahead:
            ahead = np.arange(advice.ahead.start, advice.ahead.stop, dtype=np.uint32)
            self._fetch_ahead(ahead, around.lookup(ahead), advice.stream, advice.request)
        return advice.window

    def _fetch_ahead(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], stream: int, request: int) -> None:
        under_way = sum(len(flight.keys) for flight in (*self._queue, *self._ahead_running))
        room = max(0, AHEAD_LIMIT // self._page_size - under_way)
        file_ids = locations["file"].tolist()
        checksums = {file_id: file.checksum for file_id in set(file_ids) if (file := self._files.get(file_id))}
        take = [
            i
            for i, (pgno, file_id) in enumerate(zip(pgnos.tolist(), file_ids, strict=True))
            if file_id in checksums
            and (key := page_key(checksums[file_id], pgno)) not in self._flights
            and not self._pages.holds(key)
        ][:room]
        step = max(1, request // self._page_size)
        for part in (take[i : i + step] for i in range(0, len(take), step)):
            for block in plan_blocks(pgnos[part], locations[part], max_size=request):
                self._queue.append(self._flight(block, stream))
        self._start_ahead()

    def _start_ahead(self) -> None:
        while self._queue and len(self._ahead_running) < PARALLEL_AHEAD:
            flight = self._queue.popleft()
            self._ahead_running.add(flight)
            self._nursery.start_soon(self._fly, flight, self._ahead_store)

    def _abandon(self, stream: int) -> None:
        """Drop the requests of a read-ahead stream that has ended."""
        for flight in [flight for flight in self._queue if flight.stream == stream]:
            self._queue.remove(flight)
            self._land_flight(flight)
        for flight in self._ahead_running:
            if flight.stream == stream:
                self._remove(flight)
                flight.scope.cancel()

    # --- one request ---------------------------------------------------------------------------

    def _keys(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> list[PageKey]:
        checksums = {file_id: self._file(file_id).checksum for file_id in set(locations["file"].tolist())}
        return [
            page_key(checksums[file_id], pgno)
            for pgno, file_id in zip(pgnos.tolist(), locations["file"].tolist(), strict=True)
        ]

    def _file(self, file_id: int) -> SourceFile:
        file = self._files.get(file_id)
        if file is None:
            raise FileVanished(f"file {file_id} is no longer part of the replica")
        return file

    def _flight(self, block: Block, stream: int | None) -> _Flight:
        flight = _Flight(block, self._keys(block.pgnos, block.locations), stream)
        self._flights.update(dict.fromkeys(flight.keys, flight))
        return flight

    def _remove(self, flight: _Flight) -> None:
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _land_flight(self, flight: _Flight) -> None:
        self._remove(flight)
        flight.done.set()

    async def _fly(self, flight: _Flight, store: LTXStore) -> None:
        ahead = flight in self._ahead_running
        try:
            with flight.scope:
                if ahead or flight.is_probe:
                    await self._get(flight, store)
                else:
                    async with self._limiter:
                        await self._get(flight, store)
        except trio.TooSlowError:
            flight.error = TransientStorageError(f"the store did not answer within {self._timeout_s:g} s")
            flight.timed_out = True
        except LiteReplicaError as exc:
            flight.error = exc
        finally:
            self._land_flight(flight)
            self._ahead_running.discard(flight)
            self._start_ahead()
            self._tell_if_quiet()

    async def _get(self, flight: _Flight, store: LTXStore) -> None:
        """Send the request, check its pages and cache them."""
        block = flight.block
        file = self._file(block.file_id)
        key = store.key(file.info)
        flight.is_sent = True
        started = trio.current_time()
        ask = partial(
            read_block, store, self._files, block, page_size=self._page_size, run=partial(self._decode, block)
        )
        usual_s = self.link.latency_s + (block.stop - block.start) / self.link.bytes_per_s
        with self._outage.request(), trio.fail_after(self._timeout_s):
            rows, pages, damaged = await first_answer(ask, usual_s=usual_s)
        self.link.observe(block.stop - block.start, trio.current_time() - started)
        keys = flight.keys if len(rows) == len(flight.keys) else [flight.keys[row] for row in rows]
        flight.pages = dict(zip(keys, pages, strict=True))
        for pgno, error in damaged:
            flight.damaged[page_key(file.checksum, pgno)] = DamagedFile(key, f"page {pgno}: {error.message}")
        self._pages.put(flight.pages)
        self.pages_fetched += len(pages)
        for damage in list(flight.damaged.values())[:1]:
            self._on_damage(file, damage)
        self._announce(flight, rows, pages)

    async def _decode(self, block: Block, decode: Callable[[], Decoded]) -> Decoded:
        if block.stop - block.start <= DECODE_HERE:
            return decode()
        return await trio.to_thread.run_sync(decode, limiter=self._decoders)

    def _announce(self, flight: _Flight, rows: list[int], pages: list[bytes]) -> None:
        """Report the pages to the observers, except the first one of a block that was fetched ahead.

        The kernel's request for that one then shows how far its reader has come.
        """
        start = 0 if flight.stream is None else 1
        if len(rows) > start:
            block = flight.block
            for observer in self._observers:
                observer.on_block(block.pgnos[rows[start:]], block.locations[rows[start:]], pages[start:])
