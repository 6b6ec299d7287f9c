"""Explains why there is no replica at a URL: what is there instead, and what to do.

Nothing is imported before there is something to explain, since a mount starts with this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from litereplica.errors import LiteReplicaError, NoReplica

if TYPE_CHECKING:
    from litereplica.ltxstore.store import LTXStore

LOOK_S = 5.0
"""Time limit of the search: a bucket may have millions of objects of other programs."""
NAMED = 5
"""Replicas that are named in the message."""


async def explained(store: LTXStore, error: NoReplica) -> NoReplica:
    """Return the error that is to be raised instead of `error`: this one if nothing else is known.

    A backup by Litestream 0.3 takes one listing; replicas further down take a listing of everything below the URL.
    """
    try:
        with trio.move_on_after(LOOK_S):
            return await what_is_there(store) or error
    except LiteReplicaError:
        pass  # the first error says more
    return error


async def what_is_there(store: LTXStore) -> NoReplica | None:
    """Return an error that says what is at the root of a store without LTX files; None if that is nothing."""
    from litereplica.restore.generations import find_backup
    from litereplica.storage.url import parse_url, redacted

    url = redacted(store.url)
    if await find_backup(store.storage) is not None:
        return NoReplica(
            f"{url} is a backup by Litestream 0.3 (generations/), which has no LTX files",
            hint=f"write 'litereplica restore {url} -o app.db', and replicate that",
        )
    below = await store.list_replicas()
    if not below or not below[0]:
        return None
    names = ", ".join(below[:NAMED]) + (f" and {len(below) - NAMED} more" if len(below) > NAMED else "")
    example = redacted(str(parse_url(store.url).below(below[0])))
    count = "1 replica is" if len(below) == 1 else f"{len(below)} replicas are"
    return NoReplica(f"{url} is no replica itself, but {count} below it: {names}", hint=f"write for instance {example}")
