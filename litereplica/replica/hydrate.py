"""Fetches the whole database into the page store, in the background.

A pass looks for pages that are not cached. A large file of which at least half is used is read whole, several large
requests at a time, and its CRC is checked at the end; small files are read whole, too, several at a time. Of the other
files only the missing pages are fetched. Pages that are
cached already, from before a restart or because they were read, are not fetched again, but are part of the CRC. After
the first pass only pages that changed are looked at, and every `RECHECK_S` all of them, since pages may be evicted.

Before each request hydration waits for readers of the store, for a limited time, so that it slows down but never stops.
A failure ends the pass, and the next one continues there. A database that does not fit the page store is not hydrated.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.concurrent import in_order
from litereplica.errors import DamagedFile, FileVanished, FormatError, LiteReplicaError
from litereplica.format.decoder import Decoder
from litereplica.ltxstore.store import WHOLE_FILE_LIMIT, LTXStore
from litereplica.replica.fetch import Fetcher
from litereplica.replica.file_parts import Part, plan_parts, take_pages, wrong_rows
from litereplica.replica.file_reader import read_block, read_with_sums
from litereplica.replica.file_table import FileTable, SourceFile
from litereplica.replica.page_key import PageKey, page_key
from litereplica.replica.page_map import LOCATION, PageMap
from litereplica.replica.page_store import PageStore
from litereplica.replica.read_plan import Block, Decoded, plan_blocks, plan_whole_files
from litereplica.replica.statistics import HydrationState, HydrationStatistics
from litereplica.storage.base import ByteRange

log = logging.getLogger(__name__)

SEGMENT = 2 * 1024 * 1024
"""Bytes of one request: long against its latency, short enough that a reader's request does not starve beside it.

Readers' own requests are smaller (`read_plan.MAX_BLOCK`: somebody waits for the last byte), those for read-ahead may be
larger (`readahead.MAX_REQUEST`: a sequential reader uses all of it), and those for whole files, where nobody reads
beside them, are `file_stream.PIECE_BYTES`."""

PARALLEL = 4
"""Requests at the same time: enough to fill a usual connection to S3, with 8 MiB of memory."""

STREAMED_SHARE = 0.5
"""A file of which at least this share is used is read whole: its CRC is worth the bytes that are not needed."""

FILL = 0.9
"""The share of the page store that a database may take: the rest is for old page versions until they are evicted."""

KERNEL_BUDGET = 256 * 1024 * 1024
"""Bytes of pages that are offered to the kernel's page cache: a small database whole; more may evict others' pages."""

PATIENCE_S = 0.1
"""How long one request waits while readers wait for the store."""

STREAM_PATIENCE_S = 1.0
"""The same while pages are fetched ahead of a reader."""

START_DELAY_S = 0.25
"""Time until the first pass: a database is often queried right after it was mounted."""

RETRY_S = 5.0
"""Time until the next pass after a failure."""

RECHECK_S = 300.0
"""Time until all pages are looked at again, in case some were evicted."""

Push: TypeAlias = Callable[[NDArray[np.uint32], NDArray[np.void], list[bytes]], Awaitable[None]]
"""Offers pages at their locations to the kernel's cache."""


class Hydrator:
    """Brings a database's pages into the page store. `run` it once; `wake` it after every change of the map."""

    def __init__(
        self,
        store: LTXStore,
        files: FileTable,
        pages: PageStore,
        fetcher: Fetcher,
        *,
        on_damage: Callable[[SourceFile, DamagedFile], None],
    ) -> None:
        self._store = store
        self._files = files
        self._pages = pages
        self._fetcher = fetcher
        self._on_damage = on_damage
        self._state = HydrationState.OFF
        self._wake = trio.Event()
        self._decoders = trio.CapacityLimiter(1)
        self._is_first = True  # no pass has been completed
        self._done: PageMap | None = None  # all of its pages have been at hand
        self._total = self._missing = self._fetched = 0
        self._verified: set[int] = set()  # files that were read whole
        self._unsound: set[int] = set()  # files of which some pages are damaged: the others are taken one by one
        self._pushed = 0
        self._push: Push | None = None
        self._rate: float | None = None
        self._free_at = -np.inf  # when the rate allows the next request

    @property
    def is_complete(self) -> bool:
        """True if all pages were at hand when they were last looked at, and the map has not changed since."""
        return self._state is HydrationState.COMPLETE and not self._wake.is_set()

    def wake(self) -> None:
        """Begin a pass, because the map has changed."""
        self._wake.set()

    def statistics(self) -> HydrationStatistics:
        """Return the figures of this moment."""
        return HydrationStatistics(
            state=self._state,
            pages=self._total,
            pages_missing=self._missing,
            pages_fetched=self._fetched,
            files_verified=len(self._verified),
        )

    async def run(self, current: Callable[[], PageMap], *, push: Push | None, rate: float | None) -> None:
        """Hydrate the map that `current` returns, until cancelled. `rate` limits the requests (bytes per second)."""
        self._push, self._rate = push, rate
        failed = False
        await trio.sleep(START_DELAY_S)
        while True:
            self._wake = trio.Event()
            pause_s = RECHECK_S
            try:
                await self._pass(current())
                failed = False
            except LiteReplicaError as exc:
                if not failed:
                    log.warning("hydration pauses: %s", exc)
                failed, pause_s = True, RETRY_S
                self._state = HydrationState.WAITING
            with trio.move_on_after(pause_s) as timeout:
                await self._wake.wait()
            if timeout.cancelled_caught:
                self._done = None

    # --- one pass --------------------------------------------------------------------------------

    async def _pass(self, pages: PageMap) -> None:
        self._total = pages.commit
        if pages.commit * pages.page_size > FILL * self._pages.capacity:
            self._state = HydrationState.TOO_LARGE
            return
        used, incomplete, small = await self._look_for_missing(pages)
        if incomplete:
            self._state = HydrationState.RUNNING
        streamed = {
            file_id
            for file_id in incomplete - self._verified - self._unsound
            if used[file_id] >= STREAMED_SHARE * self._size_of(file_id) > STREAMED_SHARE * WHOLE_FILE_LIMIT
        }
        for file_id in streamed:
            await self._stream(file_id, self._file(file_id), pages)
        await self._fetch_small(small)
        taken = streamed | {block.file_id for block in small}
        if self._is_first or incomplete - taken:
            await self._fetch_rest(pages, taken, everything=self._is_first)
        if self._is_first:
            log.info("%s: all %d pages are cached", self._store.url, pages.commit)
        self._state, self._done, self._missing, self._is_first = HydrationState.COMPLETE, pages, 0, False

    async def _look_for_missing(self, pages: PageMap) -> tuple[Counter[int], set[int], list[Block]]:
        """Return the bytes of frames in use, by file; the files of which some pages are not cached; and requests.

        The requests are for these pages of small files: each file is read once, however far apart its pages are.
        """
        used: Counter[int] = Counter()
        incomplete: set[int] = set()
        in_small: list[tuple[NDArray[np.uint32], NDArray[np.void]]] = [(np.empty(0, np.uint32), np.empty(0, LOCATION))]
        self._missing = 0
        for pgnos, locations in pages.chunks(since=self._done):
            rows = self._missing_rows(pgnos, locations)
            self._missing += len(rows)
            incomplete.update(locations["file"][rows].tolist())
            file_ids, places = np.unique(locations["file"], return_inverse=True)
            sizes = np.bincount(places, weights=locations["size"])  # a chunk may be of as many files as pages
            for file_id, size in zip(file_ids.tolist(), sizes.tolist(), strict=True):
                used[file_id] += int(size)
            is_small = self._are_small(locations["file"][rows])
            in_small.append((pgnos[rows][is_small], locations[rows][is_small]))
            await trio.lowlevel.checkpoint()
        pgnos = np.concatenate([each for each, _ in in_small])
        locations = np.concatenate([each for _, each in in_small])
        return used, incomplete, plan_whole_files(pgnos, locations, self._size_of)

    async def _fetch_small(self, blocks: Sequence[Block]) -> None:
        """Fetch the missing pages of small files. Raises `DamagedFile` at the end if one of them is damaged."""
        damages: list[DamagedFile] = []

        async def consume(damage: DamagedFile | None) -> bool:
            damages.extend([damage] if damage is not None else [])
            return True

        await in_order((partial(self._fetch_block, block) for block in blocks), consume, width=PARALLEL)
        if damages:
            raise damages[0]

    async def _fetch_rest(self, pages: PageMap, taken: set[int], *, everything: bool) -> None:
        """Fetch missing pages, without those of `taken` files. If `everything`, offer cached ones to the kernel."""

        def jobs() -> Iterator[Callable[[], Awaitable[None]]]:
            for pgnos, locations in pages.chunks(since=self._done):
                rest = ~np.isin(locations["file"], [0, *taken])
                yield partial(self._fetch_chunk, pgnos[rest], locations[rest], everything)

        async def consume(_: None) -> bool:
            return True

        await in_order(jobs(), consume, width=PARALLEL)

    async def _fetch_chunk(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], everything: bool) -> None:
        rows = self._missing_rows(pgnos, locations)
        for block in plan_blocks(pgnos[rows], locations[rows], max_size=SEGMENT):
            await self._fetch_block(block)
        if everything:
            held = np.setdiff1d(np.arange(len(pgnos)), rows)
            found = await self._at_hand(pgnos[held], locations[held])
            if found is not None:
                await self._offer(pgnos[held], locations[held], found)

    async def _fetch_block(self, block: Block) -> DamagedFile | None:
        """Fetch some pages. Returns the damage of one of them, if any; a small file is damaged as a whole."""
        file = self._file(block.file_id)
        await self._give_way()
        await self._keep_rate(block.stop - block.start)
        rows, pages, damaged = await read_block(
            self._store, self._files, block, page_size=self._pages.page_size, run=self._decode
        )
        await self._keep(file, block.pgnos[rows], block.locations[rows], pages)
        for pgno, error in damaged[:1]:
            damage = DamagedFile(self._store.key(file.info), f"page {pgno}: {error.message}")
            if file.info.size <= WHOLE_FILE_LIMIT:
                self._files.condemn(block.file_id, damage)
            self._on_damage(file, damage)
            return damage
        return None

    # --- a whole file ----------------------------------------------------------------------------

    async def _stream(self, file_id: int, file: SourceFile, pages: PageMap) -> None:
        """Read all of a file and check its CRC.

        If it is wrong, the whole file is read once more: a cached page, or one that was just read, may have been
        damaged, and is replaced.
        """
        try:
            await self._stream_once(file_id, file, pages, anew=False)
        except FormatError as exc:
            log.info("%s is read once more: %s", self._store.key(file.info), exc)
            try:
                await self._stream_once(file_id, file, pages, anew=True)
            except FormatError as again:
                hint = "run 'litereplica ltx' to see what else covers these transactions"
                damage = DamagedFile(self._store.key(file.info), again.message, hint=hint)
                self._files.condemn(file_id, damage)
                self._on_damage(file, damage)
                raise damage from again
        self._verified.add(file_id)

    async def _stream_once(self, file_id: int, file: SourceFile, pages: PageMap, *, anew: bool) -> None:
        decoder = Decoder()

        async def consume(result: tuple[Part, bytes | list[bytes]]) -> bool:
            part, content = result
            if isinstance(content, list):
                await trio.to_thread.run_sync(take_pages, decoder, part, content, limiter=self._decoders)
                await self._offer(part.pgnos, part.locations, content)
            else:
                fed = await trio.to_thread.run_sync(decoder.feed, content, limiter=self._decoders)
                await self._keep_fed(file, part, dict(fed))
            return True

        jobs = (
            partial(self._obtain, file_id, file, part, anew)
            for part in plan_parts(pages, file_id, file.info.size, part_size=SEGMENT)
        )
        await in_order(jobs, consume, width=PARALLEL)
        whole = await trio.to_thread.run_sync(decoder.finish, limiter=self._decoders)
        if whole.file_checksum != file.checksum:
            key = self._store.key(file.info)
            raise FileVanished(f"{key} has been replaced", key=key)

    async def _obtain(self, file_id: int, file: SourceFile, part: Part, anew: bool) -> tuple[Part, bytes | list[bytes]]:
        """Return a part of a file: its pages if all of them are cached (and not `anew`), else its bytes."""
        await self._give_way()
        if part.has_every_frame and not anew:
            pages = await self._at_hand(part.pgnos, part.locations)
            if pages is not None:
                return part, pages
        for _ in range(2):  # it may have been damaged in transit
            await self._keep_rate(part.stop - part.start)
            span = ByteRange(part.start, part.stop)
            data, sums = await read_with_sums(self._store, self._files, file_id, span, part.pgnos)
            wrong = await trio.to_thread.run_sync(wrong_rows, part, data, sums, limiter=self._decoders)
            if not wrong:
                return part, data
        self._unsound.add(file_id)
        reason = f"page {part.pgnos[wrong[0]]}: frame is not as the sums beside the file say"
        damage = DamagedFile(self._store.key(file.info), reason)
        self._on_damage(file, damage)
        raise damage

    async def _keep_fed(self, file: SourceFile, part: Part, fed: dict[int, bytes]) -> None:
        pages = [fed[pgno] for pgno in part.pgnos.tolist() if pgno in fed]
        if len(pages) != len(part.pgnos):
            raise FileVanished(f"{self._store.key(file.info)} has other pages than its index", key="")
        # cached pages of this part are not part of the CRC: those that were read replace them
        await self._pages.correct({page_key(file.checksum, pgno): page for pgno, page in fed.items()})
        await self._keep(file, part.pgnos, part.locations, pages)

    # --- helpers ---------------------------------------------------------------------------------

    def _size_of(self, file_id: int) -> int:
        return self._file(file_id).info.size

    def _are_small(self, file_ids: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return for each file whether it is read whole whatever is wanted of it."""
        distinct = [file_id for file_id in set(file_ids.tolist()) if self._size_of(file_id) <= WHOLE_FILE_LIMIT]
        return np.isin(file_ids, distinct)

    def _file(self, file_id: int) -> SourceFile:
        file = self._files.get(file_id)
        if file is None:
            raise FileVanished(f"file {file_id} is no longer part of the replica")
        return file

    async def _give_way(self) -> None:
        """Wait while readers wait for the store, longer during read-ahead: it fetches pages that this needs, too."""
        await self._fetcher.wait_until_quiet(STREAM_PATIENCE_S if self._fetcher.is_ahead else PATIENCE_S)

    async def _keep_rate(self, size: int) -> None:
        """Wait until `size` bytes may be requested."""
        if self._rate is not None:
            self._free_at = max(self._free_at, trio.current_time()) + size / self._rate
            await trio.sleep_until(self._free_at)

    async def _decode(self, decode: Callable[[], Decoded]) -> Decoded:
        return await trio.to_thread.run_sync(decode, limiter=self._decoders)

    def _keys(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> list[PageKey]:
        checksums = self._files.checksums(locations["file"]).tolist()
        return [page_key(checksum, pgno) for checksum, pgno in zip(checksums, pgnos.tolist(), strict=True)]

    def _missing_rows(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> list[int]:
        file_ids = locations["file"]
        kept = self._pages.keeps_each(self._files.checksums(file_ids), pgnos)
        rows: list[int] = np.flatnonzero(~kept & (file_ids != 0)).tolist()
        return rows

    async def _at_hand(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void]) -> list[bytes] | None:
        """Return cached pages, or None if one of them is missing."""
        keys = self._keys(pgnos, locations)
        if not all(self._pages.keeps(key) for key in keys):
            return None
        found = await self._pages.peek(keys)
        return [found[key] for key in keys] if len(found) == len(set(keys)) else None

    async def _keep(
        self, file: SourceFile, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]
    ) -> None:
        keys = [page_key(file.checksum, pgno) for pgno in pgnos.tolist()]
        await self._pages.keep(dict(zip(keys, pages, strict=True)))
        self._fetched += len(pages)
        self._missing = max(0, self._missing - len(pages))
        await self._offer(pgnos, locations, pages)

    async def _offer(self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], pages: list[bytes]) -> None:
        size = sum(map(len, pages))
        if self._push is not None and pages and self._pushed + size <= KERNEL_BUDGET:
            self._pushed += size
            await self._push(pgnos, locations, pages)
