"""Writing a replica's database to a local file.

    plan_restore ──► SourceReader ──► Assembly ──► OutputFile
    (plan.py)        (plan_reader.py) (database_builder.py) (output_file.py)

The plan says which files are needed, the reader which parts of them are read, the assembly which pages are taken, and
the output file what happens to the file system. When a file vanishes or is damaged, another plan is made from a new
listing (`replan.py`), for the same TXID if there is one; pages that are known to be right are not read again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from litereplica.errors import DamagedFile, ReplicaError, SQLiteFormatError
from litereplica.file_access import FileAccess
from litereplica.format.sqlite import HEADER_SIZE, DatabaseHeader
from litereplica.history.timeline import find_txid, require_point
from litereplica.ltxstore.plan import plan_restore
from litereplica.ltxstore.progress import Progress, no_progress
from litereplica.ltxstore.replan import Listing, find_point, plan_and_read
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.database_builder import Assembly, PageSums
from litereplica.restore.integrity_check import IntegrityCheck, require_integrity
from litereplica.restore.output_file import OutputFile
from litereplica.restore.plan_reader import PARALLELISM, FileRead, SourceReader
from litereplica.restore.provenance import provenance_of, write_provenance
from litereplica.types import TXID, FileInfo


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What was restored: the TXID, the database's size in pages and bytes, and the files of the plan.

    `bytes_read` are the bytes read from the store, without listings and indexes of large files.
    """

    txid: TXID
    page_size: int
    pages: int
    size: int
    files: tuple[FileInfo, ...]
    bytes_read: int


@dataclass(frozen=True, slots=True)
class RestorePreview:
    """What a restore would make, and the files that it would read for that, oldest first."""

    txid: TXID
    page_size: int
    pages: int
    size: int
    reads: tuple[FileRead, ...]

    @property
    def bytes(self) -> int:
        """Bytes that would be read from the store."""
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
    access: FileAccess | None = None,
) -> RestoreResult:
    """Write a database to the file `output`: that at `target`, or at the newest point before a time, or the newest.

    An existing database, or a sidecar file of one, is replaced only with `force`. `access` is as for `OutputFile`.
    `prepare` is called in a thread with the whole file under its temporary name, and with its TXID, before the file is
    renamed to `output`. On any error, and when cancelled, nothing has changed.

    Raises:
        UsageError: `output` exists or cannot be written to.
        EnvironmentProblem: the file system does not take the file.
        NoReplica, PointNotFound, GapError: the replica cannot be restored to this point.
        DamagedFile: no sound files lead there, or the database fails the integrity check.
        StorageError: from the store.
    """
    file = OutputFile(output, force=force, access=access)
    await trio.to_thread.run_sync(file.check)
    planner = _Planner(store, target, before_ms)
    assembly = Assembly(file.open)
    reader = SourceReader(store, assembly, file, progress or no_progress)
    try:
        plan = await plan_and_read(store, planner.choose, _all_pages(store, assembly, reader, parallelism))
        await trio.to_thread.run_sync(_finish, assembly, file)
        if integrity_check is not IntegrityCheck.NONE:
            await trio.to_thread.run_sync(require_integrity, file.temporary, integrity_check, store.url)
        origin = await provenance_of(store, plan[-1].max_txid, assembly.node_id(plan[-1]), checked=True)
        await trio.to_thread.run_sync(partial(write_provenance, file.temporary, origin, is_exact=True))
        if prepare is not None:
            await trio.to_thread.run_sync(prepare, file.temporary, plan[-1].max_txid)
        await trio.to_thread.run_sync(file.publish)
    finally:
        file.discard()
    return RestoreResult(
        plan[-1].max_txid, assembly.page_size, assembly.commit, assembly.size, tuple(plan), reader.bytes_read
    )


async def preview(store: LTXStore, *, target: TXID | None = None, before_ms: int | None = None) -> RestorePreview:
    """Return what `restore` would do now. Reads small files and the indexes of large ones. Raises as `restore`."""
    plan = await find_point(store, _Planner(store, target, before_ms).choose)
    assembly = Assembly(None)
    reader = SourceReader(store, assembly, None, no_progress, is_dry=True)
    await reader.read(plan, parallelism=PARALLELISM)
    by_end = sorted(reader.reads, key=lambda read: read.info.max_txid)
    return RestorePreview(plan[-1].max_txid, assembly.page_size, assembly.commit, assembly.size, tuple(by_end))


async def page_checksums(
    store: LTXStore, checksum: Callable[[bytes], int], *, target: TXID, progress: Progress | None = None
) -> PageSums:
    """Return the checksum of each page of the database at `target`. Writes nothing. Raises as `restore`."""
    sums = PageSums(checksum)
    reader = SourceReader(store, sums, None, progress or no_progress)
    read = _all_pages(store, sums, reader, PARALLELISM)
    await plan_and_read(store, _Planner(store, target, None).choose, read)
    return sums


def _all_pages(
    store: LTXStore, assembly: Assembly, reader: SourceReader, parallelism: int
) -> Callable[[list[FileInfo]], Awaitable[list[FileInfo]]]:
    """Return what reads a plan into `assembly` and returns it. It raises `DamagedFile` if a page is missing then."""

    async def read(plan: list[FileInfo]) -> list[FileInfo]:
        await reader.read(plan, parallelism=parallelism)
        if not assembly.is_complete:
            missing = assembly.first_missing()
            raise DamagedFile(store.key(plan[0]), f"page {missing} is neither in this file nor in a later one")
        return plan

    return read


def require_database(temporary: Path, txid: TXID) -> None:
    """Raise `DamagedFile` unless the file begins as a SQLite database does: for `prepare` of `restore`. Blocks.

    A bucket may hold pages of anything, which must not become a file that another program believes.
    """
    with temporary.open("rb") as file:
        try:
            DatabaseHeader.decode(file.read(HEADER_SIZE))
        except SQLiteFormatError as exc:
            raise DamagedFile(f"TXID {txid:016x}", exc.message, hint="restore another point") from exc


def _finish(assembly: Assembly, file: OutputFile) -> None:
    with file.reporting():
        assembly.finish()


class _Planner:
    """Chooses the files of one restore. `before_ms` and `target` are those of `restore`."""

    def __init__(self, store: LTXStore, target: TXID | None, before_ms: int | None) -> None:
        self._store = store
        self._target = target
        self._before_ms = before_ms
        self._txid: TXID | None = None  # that of the last plan

    async def choose(self, listing: Listing) -> list[FileInfo]:
        """Return a plan for the TXID of the last plan, else for the one that is asked for. Raises `ReplicaError`.

        The newest TXID is that of all listed files: if only a damaged file has it, no older database takes its place.
        """
        if self._txid is not None:
            for files in (listing.present, listing.sound):
                with contextlib.suppress(ReplicaError):
                    return plan_restore(files, target=self._txid)
        target = self._target
        if target is not None and listing.in_order:
            require_point(listing.sound, target)
        if self._before_ms is not None:
            target = await find_txid(self._store, listing.listed, before_ms=self._before_ms)
        elif target is None:
            target = max((info.max_txid for info in listing.listed), default=None)
        plan = plan_restore(listing.sound, target=target)
        self._txid = plan[-1].max_txid
        return plan
