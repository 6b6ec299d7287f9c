"""Every error that crosses a layer, and its exit code on the command line.

The message of an error states what was expected and what was found; `hint` is the next step, if a user can act on it.
Facts that code needs are attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Self


class ExitCode(IntEnum):
    """The exit codes of all commands; documented in docs/CLI.md."""

    OK = 0
    BUG = 1  # an unexpected error; the traceback is in the log
    USAGE = 2  # an invalid argument or option, or an unsuitable file
    NOT_FOUND = 3  # no such database, TXID or time in the replica
    STORE = 4  # the object store refused the request or cannot be reached
    DAMAGED = 5  # damaged data: a check failed
    ENVIRONMENT = 6  # a problem of this machine: no /dev/fuse, mount point in use, disk full
    CONFLICT = 7  # another writer publishes to the replica
    UNPUBLISHED = 8  # replication was stopped, and committed transactions are not in the replica
    SOURCE_REPLACED = 9  # a database was moved, deleted or replaced while it was replicated
    NOT_REACHED = 10  # `wait` or `sync` ran out of time, or `health` found a database failed, stopped or behind


class LiteReplicaError(Exception):
    """The base class of litereplica's errors.

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
    """An argument, an option, a configuration or a file is not what the command needs."""

    exit_code = ExitCode.USAGE


class ConfigurationErrors(UsageError):
    """Several errors of one configuration, in the order in which they were found."""

    errors: tuple[UsageError, ...] = ()

    def __init__(self, errors: Sequence[UsageError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)


class EnvironmentProblem(LiteReplicaError):
    """This machine prevents the operation: no FUSE, mount point in use, disk full."""

    exit_code = ExitCode.ENVIRONMENT


class ControlError(LiteReplicaError):
    """A daemon refused what it was asked on its control socket. `status` is that of HTTP."""

    exit_code = ExitCode.ENVIRONMENT

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.exit_code = _CODE_OF_STATUS.get(status, ExitCode.ENVIRONMENT)


_CODE_OF_STATUS = {
    400: ExitCode.USAGE,
    404: ExitCode.NOT_FOUND,
    408: ExitCode.NOT_REACHED,
    409: ExitCode.CONFLICT,
}


class DatabaseNotFound(LiteReplicaError):
    """A daemon has no such database."""

    exit_code = ExitCode.NOT_FOUND


class NotReached(LiteReplicaError):
    """A position was not reached in time, or a check found something wrong."""

    exit_code = ExitCode.NOT_REACHED


class FormatError(LiteReplicaError):
    """Bytes that violate their format. Raised by `litereplica.format` only."""

    exit_code = ExitCode.DAMAGED


class LTXError(FormatError):
    """Bytes that are not a valid LTX file, header, page frame, index or name."""


class WALError(FormatError):
    """Bytes that are not a valid WAL header. An invalid *frame* ends a WAL, and is no error."""


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
    """The store answered with an error that a retry does not solve. `key` may be empty."""

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
    """A listed LTX file has been deleted or replaced; its pages are in newer files now."""


class BucketNotFound(StorageError):
    """The bucket (or the root directory of a `file://` replica that is only read) does not exist."""


class AccessDenied(StorageError):
    """The credentials are missing, wrong, or do not allow the operation."""


class PreconditionFailed(StorageError):
    """A conditional operation found the object in another state: nothing was changed."""


class ConditionsIgnored(StorageError):
    """The store does not honour conditional requests, so that a lease cannot keep two writers apart."""


class NotSupported(StorageError):
    """The store does not support the operation or its condition (501)."""


class TransientStorageError(StorageError):
    """Timeout, reset, 429, 5xx: a retry may succeed. The operation may have taken effect or not."""


class StaleReplica(StorageError):
    """The store has not answered for longer than readers accept."""


class ReplicaError(LiteReplicaError):
    """The files of a replica do not suffice for the requested state of the database."""

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
    """The history does not have the point: no file ends at the TXID, or the time is before the first point."""


class PageSizeChanged(ReplicaError):
    """The page size of the database has changed, so it must be opened again."""

    def __init__(self, message: str, *, before: int, after: int) -> None:
        super().__init__(message, hint="mount the replica again")
        self.before = before
        self.after = after


class SourceReplaced(LiteReplicaError):
    """A database or its WAL was moved, deleted or replaced while it was replicated."""

    exit_code = ExitCode.SOURCE_REPLACED


class SourceChanged(SourceReplaced):
    """A database was written to other than through its WAL, or its path leads to another file: open it again."""


class SourceMalformed(LiteReplicaError):
    """SQLite calls a database malformed, so it is not published over a good replica."""

    exit_code = ExitCode.DAMAGED


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
    """A process, possibly this one, already replicates the database or directory."""


class LeaseConflict(ConflictError):
    """Another writer, `owner`, holds the lease. `generation` is the lease's; it expires in `left_s` seconds."""

    def __init__(self, message: str, *, owner: str, generation: int, left_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.owner = owner
        self.generation = generation
        self.left_s = left_s


class LeaseHeld(LeaseConflict):
    """The lease cannot be acquired."""


class LeaseLost(LeaseConflict):
    """This writer has lost the lease, and must not publish any more."""


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group, however deep; a single error is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
