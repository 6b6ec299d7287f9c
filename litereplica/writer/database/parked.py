"""The record of a parked database: one that is idle, closed, and watched with stat().

A database that has been idle for a while is published, checkpointed and closed; `Parked` records its files. From then
on a check costs two stat(). Every commit changes the size or at least the ctime of the WAL or of the database file;
then the database is opened again, and the new commits are read from the WAL or, if it has been restarted, found by
comparing pages, as after a restart of the process.

No commit is missed:

    parked          `files` were read when their ctimes were older than a clock tick, and *then* everything in the
                    WAL was published: every later commit changes a ctime
    read            a program that only reads may create an empty WAL and delete it: that is no change
    a new process   the checkpoint mark contains the files' identities from when everything in them was published

While it is closed, the WAL can be restarted, and the state directory is not locked, since a lock needs a descriptor.
Another litereplica would be noticed by the directory's token (`StateDirectory.tenancy`), and its files by the epoch of
the lease or by the condition of the next put.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from litereplica.storage.url import same_place
from litereplica.types import TXID
from litereplica.writer.database.published import Published
from litereplica.writer.database.state_directory import CheckpointMark, FileIdentity, read_mark
from litereplica.writer.database.wal_follower import MTIME_GRANULARITY_NS

WRITTEN_FOR_S = 1.0
"""A file that has not changed for so long is taken for written: a copy goes on all the time."""
WRITTEN_WITHIN_S = 60.0
"""Limit for waiting for that."""


@dataclass(frozen=True, slots=True)
class Files:
    """The identities of a database file and its WAL; None: the file does not exist."""

    database: FileIdentity | None
    wal: FileIdentity | None

    def are_certain(self, now_ns: int) -> bool:
        """True if every write after `now_ns` will change an identity."""
        return all(
            abs(now_ns - file.ctime_ns) > MTIME_GRANULARITY_NS for file in (self.database, self.wal) if file is not None
        )

    def differ(self, before: Files) -> bool:
        """True if something may have been committed since `before`, when the database file alone held everything.

        A missing or empty WAL is no sign of a commit then.
        """
        return self.database != before.database or (bool(self.wal and self.wal.size) and self.wal != before.wal)


def look_at(database: str) -> Files:
    """Return the present identities. Opens no file. Raises `OSError`."""
    return Files(_identity(database), _identity(database + "-wal"))


@dataclass(frozen=True, slots=True)
class Parked:
    """A parked database: everything in its `files` is published. `complete`: the database file alone contains it.

    `last` is the newest file of the replica, `token` that of the state directory, and `epoch` the lease's when the
    replica was last read; after a restart of the process they are None, empty and 0. `real` is the path without links,
    empty if the path of the database has none: its WAL is there, and a link that leads elsewhere is a change.
    """

    txid: TXID
    files: Files
    complete: bool
    last: Published | None = None
    token: bytes = b""
    epoch: int = 0
    real: str = ""

    def changed(self, files: Files) -> bool:
        """True if something may have been committed since."""
        return files.differ(self.files) if self.complete else files != self.files


def parked_by_mark(database: Path, url: str) -> Parked | None:
    """Return the record according to the checkpoint mark; None if something may have been committed since.

    Blocks; opens only the mark.
    """
    real = os.path.realpath(database)
    mark = read_mark(Path(real))
    if mark is None or not same_place(mark.url, url):
        return None
    try:
        files = look_at(real)
    except OSError:
        return None
    link = real if real != str(database) else ""
    parked = Parked(mark.txid, Files(mark.database, mark.wal), complete=True, real=link)
    return None if parked.changed(files) else replace(parked, files=files)


def changed(databases: Iterable[tuple[str, Parked]]) -> list[str]:
    """Return the paths of those databases that have changed or are gone. Blocks."""
    return [path for path, parked in databases if _has_changed(path, parked)]


def certain_now(database: Path) -> Files | None:
    """Return the identities if every later write will change them, else None. Blocks."""
    now_ns = time.time_ns()
    files = look_at(str(database))
    return files if files.database is not None and files.are_certain(now_ns) else None


async def until_written(database: Path, stop: trio.Event, limiter: trio.CapacityLimiter) -> None:
    """Wait until nobody has written to a file for a moment: the copy that replaces it may be under way."""
    before = None
    with trio.move_on_after(WRITTEN_WITHIN_S), contextlib.suppress(OSError):
        while not stop.is_set():
            now = await trio.to_thread.run_sync(look_at, str(database), limiter=limiter)
            if now.database is None or now.database == before:
                return
            before = now.database
            await trio.sleep(WRITTEN_FOR_S)


def may_exist(database: Path) -> bool:
    """False if there is certainly no such file: one that cannot be looked at may be there. Blocks."""
    try:
        database.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def quiet_for_s(database: Path) -> float:
    """Seconds since the last write to the database, by the mtimes of its files. Blocks."""
    newest_s = 0.0
    for path in (database, database.with_name(database.name + "-wal")):
        with contextlib.suppress(FileNotFoundError):
            newest_s = max(newest_s, path.stat().st_mtime)
    return max(0.0, time.time() - newest_s)


def mark_of(url: str, txid: TXID, files: Files) -> CheckpointMark:
    """The checkpoint mark of a database whose file alone holds all of `txid`."""
    assert files.database is not None
    return CheckpointMark(url, txid, files.database, files.wal)


def _has_changed(path: str, parked: Parked) -> bool:
    try:
        if parked.real:
            if os.path.realpath(path) != parked.real:
                return True
            path = parked.real
        same = _is_same(path, parked.files.database) and _is_same(path + "-wal", parked.files.wal)
        return not same and parked.changed(look_at(path))
    except OSError:
        return True


def _is_same(path: str, before: FileIdentity | None) -> bool:
    """True if the file still has this identity. Twice as fast as comparing `FileIdentity` records."""
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
