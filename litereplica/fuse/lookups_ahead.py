"""Looks names up ahead of those who walk through a listing.

`find`, `ls -l` and `ls -R` list a directory and then look up each name in turn. Each lookup takes a round trip to the
store, so once two names of a listing have been looked up in its order, the next ones are asked for at the same time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from litereplica.errors import LiteReplicaError

AHEAD = 64
"""Names that are looked up ahead of a walker."""

PARALLEL = 8
"""Lookups at the same time: half of the connections of a usual pool."""

MAX_LISTINGS = 16
"""Listings that are remembered, the last ones."""

MAX_QUEUED = 1024


class _Walk:
    """A listing, and how far somebody has walked through it."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.rows = {path: row for row, path in enumerate(paths)}
        self.row = -1
        self.asked = 0


class LookupsAhead:
    """The walks through the listings of one tree. `find` looks a path up."""

    def __init__(self, find: Callable[[str], Awaitable[object]]) -> None:
        self._find = find
        self._walks: dict[str, _Walk] = {}
        self._send, self._receive = trio.open_memory_channel[str](MAX_QUEUED)
        self._under_way: set[str] = set()

    async def run(self) -> None:
        """Look up what is queued, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(PARALLEL):
                nursery.start_soon(self._work)

    def listed(self, directory: str, paths: list[str]) -> None:
        """Note a listing; its walk begins anew."""
        self._walks.pop(directory, None)
        self._walks[directory] = _Walk(paths)
        while len(self._walks) > MAX_LISTINGS:
            del self._walks[next(iter(self._walks))]

    def note(self, path: str) -> None:
        """Note that somebody looks a path up."""
        walk = self._walks.get(path.rpartition("/")[0])
        row = walk.rows.get(path) if walk is not None and path not in self._under_way else None
        if walk is None or row is None:
            return
        is_next = row == walk.row + 1 and row > 0
        walk.row = row
        if not is_next or walk.asked - row > AHEAD // 2:
            return
        start = max(row + 1, walk.asked)
        walk.asked = min(len(walk.paths), row + 1 + AHEAD)
        with suppress(trio.WouldBlock):
            for each in walk.paths[start : walk.asked]:
                self._send.send_nowait(each)

    async def _work(self) -> None:
        async for path in self._receive:
            self._under_way.add(path)
            with suppress(LiteReplicaError):
                await self._find(path)
            self._under_way.discard(path)
