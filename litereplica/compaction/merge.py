"""Merges files of a replica into one file on this machine.

    _Fetch ──► _PageStream, one for each input ──► format.compactor ──► SpooledFile
    (trio)     (one thread decodes, merges and encodes)

Every input is read whole and its CRC is checked. The inputs must be contiguous, and a snapshot must be complete. The
result is in memory while it is small, else in a temporary file. More than `FAN_IN` inputs are merged in several rounds.

Data in transit takes at most `BUFFER_BYTES`, and `FEED_BYTES` for each input, however well it is compressed; page
indexes take some tens of bytes a page. Every frame of the inputs and of the result is decompressed for the checks, but
copied into the result unchanged.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import trio

from litereplica.compaction.levels import Compaction
from litereplica.concurrent import in_order
from litereplica.errors import EnvironmentProblem, FormatError, LiteReplicaError
from litereplica.format import ltx
from litereplica.format.compactor import FramesInput, compact, compacted_header
from litereplica.format.decoder import Decoder
from litereplica.ltxstore.file_stream import FEED_BYTES, PIECE_BYTES, ListedObject, piece_jobs
from litereplica.ltxstore.limits import most_pages, require_commit
from litereplica.ltxstore.progress import Advance
from litereplica.ltxstore.spooled_file import SpooledFile
from litereplica.ltxstore.store import LTXStore, check_name
from litereplica.storage.base import Blob
from litereplica.types import TXID, FileInfo, Pgno

T = TypeVar("T")

FAN_IN = 64
"""Maximum number of inputs of one round: 32 minutes of level 1, with pieces still large enough for a request."""

BUFFER_BYTES = 32 << 20
"""Maximum size of the pieces in memory, of all inputs together."""

PARALLELISM = 8
"""Concurrent requests of a single input."""

MIN_WIDTH = 2
"""Minimum of concurrent requests for each of many inputs: one piece is consumed while the next is fetched."""

SPOOL_MEMORY_BYTES = 1 << 20
"""A result up to this size, as most of level 1, is kept in memory."""

Checks: TypeAlias = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class _Input:
    """A file of the store, or the result of an earlier round, which is in `spool`."""

    info: FileInfo
    spool: SpooledFile | None = None


class Merge:
    """One merge. Call `run`, then `verify`, then `compare` if a file of the same name exists; finally `discard`."""

    def __init__(self, store: LTXStore, spool_dir: Path | None) -> None:
        self._store = store
        self._spool_dir = spool_dir
        self._spools: list[SpooledFile] = []

    async def run(self, compaction: Compaction, advance: Advance) -> tuple[SpooledFile, ltx.Header]:
        """Return the merged file, and the header that it must have.

        The first input, which may be a whole database, takes part in the last round only.

        Raises:
            NotFound: an input has vanished.
            DamagedFile: an input is damaged, or the inputs are not contiguous.
            EnvironmentProblem: the local disk is full.
            StorageError: a request failed.
        """
        inputs = [_Input(info) for info in compaction.inputs]
        while len(inputs) > FAN_IN:
            starts = range(1, len(inputs), FAN_IN)
            inputs[1:] = [await self._combined(inputs[start : start + FAN_IN], advance) for start in starts]
        return await self._merged(inputs, compaction.min_txid, advance)

    async def verify(self, spool: SpooledFile, expected: ltx.Header) -> int:
        """Read the result back, and return its checksum.

        Raises `EnvironmentProblem` unless it is a valid file with this header.
        """
        return await trio.to_thread.run_sync(_verify, spool, expected)

    async def compare(self, spool: SpooledFile, info: FileInfo) -> bool:
        """True if a file of the store has the same pages as the result. Raises as `run` does for an input."""
        return await self._in_thread([_Input(info), _Input(info, spool)], _equal, lambda done: None)

    def discard(self) -> None:
        """Remove the temporary files."""
        for spool in self._spools:
            spool.discard()

    async def _combined(self, inputs: Sequence[_Input], advance: Advance) -> _Input:
        """Merge several inputs into one."""
        if len(inputs) == 1:
            return inputs[0]
        first, last = inputs[0].info, inputs[-1].info
        spool, header = await self._merged(inputs, first.min_txid, advance)
        for each in inputs:
            if each.spool is not None:
                each.spool.discard()
        return _Input(FileInfo(first.level, first.min_txid, last.max_txid, spool.size, header.timestamp_ms), spool)

    async def _merged(
        self, inputs: Sequence[_Input], min_txid: TXID, advance: Advance
    ) -> tuple[SpooledFile, ltx.Header]:
        spool = SpooledFile(self._spool_dir, memory_bytes=SPOOL_MEMORY_BYTES)
        self._spools.append(spool)

        def merge(streams: Sequence[_PageStream]) -> ltx.Header:
            headers = [stream.header() for stream in streams]
            self._require_commits(inputs, headers)
            headers[0] = replace(headers[0], min_txid=min_txid)
            # damage of one input is raised for that input; if they are not contiguous, the error names the first one
            with self._store.blame(inputs[0].info):
                header = compacted_header(headers)
                frames = [stream.frames() for stream in streams]
                pieces = compact([FramesInput(*each) for each in zip(headers, frames, strict=True)])
                with _reporting(self._spool_dir):
                    spool.write(pieces)
                    spool.finish()
            return header

        return spool, await self._in_thread(inputs, merge, advance)

    def _require_commits(self, inputs: Sequence[_Input], headers: Sequence[ltx.Header]) -> None:
        """Raise `DamagedFile` for an input that makes the database grow by more pages than it can have."""
        commit = 0
        for i, (each, header) in enumerate(zip(inputs, headers, strict=True)):
            with self._store.blame(each.info):
                if i or header.is_snapshot:
                    require_commit(header, commit + most_pages(each.info.size))
            commit = header.commit

    async def _in_thread(
        self, inputs: Sequence[_Input], work: Callable[[Sequence[_PageStream]], T], advance: Advance
    ) -> T:
        """Run `work` in a thread, on the pages of the inputs, which are fetched at the same time."""
        width = max(MIN_WIDTH, PARALLELISM // len(inputs))
        chunk_bytes = min(PIECE_BYTES, BUFFER_BYTES // (len(inputs) * (width + 1)))
        feed_bytes = min(chunk_bytes, FEED_BYTES)
        outcome: T | LiteReplicaError
        async with trio.open_nursery() as nursery:
            streams = []
            for each in inputs:
                if each.spool is None:
                    send, receive = trio.open_memory_channel[bytes | LiteReplicaError](0)
                    nursery.start_soon(_Fetch(self._store, each.info, chunk_bytes, width, advance).run, send)
                    checks: Checks = partial(self._store.blame, each.info)
                    streams.append(_PageStream(each.info, _received(receive), feed_bytes, checks))
                else:
                    streams.append(_PageStream(each.info, each.spool.chunks(chunk_bytes), feed_bytes, _own))
            try:
                outcome = await trio.to_thread.run_sync(work, streams)
            except LiteReplicaError as exc:
                outcome = exc
            nursery.cancel_scope.cancel()
        if isinstance(outcome, LiteReplicaError):
            raise outcome
        return outcome


class _Fetch:
    """Fetches the bytes of one file of the store in order, with several concurrent requests."""

    def __init__(self, store: LTXStore, info: FileInfo, chunk_bytes: int, width: int, advance: Advance) -> None:
        self._jobs = piece_jobs(store, info, piece_bytes=chunk_bytes)
        self._width = width
        self._advance = advance
        self._object = ListedObject(store, info)

    async def run(self, channel: trio.MemorySendChannel[bytes | LiteReplicaError]) -> None:
        """Send the chunks to the channel; or, in place of a chunk that cannot be read, the error."""

        async def send(blob: Blob) -> bool:
            self._object.require(blob)
            self._advance(len(blob.data))
            await channel.send(blob.data)
            return True

        async with channel:
            try:
                await in_order(self._jobs, send, width=self._width)
            except LiteReplicaError as exc:
                await channel.send(exc)


def _received(channel: trio.MemoryReceiveChannel[bytes | LiteReplicaError]) -> Iterator[bytes]:
    """Yield the chunks that a `_Fetch` sends. Runs in a thread."""
    while True:
        try:
            item = trio.from_thread.run(channel.receive)
        except trio.EndOfChannel:
            return
        if isinstance(item, LiteReplicaError):
            raise item
        yield item


class _PageStream:
    """Decodes one file from its chunks: `header`, then `frames` or `pages` once. `checks` translates format errors."""

    def __init__(
        self,
        info: FileInfo,
        chunks: Iterator[bytes],
        feed_bytes: int,
        checks: Checks,
    ) -> None:
        self._info = info
        self._slices = _slices(chunks, feed_bytes)
        self._decoder = Decoder()
        self._first: list[tuple[Pgno, bytes]] = []  # frames
        self._checks = checks

    def header(self) -> ltx.Header:
        """The header, which agrees with the file's name."""
        with self._checks():
            while self._decoder.header is None and (data := next(self._slices, None)) is not None:
                self._first += self._decoder.feed_frames(data)
            if self._decoder.header is None:
                self._decoder.finish()  # raises
            assert self._decoder.header is not None
            check_name(self._info, self._decoder.header)
        return self._decoder.header

    def frames(self) -> Iterator[list[tuple[Pgno, bytes]]]:
        """Yield all frames, ascending, in lists. They are known to be valid only after the last one."""
        first, self._first = self._first, []
        with self._checks():
            yield first
            for data in self._slices:
                yield self._decoder.feed_frames(data)
            self._decoder.finish()

    def pages(self) -> Iterator[tuple[Pgno, bytes]]:
        """Yield all pages, ascending, instead of the frames."""
        page_size = self.header().page_size
        for batch in self.frames():
            for pgno, frame in batch:
                yield pgno, ltx.decode_frame(frame, pgno=pgno, page_size=page_size)


def _verify(spool: SpooledFile, expected: ltx.Header) -> int:
    """Return the checksum of the result; raises `EnvironmentProblem` unless it has this header. Runs in a thread."""
    with _own():
        decoder = Decoder()
        for data in _slices(spool.chunks(PIECE_BYTES), FEED_BYTES):
            decoder.feed_frames(data)
        file = decoder.finish()
        if file.header != expected:
            raise FormatError(f"header is {file.header}, expected {expected}")
    return file.file_checksum


def _equal(streams: Sequence[_PageStream]) -> bool:
    """True if two files have the same page size, commit and pages. Runs in a thread."""
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
    """Translate format errors of the block, which is about a file just written here, into `EnvironmentProblem`."""
    try:
        yield
    except FormatError as exc:
        raise EnvironmentProblem(
            f"the merged file fails its check, and was not published: {exc.message}",
            hint="check this machine's memory and the disk that contains its temporary files",
        ) from exc


@contextmanager
def _reporting(directory: Path | None) -> Iterator[None]:
    """Translate an `OSError` of the block into `EnvironmentProblem`."""
    try:
        yield
    except OSError as exc:
        where = directory or tempfile.gettempdir()
        raise EnvironmentProblem(
            f"cannot write a temporary file in {where}: {exc.strerror}", hint="free some space, or set TMPDIR"
        ) from exc
