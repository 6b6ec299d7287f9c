"""A restored database that keeps following its replica, as `litereplica restore -f` keeps it.

The file is in rollback-journal mode, whatever mode the primary is in, and every step is one transaction
(`rollback_journal.py`): clients may read it meanwhile, and a crash leaves it at the old or at the new TXID. Clients
must not write to it.

`<file>-txid` holds the TXID in 16 hexadecimal digits, as Litestream's follow mode writes it, so that following
continues where Litestream stopped. It may be one step behind the file. The file's own TXID is in its header: the change
counter is the TXID's low 32 bits. So the header differs from the primary's in journal mode, change counter, size (valid
only with that counter), and the version of the library that wrote it. If that version is another one, another program
has written to the file. It is refused then, because the replica's transactions no longer fit its pages.

Files are applied only if they are proved to continue the history that the file has: the level 0 file of its TXID is
still that of then, or it was pruned and they are of its lineage (`provenance.py`). Otherwise the whole newest database
is read anew, as one step, since the replica may have been made anew from another database.

New level 0 files are applied as they appear. If they begin after a gap, files of any level bridge it; those that begin
at TXID 1, which are whole databases, only if no others do. The pages of a step are collected in an unnamed file and
checked before the database is changed.
"""

from __future__ import annotations

import logging
import os
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from litereplica.errors import (
    DamagedFile,
    LTXError,
    NotFound,
    PageSizeChanged,
    PointNotFound,
    StorageError,
    UsageError,
)
from litereplica.foreign_directory import read_note
from litereplica.format.names import format_txid, parse_txid
from litereplica.format.sqlite import HEADER_SIZE, DatabaseHeader, page_offset, with_journal_mode
from litereplica.ltxstore.plan import plan_newest, plan_steps
from litereplica.ltxstore.progress import no_progress
from litereplica.ltxstore.replan import FailedFiles, Listing, find_point
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.database_builder import Assembly
from litereplica.restore.output_file import OutputFile
from litereplica.restore.plan_reader import PARALLELISM, SourceReader
from litereplica.restore.provenance import Provenance, provenance_of, read_provenance, write_provenance
from litereplica.restore.rollback_journal import DatabaseBusy, change_database, exclusive_lock, roll_back
from litereplica.storage.url import same_place
from litereplica.types import TXID, FileInfo, Pgno

log = logging.getLogger(__name__)

TXID_SUFFIX = "-txid"
POLL_INTERVAL_S = 1.0
"""Litestream's default."""

_JOURNAL_MODE = slice(18, 20)
_COUNTER = slice(24, 28)
_SIZE_IN_PAGES = slice(28, 32)
_VALID_FOR = slice(92, 96)
_WRITTEN_BY = slice(96, 100)
_MARK = b"lite"
"""In place of the SQLite version that wrote last, which nothing reads: marks that the change counter is a TXID."""
_ROLLBACK_MODE = b"\1\1"
_LOW, _HALF = 0xFFFFFFFF, 0x80000000


def prepare(path: Path, temporary: Path, txid: TXID) -> None:
    """Prepare a database that was restored to `txid` under a temporary name for following as `path`. Blocks."""
    with temporary.open("r+b") as file:
        page1 = file.read(HEADER_SIZE)
        pages = temporary.stat().st_size // DatabaseHeader.decode(page1).page_size
        file.seek(0)
        file.write(_page1(page1, txid, pages))
    write_position(path, txid)


def position_of(path: Path) -> TXID:
    """Return the TXID of a following database, after SQLite has rolled back a step that a crash interrupted. Blocks.

    Raises `UsageError` if neither litereplica nor Litestream made the file, or another program has written to it.
    """
    place = Path(f"{path}{TXID_SUFFIX}")
    try:
        stored = parse_txid(read_note(place).decode().strip())
    except (OSError, ValueError, LTXError):
        hint = "name another file, or add --force to restore it anew"
        raise UsageError(f"{path} exists, but no {place.name} that says which TXID it is", hint=hint) from None
    roll_back(path)
    with path.open("rb") as file:
        header = file.read(HEADER_SIZE)
    _require_untouched(path, header)
    if header[_WRITTEN_BY] != _MARK or header[_COUNTER] != header[_VALID_FOR]:
        return stored  # Litestream's
    return stored + (int.from_bytes(header[_COUNTER]) - stored + _HALF & _LOW) - _HALF


def write_position(path: Path, txid: TXID) -> None:
    """Write `<file>-txid` durably and atomically. Blocks."""
    place = OutputFile(Path(f"{path}{TXID_SUFFIX}"), force=True, follow=False)
    try:
        os.write(place.open(), f"{format_txid(txid)}\n".encode())
        place.publish()
    finally:
        place.discard()


@dataclass(frozen=True, slots=True)
class Applied:
    """A step from one TXID to another. `files` counts the files that were applied."""

    before: TXID
    after: TXID
    files: int


class Follower:
    """Keeps the database file `path` at a replica's newest TXID. `txid` is its current one."""

    def __init__(self, store: LTXStore, path: Path, txid: TXID) -> None:
        self.txid = txid
        self._store = store
        self._path = path
        self._failed = FailedFiles(store)
        self._avoided: set[str] = set()  # damaged files that were reported
        self._origin = read_provenance(path)

    async def require_history(self) -> None:
        """Raise `PointNotFound` if the replica is behind the file, so that it cannot be the file's replica."""

        async def newest(listing: Listing) -> TXID:
            txid = max((info.max_txid for info in listing.listed), default=0)
            if txid < self.txid:
                raise PointNotFound(
                    f"{self._path} is at TXID {format_txid(self.txid)}, the replica only at {format_txid(txid)}",
                    hint="check the URL, or add --force to restore it anew",
                )
            return txid

        await find_point(self._store, newest)

    async def run(self, interval_s: float, applied: Callable[[Applied], Awaitable[None]]) -> None:
        """Follow until cancelled. Errors of the store are logged, and the next interval tries again.

        Raises `PageSizeChanged`, `EnvironmentProblem`, and `UsageError` if another program has written to the file.
        """
        while True:
            try:
                step = await self.advance()
                if step is not None:
                    await applied(step)
            except DamagedFile as exc:
                self._failed.note(exc)
                if exc.key in self._failed.damaged.keys() - self._avoided:
                    self._avoided.add(exc.key)
                    log.error("%s: looking for other files that hold its transactions", exc)
            except (StorageError, DatabaseBusy) as exc:
                log.warning("%s: trying again in %g s", exc.message, interval_s)
            await trio.sleep(interval_s)

    async def advance(self) -> Applied | None:
        """Advance to the newest TXID that files lead to. Returns None if there is nothing new."""
        steps = await self._steps()
        if not steps:
            return None
        before = self.txid
        if not await self._apply_steps(steps):
            log.warning(
                "%s may have been made anew since TXID %s: reading the whole database", self._store.url,
                format_txid(before),
            )  # fmt: skip
            steps = plan_newest(self._failed.sound(await self._store.list_levels()))
            await self._apply_steps(steps)
        return Applied(before, self.txid, len(steps))

    async def _apply_steps(self, steps: Sequence[FileInfo]) -> bool:
        """Apply files. Returns False, and applies none, if they are not proved to continue the file's history."""
        with await trio.to_thread.run_sync(lambda: tempfile.TemporaryFile(dir=self._path.parent)) as staging:
            staged = await self._stage(steps, staging.fileno())
            if steps[0].min_txid > 1 and not await self._continues(staged.node_id(steps[0])):
                return False
            origin = await provenance_of(self._store, steps[-1].max_txid, staged.node_id(steps[-1]))
            await trio.to_thread.run_sync(self._apply, origin, staged, staging.fileno())
        self.txid, self._origin = origin.txid, origin
        return True

    async def _continues(self, node_id: int) -> bool:
        """Return whether a file with this node id, which begins after our TXID, continues our history."""
        origin = self._origin
        if origin is None or origin.txid != self.txid or not same_place(origin.url, self._store.url):
            return False
        is_one_lineage = origin.lineage != 0 and origin.lineage == node_id
        if origin.checksum == 0:
            return is_one_lineage
        try:
            return await self._store.read_checksum(FileInfo(0, self.txid, self.txid, 0)) == origin.checksum
        except (NotFound, DamagedFile):
            return is_one_lineage

    async def _steps(self) -> list[FileInfo]:
        level0 = await self._store.list_level(0, after=self.txid)
        steps = plan_steps(self._failed.sound(level0), after=self.txid)
        newest = max((info.max_txid for info in level0), default=self.txid)
        if not self._failed.damaged and (steps[-1].max_txid if steps else self.txid) == newest:
            return steps
        files = self._failed.sound(await self._store.list_levels(after=self.txid))
        partial = plan_steps([info for info in files if info.min_txid > 1], after=self.txid)
        whole = plan_steps(files, after=self.txid)
        best = max(partial, steps, whole, key=lambda each: each[-1].max_txid if each else 0)  # the first of equals
        if newest > self.txid and not best:
            log.warning("the replica has files up to TXID %s, none of which leads on", format_txid(newest))
            self._failed.doubt()
        return best

    async def _stage(self, steps: Sequence[FileInfo], fd: int) -> Assembly:
        """Return the pages that the steps change, checked and at their offsets in the file `fd`."""
        size = (await trio.to_thread.run_sync(self._path.stat)).st_size
        output = OutputFile(self._path, force=True)
        staged = Assembly(lambda: fd, base_bytes=size)
        reader = SourceReader(self._store, staged, output, no_progress)
        await reader.read(steps, parallelism=PARALLELISM)
        return staged

    def _apply(self, origin: Provenance, staged: Assembly, staging: int) -> None:
        """One transaction on the database, then its position and its provenance. In a thread."""
        txid = origin.txid
        roll_back(self._path)  # a step that failed midway
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with OutputFile(self._path, force=True).reporting(), exclusive_lock(self._path, fd):
                self._change(fd, txid, staged, staging)
        finally:
            os.close(fd)
        write_position(self._path, txid)
        write_provenance(self._path, origin)

    def _change(self, fd: int, txid: TXID, staged: Assembly, staging: int) -> None:
        page1 = os.pread(fd, HEADER_SIZE, 0)
        _require_untouched(self._path, page1)
        page_size = DatabaseHeader.decode(page1).page_size
        if staged.page_size != page_size:
            raise PageSizeChanged(
                f"the database has pages of {staged.page_size} bytes at TXID {format_txid(txid)}, not of {page_size}",
                before=page_size,
                after=staged.page_size,
            )
        written = staged.final_pgnos()

        def pages() -> Iterator[tuple[Pgno, bytes]]:
            source = staging if written[:1] == [1] else fd
            yield 1, _page1(os.pread(source, page_size, 0), txid, staged.commit)
            for pgno in written:
                if pgno > 1:
                    yield pgno, os.pread(staging, page_size, page_offset(pgno, page_size))

        change_database(
            self._path,
            fd,
            page_size=page_size,
            old_pages=os.fstat(fd).st_size // page_size,
            new_pages=staged.commit,
            pages=pages(),
            written=written if written[:1] == [1] else [1, *written],
        )


def _require_untouched(path: Path, page1: bytes) -> None:
    """Raise `UsageError` if SQLite has written to the file, which leaves its version in the header.

    A file made by Litestream has the primary's version. But it is in WAL mode, or, where Litestream sets rollback
    mode, its change counter is a random number.
    """
    is_primarys = page1[_JOURNAL_MODE] != _ROLLBACK_MODE or page1[_COUNTER] != page1[_VALID_FOR]
    if page1[_WRITTEN_BY] != _MARK and not is_primarys:
        raise UsageError(f"{path} was written to by another program", hint="add --force to restore it anew")


def _page1(page1: bytes, txid: TXID, pages: int) -> bytes:
    """Return page 1, or its beginning, as the file has it at a TXID."""
    data = bytearray(with_journal_mode(page1, wal=False))
    data[_COUNTER] = data[_VALID_FOR] = struct.pack(">I", txid & _LOW)
    data[_SIZE_IN_PAGES] = struct.pack(">I", pages)
    data[_WRITTEN_BY] = _MARK
    return bytes(data)
