"""Merging LTX files of a replica into one, as `levels.py` proposes it.

Every input is read whole and its CRC is checked; they must be contiguous, and a snapshot must be complete. The result
lies in memory while it is small, else in a temporary file of this machine. It is read back and checked before it gets
its name in the store, and it never replaces a file there: if one has the name already, it must hold the same pages,
and it is then the result. After any error nothing has been published.

Memory is bounded by `BUFFER_BYTES` and `PAGES_BYTES` for the data on its way, whatever the number of the inputs
and however well they are compressed, and by some tens of bytes a page for the page indexes. More inputs than
`FAN_IN` are merged in several rounds.

Requests run in trio, several at a time; one thread decodes, merges and encodes.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import trio

from litereplica.errors import (
    ConflictError,
    DamagedFile,
    EnvironmentProblem,
    FileVanished,
    FormatError,
    LiteReplicaError,
    NotFound,
    PreconditionFailed,
    ReplicaError,
)
from litereplica.format import ltx
from litereplica.format.compactor import CompactionInput, compact, compacted_header
from litereplica.format.decoder import Decoder
from litereplica.ltxstore.concurrent import Job, in_order
from litereplica.ltxstore.levels import Compaction, next_compaction, next_snapshot
from litereplica.ltxstore.restore import Progress
from litereplica.ltxstore.store import LTXStore, check_name
from litereplica.storage.base import Blob, Body, ByteRange
from litereplica.types import TXID, FileInfo, Pgno

T = TypeVar("T")

FAN_IN = 64
"""Inputs of one merge: 32 minutes of level 1, and still pieces of a size that is worth a request."""

BUFFER_BYTES = 32 << 20
"""Pieces of inputs in memory, of all inputs together."""

PAGES_BYTES = 16 << 20
"""Decompressed pages in memory, of all inputs together, at the best compression there is."""

MAX_CHUNK_BYTES = 4 << 20
"""A request's round trip is short against its transfer."""

PARALLELISM = 8
"""Requests under way; a single large input uses them all."""

MIN_WIDTH = 2
"""Requests under way for each of many inputs: one is consumed while the next is fetched."""

COMPRESSION_LIMIT = 255
"""A page takes at least so much of its size in a file."""

SPOOL_MEMORY_BYTES = 1 << 20
"""A result up to this size needs no file on this machine: most of level 1."""

MAX_PLANS = 5
"""After so many, a replica that still loses files as we read is not one to compact now."""

REPLAN_DELAY_S = 0.25
"""Before another plan: time for a listing to show what has changed."""

Plan: TypeAlias = Callable[[Sequence[FileInfo]], Compaction | None]
Advance: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Compacted:
    """What came of a compaction: the file that has the result, and whether it was there already."""

    compaction: Compaction
    info: FileInfo
    adopted: bool


async def run_compaction(
    store: LTXStore, compaction: Compaction, *, spool_dir: Path | None = None, progress: Progress | None = None
) -> Compacted:
    """Merge the files and publish the result.

    `spool_dir` is for temporary files (default: the system's place for them). Raises `NotFound` when an input has
    gone, `DamagedFile` when one is wrong or the inputs do not add up, `ConflictError` when a file of that name holds
    other pages, `EnvironmentProblem` when this machine has no room, and the errors of storage.
    """
    merge = _Merge(store, spool_dir)
    try:
        with (progress or _untold)(compaction.size) as advance:
            spool, header = await merge.run(compaction, advance)
        await trio.to_thread.run_sync(_verify, spool, header)
        info = FileInfo(compaction.level, compaction.min_txid, compaction.max_txid, spool.size, header.timestamp_ms)
        try:
            await store.put(info, spool.body, timestamp_ms=header.timestamp_ms)
        except PreconditionFailed:
            return Compacted(compaction, await merge.adopt(info, spool), adopted=True)
        return Compacted(compaction, info, adopted=False)
    finally:
        merge.discard()


async def compact_level(
    store: LTXStore, level: int, *, spool_dir: Path | None = None, progress: Progress | None = None
) -> Compacted | None:
    """Merge into `level`, now, what the level below has gained; None when it has not gained anything.

    Files that vanish meanwhile, or are damaged, are got around where others hold the same transactions.
    Raises as `run_compaction`.
    """
    return await _replanning(store, partial(next_compaction, level=level), spool_dir, progress)


async def snapshot(
    store: LTXStore, *, spool_dir: Path | None = None, progress: Progress | None = None
) -> Compacted | None:
    """Publish a snapshot of the newest TXID, now; None when there is one already.

    Raises `NoReplica`, `GapError`, and as `compact_level`.
    """
    return await _replanning(store, next_snapshot, spool_dir, progress)


async def _replanning(
    store: LTXStore, plan: Plan, spool_dir: Path | None, progress: Progress | None
) -> Compacted | None:
    """Plan and run; when an input fails, again: without it when it is damaged, if that leads as far."""
    damaged: dict[str, DamagedFile] = {}
    wanted: TXID = 0
    for attempt in itertools.count(1):
        files = [info for info in await store.list_levels() if store.key(info) not in damaged]
        try:
            compaction = plan(files)
        except ReplicaError:
            if not damaged:
                raise
            compaction = None
        if damaged and (compaction is None or compaction.max_txid < wanted):
            raise next(iter(damaged.values()))
        if compaction is None:
            break
        wanted = compaction.max_txid
        try:
            return await run_compaction(store, compaction, spool_dir=spool_dir, progress=progress)
        except (NotFound, DamagedFile) as exc:
            if attempt == MAX_PLANS:
                raise
            if isinstance(exc, DamagedFile):
                damaged[exc.key] = exc
        await trio.sleep(REPLAN_DELAY_S)
    return None


@dataclass(frozen=True, slots=True)
class _Input:
    """A file of the store, or what a round made of several, which lies in `spool`."""

    info: FileInfo
    spool: _Spool | None = None


class _Merge:
    """One merge in the making: `run`, then perhaps `adopt`; at last `discard`."""

    def __init__(self, store: LTXStore, spool_dir: Path | None) -> None:
        self._store = store
        self._spool_dir = spool_dir
        self._spools: list[_Spool] = []

    async def run(self, compaction: Compaction, advance: Advance) -> tuple[_Spool, ltx.Header]:
        """The merged file, and the header that it must have.

        The first input, which may be a whole database, takes part in the last round only.
        """
        inputs = [_Input(info) for info in compaction.inputs]
        while len(inputs) > FAN_IN:
            starts = range(1, len(inputs), FAN_IN)
            inputs[1:] = [await self._combined(inputs[start : start + FAN_IN], advance) for start in starts]
        return await self._merged(inputs, compaction.min_txid, advance)

    async def adopt(self, info: FileInfo, spool: _Spool) -> FileInfo:
        """The file that has the name of our result, if it holds the same pages; else `ConflictError`."""
        found = await self._store.storage.head(self._store.key(info))
        theirs = _Input(replace(info, size=found.size, modified_ms=found.modified_ms))
        if not await self._in_thread([theirs, _Input(info, spool)], _equal, _unheard):
            raise ConflictError(
                f"{self._store.key(info)} exists in {self._store.url} with other pages",
                hint="see whether several writers publish to this replica, and let only one of them go on",
            )
        return theirs.info

    def discard(self) -> None:
        """Remove the temporary files."""
        for spool in self._spools:
            spool.discard()

    async def _combined(self, inputs: Sequence[_Input], advance: Advance) -> _Input:
        """One input instead of several."""
        if len(inputs) == 1:
            return inputs[0]
        first, last = inputs[0].info, inputs[-1].info
        spool, header = await self._merged(inputs, first.min_txid, advance)
        for each in inputs:
            if each.spool is not None:
                each.spool.discard()
        return _Input(FileInfo(first.level, first.min_txid, last.max_txid, spool.size, header.timestamp_ms), spool)

    async def _merged(self, inputs: Sequence[_Input], min_txid: TXID, advance: Advance) -> tuple[_Spool, ltx.Header]:
        spool = _Spool(self._spool_dir)
        self._spools.append(spool)

        def merge(streams: Sequence[_PageStream]) -> ltx.Header:
            headers = [stream.header() for stream in streams]
            headers[0] = replace(headers[0], min_txid=min_txid)
            with self._store.blame(
                inputs[0].info
            ):  # what a single input is to blame for has been turned into its error
                header = compacted_header(headers)
                pages = [stream.pages() for stream in streams]
                spool.fill(compact([CompactionInput(*each) for each in zip(headers, pages, strict=True)]))
            return header

        return spool, await self._in_thread(inputs, merge, advance)

    async def _in_thread(
        self, inputs: Sequence[_Input], work: Callable[[Sequence[_PageStream]], T], advance: Advance
    ) -> T:
        """Run `work` in a thread, on the pages of the inputs, which are fetched meanwhile."""
        width = max(MIN_WIDTH, PARALLELISM // len(inputs))
        chunk_bytes = min(MAX_CHUNK_BYTES, BUFFER_BYTES // (len(inputs) * (width + 1)))
        feed_bytes = min(chunk_bytes, PAGES_BYTES // (len(inputs) * COMPRESSION_LIMIT))
        outcome: T | LiteReplicaError
        async with trio.open_nursery() as nursery:
            streams = []
            for each in inputs:
                if each.spool is None:
                    send, receive = trio.open_memory_channel[bytes | LiteReplicaError](0)
                    nursery.start_soon(_Fetch(self._store, each.info, chunk_bytes, width, advance).run, send)
                    chunks, checks = _received(receive), partial(self._store.blame, each.info)
                else:
                    chunks, checks = each.spool.chunks(chunk_bytes), _own
                streams.append(_PageStream(each.info, chunks, feed_bytes, checks))
            try:
                outcome = await trio.to_thread.run_sync(work, streams)
            except LiteReplicaError as exc:
                outcome = exc
            nursery.cancel_scope.cancel()
        if isinstance(outcome, LiteReplicaError):
            raise outcome
        return outcome


class _Fetch:
    """The bytes of one file of the store, in order, several requests at a time."""

    def __init__(self, store: LTXStore, info: FileInfo, chunk_bytes: int, width: int, advance: Advance) -> None:
        self._store = store
        self._info = info
        self._chunk_bytes = chunk_bytes
        self._width = width
        self._advance = advance
        self._first: Blob | None = None

    async def run(self, channel: trio.MemorySendChannel[bytes | LiteReplicaError]) -> None:
        """Send the chunks, or the error in the place of the one that it is about."""

        async def send(blob: Blob) -> bool:
            self._require_whole(blob)
            self._advance(len(blob.data))
            await channel.send(blob.data)
            return True

        async with channel:
            try:
                await in_order(self._jobs(), send, width=self._width)
            except LiteReplicaError as exc:
                await channel.send(exc)

    def _jobs(self) -> Iterator[Job[Blob]]:
        for start in range(0, max(self._info.size, 1), self._chunk_bytes):
            yield partial(self._store.get, self._info, ByteRange(start, start + self._chunk_bytes))

    def _require_whole(self, blob: Blob) -> None:
        """The chunks are of one object, and that is the one that was listed."""
        self._first = self._first or blob
        self._store.require_same(self._info, self._first, blob)
        if blob.size != self._info.size:
            key = self._store.key(self._info)
            raise FileVanished(f"{key} has {blob.size} bytes, but was listed with {self._info.size}", key=key)


def _received(channel: trio.MemoryReceiveChannel[bytes | LiteReplicaError]) -> Iterator[bytes]:
    """What a `_Fetch` sends, in a thread."""
    while True:
        try:
            item = trio.from_thread.run(channel.receive)
        except trio.EndOfChannel:
            return
        if isinstance(item, LiteReplicaError):
            raise item
        yield item


class _PageStream:
    """The pages of one file, from its chunks: `header`, then `pages` once. Format errors go through `checks`."""

    def __init__(
        self,
        info: FileInfo,
        chunks: Iterator[bytes],
        feed_bytes: int,
        checks: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._info = info
        self._slices = _slices(chunks, feed_bytes)
        self._decoder = Decoder()
        self._first: list[tuple[Pgno, bytes]] = []
        self._checks = checks

    def header(self) -> ltx.Header:
        """The header, which agrees with the file's name."""
        while self._decoder.header is None and (data := next(self._slices, None)) is not None:
            with self._checks():
                self._first += self._decoder.feed(data)
        with self._checks():
            if self._decoder.header is None:
                self._decoder.finish()
            assert self._decoder.header is not None
            check_name(self._info, self._decoder.header)
        return self._decoder.header

    def pages(self) -> Iterator[tuple[Pgno, bytes]]:
        """All pages, ascending. They are right when the iterator has come to its end."""
        first, self._first = self._first, []
        yield from first
        for data in self._slices:
            with self._checks():
                pages = self._decoder.feed(data)
            yield from pages
        with self._checks():
            self._decoder.finish()


class _Spool:
    """A file in the making on this machine, in memory as long as it is small. Blocks; one thread at a time."""

    def __init__(self, directory: Path | None) -> None:
        self.size = 0
        self._directory = directory
        self._memory: list[bytes] = []
        self._path: Path | None = None

    @property
    def body(self) -> Body:
        return b"".join(self._memory) if self._path is None else self._path

    def fill(self, pieces: Iterator[bytes]) -> None:
        """Take the whole file. Raises `EnvironmentProblem`, and whatever making the pieces raises."""
        for piece in pieces:
            self.size += len(piece)
            self._memory.append(piece)
            if self.size > SPOOL_MEMORY_BYTES:
                with self._create() as file:
                    self._write(file, itertools.chain(self._memory, pieces))
                self._memory.clear()

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """The file's bytes."""
        if self._path is None:
            yield b"".join(self._memory)
            return
        with self._path.open("rb") as file:
            while chunk := file.read(chunk_bytes):
                trio.from_thread.check_cancelled()
                yield chunk

    def discard(self) -> None:
        """Remove the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _create(self) -> BinaryIO:
        with _reporting(self._directory):
            fd, name = tempfile.mkstemp(prefix="litereplica-", suffix=".ltx", dir=self._directory)
        self._path = Path(name)
        return os.fdopen(fd, "wb", SPOOL_MEMORY_BYTES)

    def _write(self, file: BinaryIO, pieces: Iterable[bytes]) -> None:
        self.size = 0
        for piece in pieces:
            self.size += len(piece)
            with _reporting(self._directory):
                file.write(piece)
        with _reporting(self._directory):
            file.flush()


def _verify(spool: _Spool, expected: ltx.Header) -> None:
    """The result is a valid file with this header. Runs in a thread."""
    with _own():
        decoder = Decoder()
        for data in _slices(spool.chunks(MAX_CHUNK_BYTES), PAGES_BYTES // COMPRESSION_LIMIT):
            decoder.feed(data)
        header = decoder.finish().header
        if header != expected:
            raise FormatError(f"header is {header}, expected {expected}")


def _equal(streams: Sequence[_PageStream]) -> bool:
    """Do two files make the same of a database? Runs in a thread."""
    theirs, ours = streams
    kinds = [(header.page_size, header.commit) for header in (theirs.header(), ours.header())]
    if kinds[0] != kinds[1]:
        return False
    return all(one == other for one, other in itertools.zip_longest(theirs.pages(), ours.pages()))


def _slices(chunks: Iterable[bytes], size: int) -> Iterator[memoryview]:
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), size):
            yield view[start : start + size]


@contextmanager
def _own() -> Iterator[None]:
    """A format error of the block is about a file that was made here a moment ago."""
    try:
        yield
    except FormatError as exc:
        raise EnvironmentProblem(
            f"the merged file fails its check on this machine, and was not published: {exc.message}",
            hint="check the machine's memory and the disk that has its temporary files",
        ) from exc


@contextmanager
def _reporting(directory: Path | None) -> Iterator[None]:
    """An `OSError` of the block becomes `EnvironmentProblem`."""
    try:
        yield
    except OSError as exc:
        where = directory or tempfile.gettempdir()
        raise EnvironmentProblem(
            f"cannot write a temporary file in {where}: {exc.strerror}", hint="free some space, or set TMPDIR"
        ) from exc


def _untold(total_bytes: int) -> AbstractContextManager[Advance]:
    return nullcontext(_unheard)


def _unheard(done: int) -> None:
    return None
