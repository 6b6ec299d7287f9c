"""Restores backups of Litestream 0.3, `generations/…`: a snapshot of the database, and the WAL files after it.

    find_backup ──► Backup.plan ──► restore_backup
                    (which files)    (each piece: LZ4 ──► one WAL file on disk ──► its committed pages ──► OutputFile)
                    (wal_files.py)

As in Litestream 0.5, the newest snapshot of all generations is chosen (of those not after the time), and the WAL pieces
of its generation (not after the time). A piece that is missing or not contiguous is an error. So are frames of a WAL
file that are not valid, if other WAL files follow: those would be applied to another database than they belong to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import lz4.frame
import trio

from litereplica.errors import AccessDenied, BucketNotFound, DamagedFile, NotFound, PointNotFound
from litereplica.file_access import FileAccess
from litereplica.format.generations import PREFIX, parse_key
from litereplica.ltxstore.progress import Advance, Progress, no_progress
from litereplica.restore.integrity_check import IntegrityCheck, require_integrity
from litereplica.restore.output_file import OutputFile
from litereplica.restore.wal_files import HINT, DatabaseFromWAL
from litereplica.storage.base import ByteRange, Storage
from litereplica.times import format_time

log = logging.getLogger(__name__)

PIECE_BYTES = 4 << 20
"""Bytes of an object that are read and decompressed at a time."""


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A file of a backup. `offset` is None for a snapshot; `modified_ms` is when it was written."""

    key: str
    generation: str
    index: int
    offset: int | None
    size: int
    modified_ms: int


@dataclass(frozen=True, slots=True)
class Backup:
    """The files of a backup: all snapshots, by time, and the pieces of WAL files, by index and offset."""

    snapshots: tuple[BackupFile, ...]
    pieces: tuple[BackupFile, ...]

    @property
    def newest_ms(self) -> int:
        """When the newest file was written."""
        return max(file.modified_ms for file in (*self.snapshots, *self.pieces))

    def plan(self, *, until_ms: int | None = None) -> list[BackupFile]:
        """Return the files of the newest state, or of the newest one not after a time: a snapshot, then WAL pieces.

        Raises:
            PointNotFound: there is no snapshot, or none is old enough.
            DamagedFile: pieces are missing.
        """
        snapshots = [file for file in self.snapshots if until_ms is None or file.modified_ms <= until_ms]
        if not snapshots:
            oldest = f"; its first one is of {format_time(self.snapshots[0].modified_ms)}" if self.snapshots else ""
            what = f"the backup by Litestream 0.3 has no snapshot before that time{oldest}"
            raise PointNotFound(what, hint="give a later time" if self.snapshots else "restore another backup")
        snapshot = snapshots[-1]
        pieces = [
            piece
            for piece in self.pieces
            if piece.generation == snapshot.generation
            and piece.index >= snapshot.index
            and (until_ms is None or piece.modified_ms <= until_ms)
        ]
        _require_indexes(snapshot, pieces)
        return [snapshot, *pieces]


@dataclass(frozen=True, slots=True)
class BackupResult:
    """What was restored: the generation, the last WAL file, the database's size, and the files that were read."""

    generation: str
    index: int
    page_size: int
    pages: int
    size: int
    files: tuple[BackupFile, ...]
    bytes_read: int


async def find_backup(storage: Storage) -> Backup | None:
    """Return the backup by Litestream 0.3 at the root of a store; None if there is none. Makes one listing."""
    try:
        found = await storage.list(PREFIX)
    except (AccessDenied, BucketNotFound, NotFound):
        return None
    files = []
    for item in found:
        name = parse_key(item.key)
        if name is not None:
            files.append(BackupFile(item.key, name.generation, name.index, name.offset, item.size, item.modified_ms))
    snapshots = sorted((file for file in files if file.offset is None), key=lambda file: (file.modified_ms, file.index))
    pieces = sorted(
        (file for file in files if file.offset is not None), key=lambda file: (file.index, file.offset or 0)
    )
    return Backup(tuple(snapshots), tuple(pieces)) if files else None


async def restore_backup(
    storage: Storage,
    backup: Backup,
    output: Path,
    *,
    until_ms: int | None = None,
    force: bool = False,
    integrity_check: IntegrityCheck = IntegrityCheck.NONE,
    progress: Progress | None = None,
    access: FileAccess | None = None,
) -> BackupResult:
    """Write the database of a backup to the file `output`, as `restore.restore` does. On any error nothing has changed.

    Raises:
        UsageError, EnvironmentProblem: as `restore`.
        PointNotFound: no state is old enough.
        DamagedFile: a file is damaged or missing, or the database fails the integrity check.
        StorageError: from the store.
    """
    plan = backup.plan(until_ms=until_ms)
    total = sum(each.size for each in plan)
    snapshot, *pieces = plan
    file = OutputFile(output, force=force, access=access)
    await trio.to_thread.run_sync(file.check)
    builder = DatabaseFromWAL()
    try:
        await trio.to_thread.run_sync(lambda: builder.begin(file.open()))
        with file.reporting(), (progress or no_progress)(total) as done:
            await _decompress(storage, snapshot, builder.add_to_database, done)
            files = [list(group) for _, group in groupby(pieces, key=lambda piece: piece.index)]
            for each in files:
                await _apply(storage, each, builder, done, is_last=each is files[-1])
            await trio.to_thread.run_sync(builder.finish, snapshot.key)
        if integrity_check is not IntegrityCheck.NONE:
            await trio.to_thread.run_sync(require_integrity, file.temporary, integrity_check, storage.url)
        await trio.to_thread.run_sync(file.publish)
    finally:
        builder.close()
        file.discard()
    pages = builder.size // builder.page_size
    return BackupResult(
        snapshot.generation, plan[-1].index, builder.page_size, pages, builder.size, tuple(plan), bytes_read=total
    )


def _require_indexes(snapshot: BackupFile, pieces: Sequence[BackupFile]) -> None:
    """Raise `DamagedFile` unless the WAL files follow each other, from that of the snapshot on."""
    expected = snapshot.index
    for piece in pieces:
        if piece.index > expected or (piece.index == expected and piece.offset != 0 and piece is pieces[0]):
            what = f"WAL file {expected:08x} of this generation, or its beginning, is missing"
            raise DamagedFile(piece.key, what, hint=HINT)
        expected = piece.index + 1 if piece.offset == 0 else expected


async def _apply(
    storage: Storage, pieces: Sequence[BackupFile], builder: DatabaseFromWAL, done: Advance, *, is_last: bool
) -> None:
    """Apply one WAL file."""
    builder.begin_wal()
    for piece in pieces:
        if piece.offset != builder.wal_size:
            what = f"the WAL file before it has {builder.wal_size} bytes, it begins at {piece.offset}"
            raise DamagedFile(piece.key, what, hint=HINT)
        await _decompress(storage, piece, builder.add_to_wal, done)
    ignored = await trio.to_thread.run_sync(builder.apply_wal, pieces[0].key)
    if ignored and not is_last:
        raise DamagedFile(pieces[-1].key, f"the last {ignored} bytes of this WAL file are not valid", hint=HINT)
    if ignored:
        log.warning("%s: the last %d bytes of the WAL are not valid, and are left out", pieces[-1].key, ignored)


async def _decompress(storage: Storage, file: BackupFile, write: Callable[[bytes], None], done: Advance) -> None:
    """Pass the content of a file to `write`, in a thread. Raises `DamagedFile` unless it is one whole LZ4 frame."""
    decompressor = lz4.frame.LZ4FrameDecompressor()

    def decompress(data: bytes) -> None:
        try:
            write(decompressor.decompress(data, max_length=PIECE_BYTES))
            while not decompressor.eof and not decompressor.needs_input:
                write(decompressor.decompress(b"", max_length=PIECE_BYTES))
        except (RuntimeError, ValueError, EOFError, MemoryError) as exc:
            raise DamagedFile(file.key, "the file is not a valid LZ4 frame", hint=HINT) from exc

    position, etag = 0, ""
    while not decompressor.eof:
        blob = await storage.get(file.key, ByteRange(position, position + PIECE_BYTES))
        if position and blob.etag != etag:
            raise DamagedFile(file.key, "the file was replaced while it was read", hint="try again")
        if not blob.data:
            raise DamagedFile(file.key, "the file ends before its LZ4 frame does", hint=HINT)
        position, etag = position + len(blob.data), blob.etag
        await trio.to_thread.run_sync(decompress, blob.data)
        done(len(blob.data))
    if position < blob.size or decompressor.unused_data:
        raise DamagedFile(file.key, "there is something after its LZ4 frame", hint=HINT)
