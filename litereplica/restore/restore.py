"""Writing a replica's database to a local file.

`plan.py` decides which files are needed, `sources.py` which parts of them are read, `assembly.py` which pages are
taken, `output_file.py` what happens to the file system. Here they come together, with what happens when the store
changes meanwhile.

A plan and the reading of it are not atomic. When a file vanishes or turns out damaged, another plan is made from a new
listing, for the same TXID if there is one, without the files that failed; pages that are known to be right are not
read again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import trio

from litereplica.errors import DamagedFile, GapError, NotFound, PointNotFound, ReplicaError
from litereplica.history.timeline import find_txid, require_point
from litereplica.ltxstore.plan import plan_restore
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.database_builder import Assembly
from litereplica.restore.integrity_check import IntegrityCheck, require_integrity
from litereplica.restore.output_file import OutputFile
from litereplica.restore.plan_reader import PARALLELISM, FileRead, Progress, SourceReader
from litereplica.types import TXID, FileInfo

__all__ = ["IntegrityCheck", "Progress", "RestorePreview", "RestoreResult", "preview", "restore"]

MAX_PLANS = 8
"""After so many, a replica that still loses files as we read is not one to restore from now."""

REPLAN_DELAY_S = 0.25
"""Before another plan: time for a listing to show what has changed."""


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What was restored: the TXID, the database's size in pages and bytes, and the files of the plan.

    `bytes_read` is what came from the store for it, listings and indexes of large files apart.
    """

    txid: TXID
    page_size: int
    pages: int
    size: int
    files: tuple[FileInfo, ...]
    bytes_read: int


@dataclass(frozen=True, slots=True)
class RestorePreview:
    """What a restore would make, and what it would read for that, oldest file first; without those it does not need."""

    txid: TXID
    page_size: int
    pages: int
    size: int
    reads: tuple[FileRead, ...]

    @property
    def bytes(self) -> int:
        return sum(read.bytes for read in self.reads)


async def restore(
    store: LTXStore,
    output: Path,
    *,
    target: TXID | None = None,
    before_ms: int | None = None,
    force: bool = False,
    integrity_check: IntegrityCheck = IntegrityCheck.NONE,
    progress: Progress | None = None,
    prepare: Callable[[Path, TXID], None] | None = None,
    parallelism: int = PARALLELISM,
) -> RestoreResult:
    """Write a database to the file `output`: that at `target`, or at the newest point before a time, or the newest.

    An existing database, or a sidecar file of one, is replaced only with `force`. `prepare` is called in a thread with
    the whole file under its temporary name, and with its TXID, before it gets its own. On any error, and when
    cancelled, everything is as it was before. Raises `UsageError` for a place that cannot be written to,
    `EnvironmentProblem` for a file system that does not take the file, `NoReplica`, `PointNotFound`, `GapError`,
    `DamagedFile` (also for a database that fails the integrity check), and the errors of storage.
    """
    file = OutputFile(output, force=force)
    await trio.to_thread.run_sync(file.check)
    planner = _Planner(store, target, before_ms)
    plan = await planner.first()
    try:
        assembly = Assembly(file.open())
        reader = SourceReader(store, assembly, file, progress or _untold)
        for attempt in itertools.count(1):
            try:
                await reader.read(plan, parallelism=parallelism)
                _require_complete(store, assembly, plan)
                break
            except (NotFound, DamagedFile) as exc:
                if attempt == MAX_PLANS:
                    raise
                plan = await planner.another(plan, exc)
        await trio.to_thread.run_sync(_finish, assembly, file)
        if integrity_check is not IntegrityCheck.NONE:
            await trio.to_thread.run_sync(require_integrity, file.temporary, integrity_check, store.url)
        if prepare is not None:
            await trio.to_thread.run_sync(prepare, file.temporary, plan[-1].max_txid)
        await trio.to_thread.run_sync(file.publish)
    finally:
        file.discard()
    return RestoreResult(
        plan[-1].max_txid, assembly.page_size, assembly.commit, assembly.size, tuple(plan), reader.bytes_read
    )


async def preview(store: LTXStore, *, target: TXID | None = None, before_ms: int | None = None) -> RestorePreview:
    """What `restore` would do now. Reads small files and the indexes of large ones. Raises as `restore`."""
    plan = await _Planner(store, target, before_ms).first()
    assembly = Assembly(None)
    reader = SourceReader(store, assembly, None, _untold)
    await reader.read(plan, parallelism=PARALLELISM)
    by_end = sorted(reader.reads, key=lambda read: read.info.max_txid)
    return RestorePreview(plan[-1].max_txid, assembly.page_size, assembly.commit, assembly.size, tuple(by_end))


def _require_complete(store: LTXStore, assembly: Assembly, plan: Sequence[FileInfo]) -> None:
    missing = assembly.first_missing()
    if missing is not None:
        raise DamagedFile(store.key(plan[0]), f"neither it nor a later file has page {missing}")


def _finish(assembly: Assembly, file: OutputFile) -> None:
    with file.reporting():
        assembly.finish()


class _Planner:
    """Plans for one restore, and the files that are no good for it."""

    def __init__(self, store: LTXStore, target: TXID | None, before_ms: int | None) -> None:
        self._store = store
        self._target = target
        self._before_ms = before_ms
        self._damaged: dict[str, DamagedFile] = {}
        self._vanished: set[str] = set()

    async def first(self) -> list[FileInfo]:
        """The plan, by one listing of all levels; by another one when the first shows a gap."""
        try:
            return await self._plan(await self._store.list_levels())
        except (GapError, PointNotFound):
            await trio.sleep(REPLAN_DELAY_S)
        files = await self._store.list_levels()
        if self._target is not None:
            require_point(files, self._target)
        return await self._plan(files)

    async def _plan(self, files: Sequence[FileInfo]) -> list[FileInfo]:
        if self._before_ms is None:
            return plan_restore(files, target=self._target)
        return plan_restore(files, target=await find_txid(self._store, files, before_ms=self._before_ms))

    async def another(self, plan: Sequence[FileInfo], reason: NotFound | DamagedFile) -> list[FileInfo]:
        """A plan after `reason` ended the last one: for the same TXID, else, if none was named, for what is meant now.

        Raises `reason` when there is none.

        A newest TXID that only a damaged file has is still the newest: no older database is passed off as the latest.
        """
        if isinstance(reason, DamagedFile):
            self._damaged[reason.key] = reason
        else:
            self._vanished.add(reason.key)
        for _ in range(2):  # one listing may be of a moment in between
            await trio.sleep(REPLAN_DELAY_S)
            replacement = await self._without_failed(plan[-1].max_txid)
            if replacement is not None:
                return replacement
        raise next(iter(self._damaged.values()), reason)

    async def _without_failed(self, txid: TXID) -> list[FileInfo] | None:
        files = await self._store.list_levels()
        targets = [txid]
        if self._before_ms is not None:
            with contextlib.suppress(ReplicaError):
                targets.append(await find_txid(self._store, files, before_ms=self._before_ms))
        elif self._target is None:
            targets += [max(info.max_txid for info in files)] if files else []
        avoided = [self._damaged.keys() | self._vanished, self._damaged.keys()]
        for target, keys in itertools.product(targets, avoided):
            with contextlib.suppress(ReplicaError):
                return plan_restore([info for info in files if self._store.key(info) not in keys], target=target)
        return None


def _untold(total_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda done: None)
