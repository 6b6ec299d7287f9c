"""Which errno a client gets for which error. An error that is not in the table becomes EIO, never a dead mount.

SQLite reports EIO as "database disk image is malformed", and any other errno as "disk I/O error". So EIO is for bytes
that are damaged or missing for good, not for a store that does not answer.
"""

from __future__ import annotations

import errno

from litereplica.errors import AccessDenied, LiteReplicaError, StorageError, TransientStorageError

_ERRNOS: tuple[tuple[type[LiteReplicaError], int], ...] = (
    (AccessDenied, errno.EACCES),
    (TransientStorageError, errno.ETIMEDOUT),
    (StorageError, errno.EREMOTEIO),
)


def errno_of(exc: BaseException) -> int:
    """Return the errno that answers a request that failed with `exc`."""
    for kind, number in _ERRNOS:
        if isinstance(exc, kind):
            return number
    if isinstance(exc, OSError) and exc.errno is not None:
        return exc.errno
    return errno.EIO


def is_expected(exc: BaseException) -> bool:
    """True if the message of an error says enough, so that the log needs no traceback."""
    return isinstance(exc, (LiteReplicaError, OSError))
