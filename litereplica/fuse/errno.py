"""Which errno a client gets for which error. Whatever is not foreseen is EIO, never a dead mount.

SQLite tells its user of EIO as "database disk image is malformed", and of any other errno as "disk I/O error". So EIO
is for bytes that are damaged, or missing for good; a store that does not answer is not that.
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
    """The errno that answers a request that failed with `exc`."""
    for kind, number in _ERRNOS:
        if isinstance(exc, kind):
            return number
    if isinstance(exc, OSError) and exc.errno is not None:
        return exc.errno
    return errno.EIO


def is_expected(exc: BaseException) -> bool:
    """Does the message tell all there is to know, so that a log needs no traceback?"""
    return isinstance(exc, (LiteReplicaError, OSError))
