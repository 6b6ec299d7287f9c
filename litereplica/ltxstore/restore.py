"""Writing a replica's database to a local file.

Files are read whole and in order, newest first, in pieces of which several are under way at a time; every file's CRC is
checked before the result gets its name. `assembly.py` decides which pages are taken, `output_file.py` what happens to
the file system, `plan.py` which files are read.

A plan and the reading of it are not atomic. When a file vanishes or turns out damaged, another plan is made from a new
listing, for the same TXID if there is one, without the files that failed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import trio

from litereplica.errors import DamagedFile, FileVanished, GapError, NotFound, ReplicaError
from litereplica.ltxstore.assembly import FEED_BYTES, Assembly
from litereplica.ltxstore.concurrent import Job, in_order
from litereplica.ltxstore.output_file import OutputFile
from litereplica.ltxstore.plan import plan_restore
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Blob, ByteRange
from litereplica.types import TXID, FileInfo

CHUNK_BYTES = 4 << 20
"""A request's round trip is short against its transfer; small enough to have several in memory."""

PARALLELISM = 8
"""Requests under way or waiting to be written, of `CHUNK_BYTES` each: Litestream's default."""

MAX_PLANS = 8
"""After so many, a replica that still loses files as we read is not one to restore from now."""

REPLAN_DELAY_S = 0.25
"""Before another plan: time for a listing to show what has changed."""

Progress: TypeAlias = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Given the bytes to be read, a context whose value is told of each further number of bytes read."""


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What was restored: the TXID, the database's size in pages and bytes, and the files of the plan."""

    txid: TXID
    page_size: int
    pages: int
    size: int
    files: tuple[FileInfo, ...]


async def restore(
    store: LTXStore,
    output: Path,
    *,
    target: TXID | None = None,
    force: bool = False,
    progress: Progress | None = None,
    parallelism: int = PARALLELISM,
) -> RestoreResult:
    """Write the database at `target`, or at the newest TXID, to the file `output`.

    An existing database, or a sidecar file of one, is replaced only with `force`. On any error, and when
    cancelled, everything is as it was before. Raises `UsageError` for a place that cannot be written to,
    `EnvironmentProblem` for a file system that does not take the file, `NoReplica`, `GapError`, `DamagedFile`, and the
    errors of storage.
    """
    file = OutputFile(output, force=force)
    await trio.to_thread.run_sync(file.check)
    planner = _Planner(store, target)
    plan = await planner.first()
    try:
        reader = _Reader(store, file, progress or _untold, parallelism)
        for attempt in itertools.count(1):
            try:
                await reader.read(plan)
                break
            except (NotFound, DamagedFile) as exc:
                if attempt == MAX_PLANS:
                    raise
                plan = await planner.another(plan, exc)
        await trio.to_thread.run_sync(reader.publish)
    finally:
        file.discard()
    made = reader.assembly
    return RestoreResult(plan[-1].max_txid, made.page_size, made.commit, made.size, tuple(plan))


class _Planner:
    """Plans for one restore, and the files that are no good for it."""

    def __init__(self, store: LTXStore, target: TXID | None) -> None:
        self._store = store
        self._target = target
        self._damaged: dict[str, DamagedFile] = {}
        self._vanished: set[str] = set()

    async def first(self) -> list[FileInfo]:
        """The plan, by one listing of all levels; by another one when the first shows a gap."""
        try:
            return plan_restore(await self._store.list_levels(), target=self._target)
        except GapError:
            await trio.sleep(REPLAN_DELAY_S)
            return plan_restore(await self._store.list_levels(), target=self._target)

    async def another(self, plan: Sequence[FileInfo], reason: NotFound | DamagedFile) -> list[FileInfo]:
        """A plan after `reason` ended the last one: for the same TXID, else for the newest. Raises `reason` if none.

        A newest TXID that only a damaged file has is still the newest: no older database is passed off as the latest.
        """
        if isinstance(reason, DamagedFile):
            self._damaged[reason.key] = reason
        else:
            self._vanished.add(reason.key)
        await trio.sleep(REPLAN_DELAY_S)
        files = await self._store.list_levels()
        targets = [plan[-1].max_txid]
        if self._target is None:
            targets += [max(info.max_txid for info in files)] if files else []
        avoided = [self._damaged.keys() | self._vanished, self._damaged.keys()]
        for target, keys in itertools.product(targets, avoided):
            with contextlib.suppress(ReplicaError):
                return plan_restore([info for info in files if self._store.key(info) not in keys], target=target)
        raise next(iter(self._damaged.values()), reason)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of a file, from `start` on."""

    info: FileInfo
    start: int
    blob: Blob

    @property
    def is_last(self) -> bool:
        return self.start + CHUNK_BYTES >= self.info.size


class _Reader:
    """Reads plans into the output file."""

    def __init__(self, store: LTXStore, file: OutputFile, progress: Progress, parallelism: int) -> None:
        self.assembly = Assembly(file.open())
        self._store = store
        self._file = file
        self._progress = progress
        self._parallelism = parallelism
        self._first: Blob | None = None  # piece of the file that is being read

    async def read(self, plan: Sequence[FileInfo]) -> None:
        """Read what is still to be read of a plan, newest file first, until every page is final."""
        self.assembly.begin(plan)
        unread = [info for info in reversed(plan) if self.assembly.unread(info)]
        with self._progress(sum(info.size for info in unread)) as advance:

            async def consume(piece: _Piece) -> bool:
                advance(len(piece.blob.data))
                return await trio.to_thread.run_sync(self._take, piece)

            await in_order(self._jobs(unread), consume, width=self._parallelism)
        missing = self.assembly.first_missing()
        if missing is not None:
            raise DamagedFile(self._store.key(plan[0]), f"neither it nor a later file has page {missing}")

    def publish(self) -> None:
        """The database is complete: cut it to its size and give it its name."""
        with self._file.reporting():
            self.assembly.finish()
        self._file.publish()

    def _jobs(self, files: Sequence[FileInfo]) -> Iterator[Job[_Piece]]:
        for info in files:
            for start in range(0, max(info.size, 1), CHUNK_BYTES):
                yield partial(self._fetch, info, start)

    async def _fetch(self, info: FileInfo, start: int) -> _Piece:
        return _Piece(info, start, await self._store.get(info, ByteRange(start, start + CHUNK_BYTES)))

    def _take(self, piece: _Piece) -> bool:
        """Put a piece into the database; is there more to be read? Runs in a thread."""
        self._require_whole(piece)
        with self._store.blame(piece.info), self._file.reporting(), memoryview(piece.blob.data) as data:
            if piece.start == 0:
                self.assembly.open_file(piece.info)
            for start in range(0, len(data), FEED_BYTES):
                trio.from_thread.check_cancelled()
                self.assembly.feed(data[start : start + FEED_BYTES])
            if piece.is_last:
                self.assembly.close_file()
        return not self.assembly.is_complete

    def _require_whole(self, piece: _Piece) -> None:
        """The pieces of a file are of one object, and that is the one that was listed."""
        if piece.start == 0 or self._first is None:
            self._first = piece.blob
        self._store.require_same(piece.info, self._first, piece.blob)
        if piece.blob.size != piece.info.size:
            key = self._store.key(piece.info)
            raise FileVanished(f"{key} has {piece.blob.size} bytes, but was listed with {piece.info.size}", key=key)


def _untold(total_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda done: None)
