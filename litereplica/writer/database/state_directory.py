"""The state directory beside a database: `.<file>-litereplica/`.

    lock             held by flock(), so that one process of ours replicates a database; holds the token of its tenancy
    spool-*          what a file below is replaced with, while it is written
    checkpoint.json  the checkpoint mark
    pages.sums       checksums of the replica's pages (`page_checksums`)
    writer.json      identity of this writer for the lease
    lineage.json     the node id of the files that this writer publishes

None of it is needed for correctness: the position and the replica's pages can be read from the store, and a writer
that does not know its own lease waits until it has expired.

A directory whose databases are replicated has a state directory too, `.litereplica/`, with a lock and an identity
only. It stays locked while the directory is replicated, also while none of its databases is open.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from litereplica.errors import AlreadyReplicated, EnvironmentProblem
from litereplica.foreign_directory import open_own_directory, open_regular, read_note
from litereplica.ltxstore.spooled_file import SpooledFile
from litereplica.storage.url import same_place
from litereplica.types import TXID

_LOCK = "lock"
_MARK = "checkpoint.json"
_WRITER = "writer.json"
_LINEAGE = "lineage.json"
_PAGE_SUMS = "pages.sums"
_SPOOL_PREFIX = "spool-"
_TOKEN_SIZE = 16
_WRITER_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells that a file has not been written to. `ctime_ns` since the epoch: it cannot be set."""

    inode: int
    size: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        return cls(status.st_ino, status.st_size, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class CheckpointMark:
    """The database file was this when all that it held, and nothing else, was this TXID of this replica.

    While it is still this file, no checkpoint has moved anything since: what was committed since is in the WAL.
    `wal` is the WAL at a time when nothing was committed since, if there was one: while it is still that, too, or has
    gone, nothing is.
    """

    url: str
    txid: TXID
    database: FileIdentity
    wal: FileIdentity | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Lineage:
    """The node ids by which a writer knows the files at `url` that it published, or continued with proof.

    `current` is what it writes now, `previous` what the newest file had when that began (0: nothing that is known).
    """

    url: str
    current: int
    previous: int

    def has(self, node_id: int) -> bool:
        """True if a file with this node id is one of ours."""
        return node_id != 0 and node_id in (self.current, self.previous)


def state_path(database: Path) -> Path:
    """The state directory of a database."""
    return database.with_name(f".{database.name}-litereplica")


def read_mark(database: Path) -> CheckpointMark | None:
    """The mark of the last checkpoint, if there is a readable one. The directory need not be locked.

    It need not be removed: it speaks of one TXID and one state of the file, and says nothing about any other.
    """
    try:
        fields = json.loads(_read(state_path(database), _MARK, owner=database.stat().st_uid))
        wal = fields.get("wal")
        return CheckpointMark(
            str(fields["url"]),
            int(fields["txid"]),
            FileIdentity(**fields["database"]),
            FileIdentity(**wal) if wal is not None else None,
        )
    except (EnvironmentProblem, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def reset(database: Path, *, dry_run: bool) -> list[Path]:
    """Remove the local state of a database, except for its identity, by which its writer knows its own files.

    Returns the files that are removed, or would be with `dry_run`. Blocks. Raises `AlreadyReplicated`,
    `EnvironmentProblem`.
    """
    state = StateDirectory(database)
    if not state.path.exists():
        return []
    with state:
        return state.reset(dry_run=dry_run)


def _read(directory: Path, name: str, *, owner: int) -> bytes:
    """Return a note in a directory that need not be locked."""
    fd = open_own_directory(directory, owner=owner)
    try:
        return read_note(name, dir_fd=fd)
    finally:
        os.close(fd)


class LockedDirectory:
    """A directory of ours, locked while it is open; `subject` is what is replicated. Use as a context manager."""

    def __init__(self, path: Path, subject: Path) -> None:
        self.path = path
        self._subject = subject
        self._fd = self._lock_fd = -1

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            self._fd = open_own_directory(self.path, owner=self._owner())
            self._lock_fd = open_regular(_LOCK, os.O_RDWR | os.O_CREAT, dir_fd=self._fd)
        except OSError as exc:
            if self._fd >= 0:
                os.close(self._fd)
            raise EnvironmentProblem(
                f"cannot write to {self.path}: {exc.strerror}",
                hint=f"run as the user that owns the {'directory' if self._subject.is_dir() else 'database'}",
            ) from exc
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise AlreadyReplicated(
                f"another process replicates {self._subject}", hint="stop it first, or leave it to it"
            ) from None
        for name in os.listdir(self._fd):  # noqa: PTH208 - a descriptor
            if name.startswith(_SPOOL_PREFIX):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _owner(self) -> int:
        """The user whose the database is; this one, who will restore it, while there is none."""
        try:
            return self._subject.stat().st_uid
        except FileNotFoundError:
            return os.geteuid()

    def _close(self) -> None:
        os.close(self._lock_fd)
        os.close(self._fd)

    def writer_id(self) -> str:
        """What tells the writer of this directory from all others, now and after a restart.

        A copy of the directory, beside a copy of the database, is another writer's: it has another inode.
        """
        with contextlib.suppress(TypeError, KeyError):
            noted = self._read_own(_WRITER)["id"]
            if _WRITER_ID.fullmatch(noted):
                return str(noted)
        writer_id = secrets.token_hex(16)
        self._replace_own(_WRITER, {"id": writer_id})
        return writer_id

    def begin_tenancy(self) -> bytes:
        """Write a random token and return it. While the token is there, no other process has locked the directory."""
        token = secrets.token_bytes(_TOKEN_SIZE)
        os.pwrite(self._lock_fd, token, 0)
        return token

    def tenancy(self) -> bytes:
        """The token of the process that holds the lock, or held it last."""
        return os.pread(self._lock_fd, _TOKEN_SIZE, 0)

    def _read_own(self, name: str) -> dict[str, Any]:
        """Return the fields of a file that `_replace_own` wrote; none if it was copied here with the directory."""
        try:
            fields: dict[str, Any] = json.loads(read_note(name, dir_fd=self._fd))
            return fields if fields["inode"] == os.fstat(self._fd).st_ino else {}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}

    def _replace_own(self, name: str, fields: dict[str, Any]) -> None:
        """Replace a file that counts in this directory only, not in a copy of it."""
        self._replace(name, {**fields, "inode": os.fstat(self._fd).st_ino})

    def _replace(self, name: str, fields: dict[str, Any]) -> None:
        temporary = f"{_SPOOL_PREFIX}{name}"
        self._write_durably(temporary, json.dumps(fields).encode())
        os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _write_durably(self, name: str, data: bytes) -> None:
        with os.fdopen(open_regular(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=self._fd), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


class StateDirectory(LockedDirectory):
    """The directory of one database."""

    def __init__(self, database: Path) -> None:
        super().__init__(state_path(database), database)

    @property
    def page_checksums(self) -> Path:
        """The file of `PageChecksums`."""
        return self.path / _PAGE_SUMS

    @property
    def descriptor(self) -> int:
        """The descriptor of the directory, while it is locked."""
        return self._fd

    def spool(self) -> SpooledFile:
        """Returns an empty LTX file, which is on the disk of this directory if it is large."""
        return SpooledFile(self.path)

    def lineage(self, url: str) -> Lineage | None:
        """Returns what this writer knows of its files at `url`; None if it has published none. Blocks.

        A copy of the directory, beside a copy of the database, knows nothing: it is another writer's.
        """
        with contextlib.suppress(ValueError, TypeError, KeyError):
            fields = self._read_own(_LINEAGE)
            if same_place(fields["url"], url):
                return Lineage(url, int(fields["current"], 16), int(fields["previous"], 16))
        return None

    def begin_lineage(self, url: str, *, previous: int) -> Lineage:
        """Draws a new node id, and notes it with the one that the newest file has. Blocks."""
        lineage = Lineage(url, secrets.randbits(63) + 1, previous)
        fields = {"url": url, "current": f"{lineage.current:016x}", "previous": f"{previous:016x}"}
        self._replace_own(_LINEAGE, fields)
        return lineage

    def reset(self, *, dry_run: bool) -> list[Path]:
        """Remove all files but those of the identity; returns them. With `dry_run` nothing is removed."""
        names = sorted(set(os.listdir(self._fd)) - {_LOCK, _WRITER, _LINEAGE})  # noqa: PTH208 - a descriptor
        for name in names if not dry_run else ():
            os.unlink(name, dir_fd=self._fd)
        return [self.path / name for name in names]

    def write_mark(self, mark: CheckpointMark) -> None:
        """Replace the mark, durably."""
        self._replace(_MARK, asdict(mark))

    def read_mark(self) -> CheckpointMark | None:
        """The mark of the last checkpoint, if there is a readable one."""
        return read_mark(self._subject)
