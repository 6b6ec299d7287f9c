"""Databases at which nobody is at work: looked at from outside, and not open.

A database that has been idle for a while is published, checkpointed and closed; what is kept of it is `Parked`. From
then on a look costs two `stat`. Whatever is committed changes the WAL or the database file, their size or at least
their ctime, and the database is opened again; what was committed meanwhile follows from the WAL or, if that does not
reach back, from the pages that differ, as after a restart.

    at rest         `files` were looked at when their ctimes were older than a clock tick, and *then* the WAL had
                    nothing that was not published: all that was committed later shows
    opened again    by anyone, for reading: SQLite may make the WAL anew, empty, and delete it: that is no change
    a new process   the mark in the state directory says what the files were when all of them was published

While it is closed, nothing of ours keeps the WAL from being restarted, and the state directory is not locked, since a
lock needs a descriptor: another writer of ours would be noticed by the directory's token (`StateDirectory.tenancy`),
and what it has published by the lease or by the condition of the next put.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from litereplica.types import TXID
from litereplica.writer.database.published import Published
from litereplica.writer.database.state_directory import CheckpointMark, FileIdentity, read_mark
from litereplica.writer.database.wal_follower import MTIME_GRANULARITY_NS


@dataclass(frozen=True, slots=True)
class Files:
    """A database and its WAL, as seen from outside; None: there is no such file."""

    database: FileIdentity | None
    wal: FileIdentity | None

    def are_certain(self, now_ns: int) -> bool:
        """Can a write that comes after `now_ns` no longer leave them as they are?"""
        return all(
            abs(now_ns - file.ctime_ns) > MTIME_GRANULARITY_NS for file in (self.database, self.wal) if file is not None
        )

    def differ(self, before: Files) -> bool:
        """May anything have been committed since they were `before`? Not if the database is as it was and the WAL is
        gone or empty, provided that nothing was in the WAL alone."""
        return self.database != before.database or (bool(self.wal and self.wal.size) and self.wal != before.wal)


def look_at(database: str) -> Files:
    """Now. Never opens a file. Raises `OSError` when it cannot be told."""
    return Files(_identity(database), _identity(database + "-wal"))


@dataclass(frozen=True, slots=True)
class Parked:
    """A database that was let go: all that its `files` hold is published. `complete`: the database file alone has it.

    `last` is the newest file of the replica, `token` that of the state directory, and `epoch` those of the
    right to publish behind which the replica was looked at; None and 0 after a restart.
    """

    txid: TXID
    files: Files
    complete: bool
    last: Published | None = None
    token: bytes = b""
    epoch: int = 0

    def changed(self, files: Files) -> bool:
        """May anything have been committed since?"""
        return files.differ(self.files) if self.complete else files != self.files


def parked_by_mark(database: Path, url: str) -> Parked | None:
    """What the last run has left, if nothing can have been committed since. Blocks; opens nothing but the mark."""
    mark = read_mark(database)
    if mark is None or mark.url != url:
        return None
    try:
        files = look_at(str(database))
    except OSError:
        return None
    rest = Parked(mark.txid, Files(mark.database, mark.wal), complete=True)
    return None if rest.changed(files) else replace(rest, files=files)


def changed(rests: Iterable[tuple[str, Parked]]) -> list[str]:
    """Those of the databases, by their paths, that are to be opened again or that have gone. Blocks."""
    return [path for path, rest in rests if _has_changed(path, rest)]


def certain_now(database: Path) -> Files | None:
    """The files, if any later write will show. Blocks."""
    now_ns = time.time_ns()
    files = look_at(str(database))
    return files if files.database is not None and files.are_certain(now_ns) else None


def quiet_for_s(database: Path) -> float:
    """For how long nobody has written to the database, by its files' mtimes. Blocks."""
    newest_s = 0.0
    for path in (database, database.with_name(database.name + "-wal")):
        with contextlib.suppress(FileNotFoundError):
            newest_s = max(newest_s, path.stat().st_mtime)
    return max(0.0, time.time() - newest_s)


def mark_of(url: str, txid: TXID, files: Files) -> CheckpointMark:
    """The mark of a complete database."""
    assert files.database is not None
    return CheckpointMark(url, txid, files.database, files.wal)


def _has_changed(path: str, rest: Parked) -> bool:
    try:
        same = _is_same(path, rest.files.database) and _is_same(path + "-wal", rest.files.wal)
        return not same and rest.changed(look_at(path))
    except OSError:
        return True


def _is_same(path: str, before: FileIdentity | None) -> bool:
    """As comparing identities, in half the time."""
    try:
        status = os.stat(path)  # noqa: PTH116 - as below
    except FileNotFoundError:
        return before is None
    return (
        before is not None
        and status.st_ctime_ns == before.ctime_ns
        and status.st_size == before.size
        and status.st_ino == before.inode
    )


def _identity(path: str) -> FileIdentity | None:
    try:
        return FileIdentity.of(os.stat(path))  # noqa: PTH116 - once a second for each of thousands
    except FileNotFoundError:
        return None
