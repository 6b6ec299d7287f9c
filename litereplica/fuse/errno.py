"""Which errno a client gets for which error. Whatever is not foreseen is EIO, never a dead mount."""

from __future__ import annotations

import errno

from litereplica.errors import AccessDenied, LiteReplicaError


def errno_of(exc: BaseException) -> int:
    """The errno that answers a request that failed with `exc`."""
    if isinstance(exc, AccessDenied):
        return errno.EACCES
    if isinstance(exc, OSError) and exc.errno is not None:
        return exc.errno
    return errno.EIO


def is_expected(exc: BaseException) -> bool:
    """Does the message tell all there is to know, so that a log needs no traceback?"""
    return isinstance(exc, (LiteReplicaError, OSError))
