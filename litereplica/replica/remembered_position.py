"""The newest TXID that a mount has served, kept in its cache directory, so that a restart does not go back in time.

A store may answer with a listing that is out of date. When the listing at a start is older than the remembered TXID,
the level 0 file of that TXID is asked for by its name: if it is there, so is all that the mount has served, and the
listing is asked for again later. If it is not, the replica was rolled back or made anew, or the file was pruned after
newer ones came. Then what is listed is served, and the log says so, but only if further listings agree: one that is out
of date must not take the mount back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from litereplica.errors import LTXError, TransientStorageError
from litereplica.format.names import format_txid, parse_txid
from litereplica.ltxstore.outdated_listing import is_gone
from litereplica.ltxstore.store import LTXStore
from litereplica.types import TXID

log = logging.getLogger(__name__)

FILE_NAME = "served-txid"
WRITE_INTERVAL_S = 1.0
"""A mount that is killed has forgotten at most what it began to serve within this time."""

AGREEING_LISTINGS = 3
LISTING_PAUSE_S = 1.0

_FLAGS = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_SIZE = 16


class RememberedPosition:
    """The TXID in `<directory>/served-txid`: 16 hexadecimal digits. Errors of the file system are not reported."""

    def __init__(self, directory: Path, *, clock: Callable[[], float]) -> None:
        self._path = directory / FILE_NAME
        self._clock = clock
        self._noted: TXID = 0
        self._written: TXID = 0
        self._written_at = -WRITE_INTERVAL_S

    def read(self) -> TXID:
        """Return the TXID; 0 if none is known."""
        with suppress(OSError, LTXError, ValueError):
            fd = os.open(self._path, os.O_RDONLY | _FLAGS & ~os.O_CREAT)
            try:
                return parse_txid(os.read(fd, _SIZE).decode())
            finally:
                os.close(fd)
        return 0

    async def require_listed(self, store: LTXStore, newest: TXID) -> None:
        """Raise `TransientStorageError` if the listing, which has nothing beyond `newest`, is out of date."""
        remembered, hint = self.read(), "try again, or add --wait"
        if await is_gone(store, remembered, newest=newest, hint=hint):
            for _ in range(AGREEING_LISTINGS - 1):
                await trio.sleep(LISTING_PAUSE_S)
                listed = max((info.max_txid for info in await store.list_levels()), default=0)
                if listed >= remembered:
                    raise TransientStorageError(f"a listing of {store.url} was out of date", hint=hint)
            log.warning(
                "the newest TXID of %s is %s, and %s was served from it before: it was rolled back or made anew",
                store.url, format_txid(newest), format_txid(remembered),
            )  # fmt: skip

    def note(self, txid: TXID) -> None:
        """Remember `txid`; it is written at most once in `WRITE_INTERVAL_S`."""
        self._noted = txid
        if self._clock() - self._written_at >= WRITE_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Write what was noted last."""
        if self._noted == self._written:
            return
        self._written, self._written_at = self._noted, self._clock()
        with suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | _FLAGS, 0o600)
            try:
                os.pwrite(fd, format_txid(self._noted).encode(), 0)
            finally:
                os.close(fd)
