"""Reading pages from the store in blocks, each page once however many ask for it.

Frames that lie near each other in a file come in one request, and a cold page brings its neighbourhood with it: the
other pages of the same window of the file that the caller's map still takes from there. A fetch is a task of
the replica's own: a reader that is cancelled stops waiting, and the others get their pages. Every frame is checked
before it is handed out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import (
    DamagedFile,
    FileVanished,
    FormatError,
    LiteReplicaError,
    NotFound,
    TransientStorageError,
)
from litereplica.format.ltx import decode_frame
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.files import FileTable, SourceFile
from litereplica.replica.page_key import PageKey, page_key
from litereplica.replica.page_map import PageMap
from litereplica.replica.page_store import PageStore
from litereplica.storage.base import Blob, ByteRange

log = logging.getLogger(__name__)

WINDOW = 256 * 1024
"""Bytes of a file that a cold page brings along: 10 ms of a link of 25 MB/s, as long as the round trip."""

NEIGHBOURS = 512
"""Pages to either side that are looked at for the window: it bounds the work for tiny frames."""

MAX_BLOCK = 1024 * 1024
"""Bytes of one request: larger ones gain no throughput, and their pages arrive later."""

MAX_GAP = 32 * 1024
"""Bytes between two wanted frames that are read along rather than asked for in two requests."""

PARALLEL_FETCHES = 16
"""Requests at the same time, as many as a usual connection pool has."""

BlockListener: TypeAlias = Callable[[NDArray[np.uint32], NDArray[np.void], list[bytes]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Frames of one file to be read in one request: `start` ≤ byte < `stop`."""

    file_id: int
    start: int
    stop: int
    pgnos: NDArray[np.uint32]
    locations: NDArray[np.void]


def plan_blocks(pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> list[Block]:
    """The requests that bring these pages. Pure; the pages are in any order, each once."""
    order = np.lexsort((locations["offset"], locations["file"]))
    pgnos, locations = pgnos[order], locations[order]
    starts = locations["offset"].tolist()
    stops = (locations["offset"] + locations["size"]).tolist()
    files = locations["file"].tolist()
    blocks: list[Block] = []
    first = 0
    for i in range(1, len(starts) + 1):
        if (
            i < len(starts)
            and files[i] == files[first]
            and starts[i] <= stops[i - 1] + MAX_GAP
            and stops[i] <= starts[first] + MAX_BLOCK
        ):
            continue
        blocks.append(Block(files[first], starts[first], stops[i - 1], pgnos[first:i], locations[first:i]))
        first = i
    return blocks


def neighbourhood(
    around: PageMap, pgnos: NDArray[np.uint32], locations: NDArray[np.void]
) -> tuple[NDArray[np.uint32], NDArray[np.void]]:
    """The pages that `around` takes from the same windows of the same files as these pages. Pure."""
    seen: set[tuple[int, int]] = set()
    found_pgnos, found_locations = [pgnos], [locations]
    windows = (locations["offset"] // WINDOW).tolist()
    for pgno, file_id, window in zip(pgnos.tolist(), locations["file"].tolist(), windows, strict=True):
        if (file_id, window) in seen:
            continue
        seen.add((file_id, window))
        near = np.arange(max(1, pgno - NEIGHBOURS), min(around.commit, pgno + NEIGHBOURS) + 1, dtype=np.uint32)
        rows = around.lookup(near)
        inside = (rows["file"] == file_id) & (rows["offset"] // WINDOW == window)
        found_pgnos.append(near[inside])
        found_locations.append(rows[inside])
    every = np.concatenate(found_pgnos)
    _, first = np.unique(every, return_index=True)
    return every[first], np.concatenate(found_locations)[first]


@dataclass(slots=True, eq=False)
class _Flight:
    """A request under way: what it brought, or why not."""

    block: Block
    keys: list[PageKey]
    done: trio.Event = field(default_factory=trio.Event)
    pages: dict[PageKey, bytes] = field(default_factory=dict)
    damaged: dict[PageKey, DamagedFile] = field(default_factory=dict)
    error: LiteReplicaError | None = None

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
        files: FileTable,
        pages: PageStore,
        nursery: trio.Nursery,
        *,
        page_size: int,
        timeout_s: float,
        on_damage: Callable[[SourceFile, DamagedFile], None],
    ) -> None:
        self.on_block: BlockListener | None = None
        self.pages_fetched = 0
        self._store = store
        self._files = files
        self._pages = pages
        self._nursery = nursery
        self._page_size = page_size
        self._timeout_s = timeout_s
        self._on_damage = on_damage
        self._limiter = trio.CapacityLimiter(PARALLEL_FETCHES)
        self._flights: dict[PageKey, _Flight] = {}

    async def fetch(
        self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], around: PageMap | None
    ) -> dict[PageKey, bytes]:
        """The pages by their keys. Raises `FileVanished`, `DamagedFile`, or what the store raises."""
        keys = self._keys(pgnos, locations)
        new = [i for i, key in enumerate(keys) if key not in self._flights]
        if new:
            self._start(pgnos[new], locations[new], around)
        flights = {key: self._flights[key] for key in keys}
        for flight in set(flights.values()):
            await flight.done.wait()
        return {key: flight.page(key) for key, flight in flights.items()}

    def _keys(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> list[PageKey]:
        return [
            page_key(self._file(file_id).checksum, pgno)
            for pgno, file_id in zip(pgnos.tolist(), locations["file"].tolist(), strict=True)
        ]

    def _file(self, file_id: int) -> SourceFile:
        file = self._files.get(file_id)
        if file is None:
            raise FileVanished(f"file {file_id} is no longer part of the replica")
        return file

    def _start(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], around: PageMap | None) -> None:
        """Send the requests for these pages, which nobody has asked for yet, and for their neighbours."""
        wanted = set(pgnos.tolist())
        if around is not None:
            pgnos, locations = neighbourhood(around, pgnos, locations)
        keys = self._keys(pgnos, locations)
        take = [
            i
            for i, (pgno, key) in enumerate(zip(pgnos.tolist(), keys, strict=True))
            if key not in self._flights and (pgno in wanted or not self._pages.holds(key))
        ]
        for block in plan_blocks(pgnos[take], locations[take]):
            flight = _Flight(block, self._keys(block.pgnos, block.locations))
            self._flights.update(dict.fromkeys(flight.keys, flight))
            self._nursery.start_soon(self._fly, flight)

    async def _fly(self, flight: _Flight) -> None:
        block = flight.block
        try:
            file = self._file(block.file_id)
            with trio.fail_after(self._timeout_s):
                async with self._limiter:
                    blob = await self._store.get(file.info, ByteRange(block.start, block.stop))
            self._land(flight, file, blob)
        except NotFound as exc:
            flight.error = FileVanished(exc.message, key=exc.key)
        except trio.TooSlowError:
            flight.error = TransientStorageError(f"the store did not answer within {self._timeout_s:g} s")
        except LiteReplicaError as exc:
            flight.error = exc
        finally:
            for key in flight.keys:
                del self._flights[key]
            flight.done.set()

    def _land(self, flight: _Flight, file: SourceFile, blob: Blob) -> None:
        """Check and keep what has come."""
        key = self._store.key(file.info)
        block = flight.block
        if not self._files.is_same_object(block.file_id, blob):
            raise FileVanished(f"{key} has been replaced", key=key)
        data = memoryview(blob.data)
        for row, page_id, pgno in zip(block.locations, flight.keys, block.pgnos.tolist(), strict=True):
            at = int(row["offset"]) - block.start
            try:
                flight.pages[page_id] = decode_frame(
                    data[at : at + int(row["size"])], pgno=pgno, page_size=self._page_size
                )
            except FormatError as exc:
                flight.damaged[page_id] = DamagedFile(key, f"page {pgno}: {exc.message}")
        self._pages.put(flight.pages)
        self.pages_fetched += len(flight.pages)
        for damage in list(flight.damaged.values())[:1]:
            self._on_damage(file, damage)
        self._announce(flight)

    def _announce(self, flight: _Flight) -> None:
        if self.on_block is None or not flight.pages:
            return
        good: Sequence[int] = [i for i, key in enumerate(flight.keys) if key in flight.pages]
        block = flight.block
        self.on_block(block.pgnos[good], block.locations[good], list(flight.pages.values()))
