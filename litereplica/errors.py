"""Every error that crosses a layer, and the exit code that each one becomes on the command line.

An error states the fact (what was expected, what was found) as its message and, where a user can act
on it, the next step as `hint`. Facts that code needs are attributes. Nothing here does any work.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Self


class ExitCode(IntEnum):
    """Exit codes of every command; documented in docs/CLI.md."""

    OK = 0
    BUG = 1  # an error that we did not foresee; the traceback is in the log
    USAGE = 2  # an argument, an option, or a file named by one of them, is not what the command needs
    NOT_FOUND = 3  # the replica holds no such database, TXID or time
    STORE = 4  # the object store refused, or cannot be reached
    DAMAGED = 5  # bytes that fail their checks
    ENVIRONMENT = 6  # this machine: no /dev/fuse, mount point in use, disk full
    CONFLICT = 7  # another writer owns the destination
    UNPUBLISHED = 8  # replication was stopped, and committed transactions are not in the replica
    SOURCE_REPLACED = 9  # a database was moved, deleted or replaced while it was replicated


class LiteReplicaError(Exception):
    """Base of every error of ours.

    `hint` is the next step for a user, an imperative clause without a final period, or None.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class UsageError(LiteReplicaError):
    """What the user named is not what the command needs."""

    exit_code = ExitCode.USAGE


class EnvironmentProblem(LiteReplicaError):
    """This machine cannot do it now: no FUSE, mount point in use, disk full."""

    exit_code = ExitCode.ENVIRONMENT


class FormatError(LiteReplicaError):
    """Bytes that are not what their format says. Raised by `litereplica.format` only."""

    exit_code = ExitCode.DAMAGED


class LTXError(FormatError):
    """Bytes that are not a valid LTX file, header, page frame, index or name."""


class WALError(FormatError):
    """Bytes that are not a valid WAL header. (An invalid *frame* is the end of a WAL, not an error.)"""


class SQLiteFormatError(FormatError):
    """Bytes that are not a SQLite database header."""


class DamagedFile(LiteReplicaError):
    """An object of the store failed its checks; `key` names it."""

    exit_code = ExitCode.DAMAGED

    def __init__(self, key: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{key}: {reason}", hint=hint)
        self.key = key
        self.reason = reason


class StorageError(LiteReplicaError):
    """The store answered with an error that trying again does not cure. `key` may be empty."""

    exit_code = ExitCode.STORE

    def __init__(self, message: str, *, key: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key = key

    def below(self, prefix: str) -> Self:
        """This error, with `key` as it is named below a prefix."""
        self.key = self.key.removeprefix(prefix)
        return self


class NotFound(StorageError):
    """No object has this key."""


class FileVanished(NotFound):
    """An LTX file that a page was to be read from has gone: its pages lie in newer files now."""


class BucketNotFound(StorageError):
    """The bucket (or the root directory of a `file://` replica that is only read) does not exist."""


class AccessDenied(StorageError):
    """The credentials are missing, wrong, or do not allow the operation."""


class PreconditionFailed(StorageError):
    """A conditional operation found the object in another state: nothing was changed."""


class ConditionsIgnored(StorageError):
    """The store does not honour conditional requests: nothing keeps two writers apart there."""


class NotSupported(StorageError):
    """The store does not know the operation, or the condition that it carries (501)."""


class TransientStorageError(StorageError):
    """Timeout, reset, 429, 5xx: trying again may succeed. The effect may or may not have happened."""


class StaleReplica(StorageError):
    """There has been no news from the store for longer than readers accept."""


class ReplicaError(LiteReplicaError):
    """The files of a replica do not add up to the database that was asked for."""

    exit_code = ExitCode.NOT_FOUND


class NoReplica(ReplicaError):
    """There is no LTX file under the URL."""


class GapError(ReplicaError):
    """Files are missing between `have` and `want` (TXIDs): the position cannot be reached."""

    def __init__(self, message: str, *, have: int, want: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.have = have
        self.want = want


class PointNotFound(ReplicaError):
    """The history cannot be restored to what was asked for: a TXID that no file ends at, or a time before the first."""


class PageSizeChanged(ReplicaError):
    """The database goes on with another page size: it has to be opened anew."""

    def __init__(self, message: str, *, before: int, after: int) -> None:
        super().__init__(message, hint="mount the replica again")
        self.before = before
        self.after = after


class SourceReplaced(LiteReplicaError):
    """A database or its WAL was moved, deleted or replaced while it was replicated."""

    exit_code = ExitCode.SOURCE_REPLACED


class Unpublished(LiteReplicaError):
    """Replication was stopped before all was published; the next start continues from there.

    `transactions` are those known to be committed and not in the replica, None if the content of the database was not
    compared with the replica; `wal_bytes` is their size in the WAL.
    """

    exit_code = ExitCode.UNPUBLISHED

    def __init__(self, path: Path, reason: str, *, transactions: int | None, wal_bytes: int) -> None:
        if transactions is None:
            what = f"stopped before {path} was compared with its replica"
        else:
            what = f"stopped with {transactions} transaction(s), {wal_bytes} bytes of WAL, of {path} unpublished"
        super().__init__(f"{what}: {reason}", hint="start it again: it continues from there")
        self.path = path
        self.transactions = transactions
        self.wal_bytes = wal_bytes


class ConflictError(LiteReplicaError):
    """Another writer publishes to the same destination."""

    exit_code = ExitCode.CONFLICT


class AlreadyReplicated(ConflictError):
    """Another process, or this one, replicates the same database or directory now."""


class LeaseConflict(ConflictError):
    """Another writer has the lease: who, in which generation, and for how many seconds from now."""

    def __init__(self, message: str, *, owner: str, generation: int, left_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.owner = owner
        self.generation = generation
        self.left_s = left_s


class LeaseHeld(LeaseConflict):
    """It could not be taken."""


class LeaseLost(LeaseConflict):
    """It was ours, and is not any more: nothing more may be published."""
