"""Notices that a replica has lost files without which its newest state cannot be restored.

Somebody deleted them, a rule of the bucket did, the bucket was rolled back, or one is damaged. Whatever is published
afterwards is worthless until a snapshot is there, and only the database can supply that: other files do not have the
pages.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from litereplica.errors import DamagedFile, GapError, NoReplica, NotFound
from litereplica.ltxstore.plan import plan_newest
from litereplica.ltxstore.store import LTXStore
from litereplica.types import TXID, FileInfo, FileName


async def lost_after(
    store: LTXStore, files: Sequence[FileInfo], *, published: TXID, damaged: Collection[FileName]
) -> TXID | None:
    """Return the TXID that the files of a replica lead to if `published`, a later one, cannot be reached; else None.

    `files` is the listing, without those that are `damaged`. One request, if a file seems to be missing: a listing may
    be out of date, but a file that is asked for by its name is there or not. Raises `StorageError`.
    """
    try:
        reached = plan_newest(files)[-1].max_txid
    except (NoReplica, GapError):
        reached = 0
    if reached >= published:
        return None
    following = FileInfo(0, reached + 1, reached + 1, 0)
    try:
        if following.name not in damaged:
            await store.read_checksum(following)
            return None
    except NotFound:
        pass
    except DamagedFile:
        return None  # the next merge finds that, too
    return reached
