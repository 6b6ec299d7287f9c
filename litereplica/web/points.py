"""Points in time of a database, each with the command that mounts it.

Reading them takes requests to the store, so they are read for one request at a time, and kept for a minute.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import trio

from litereplica.control.http import Refusal, Request, Response, json_response
from litereplica.control.protocol import text_field

KEEP_S = 60.0
"""As long as the mount of a past state that nobody uses."""
MAX_KEPT = 100
"""Databases whose points are kept."""
LIMIT_S = 20.0
"""Time limit of reading, and of waiting for those of others."""

Row = Mapping[str, Any]


class Points:
    """The points of the databases of a daemon, by `db_path`, from `read`."""

    def __init__(self, read: Callable[[str], Awaitable[Sequence[Row]]]) -> None:
        self._read = read
        self._lock = trio.Lock()
        self._kept: dict[str, tuple[float, Sequence[Row]]] = {}

    async def answer(self, document: Mapping[str, Any], request: Request) -> Response:
        """Return the answer to `GET /points`. Raises `Refusal`, and what reading raises."""
        path = text_field(request.query, "path")
        record = next((each for each in document["databases"] if each["db_path"] == path), None)
        if record is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "database not found")
        with trio.move_on_after(LIMIT_S) as limit:
            rows = await self._points(path)
        if limit.cancelled_caught:
            raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, "the store does not answer in time", details="try again")
        return json_response({"db_path": path, "points": [_with_command(row, record["url"]) for row in rows]})

    async def _points(self, path: str) -> Sequence[Row]:
        async with self._lock:
            now = trio.current_time()
            self._kept = {each: kept for each, kept in self._kept.items() if now - kept[0] < KEEP_S}
            if path not in self._kept:
                rows = await self._read(path)
                if len(self._kept) >= MAX_KEPT:
                    del self._kept[min(self._kept, key=lambda each: self._kept[each][0])]
                self._kept[path] = now, rows
            return self._kept[path][1]


def _with_command(row: Row, url: str) -> Row:
    return {**row, "command": f"litereplica mount {shlex.quote(url)} MOUNTPOINT --txid {row['txid']}"}
