"""Tells a listing that is out of date from a replica that has been rolled back, made anew or deleted."""

from __future__ import annotations

from litereplica.errors import DamagedFile, NotFound, TransientStorageError
from litereplica.format.names import format_txid
from litereplica.ltxstore.store import LTXStore
from litereplica.types import TXID, FileInfo


async def is_gone(store: LTXStore, known: TXID, *, newest: TXID, hint: str | None = None) -> bool:
    """Return whether the level 0 file of `known`, a TXID that the replica had, is gone; `newest` is the newest listed.

    False without a request if `known` is listed or older. A store may answer with an old listing, or an empty one, but
    a file that is asked for by its name is there or not. Raises `TransientStorageError` with `hint` if it is there.
    """
    if known <= newest:
        return False
    info = FileInfo(0, known, known, 0)
    try:
        await store.read_checksum(info)
    except NotFound:
        return True
    except DamagedFile:
        pass  # it is there
    raise TransientStorageError(
        f"{store.url} lists no file beyond TXID {format_txid(newest)}, but has {format_txid(known)}: the listing"
        " is out of date",
        key=store.key(info),
        hint=hint,
    )
