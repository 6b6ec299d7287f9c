"""`.litereplica.db` of a mount: its state as a SQLite database, made anew at each open.

Any SQLite client opens it or attaches it to the live database, and joins lag, readers, cost and points with its own
rows. It is serialised from memory, has no journal and never changes while it is open; opening it again gives the state
of that moment. The kernel knows one size for all of them, `SIZE`: SQLite goes by the number of pages in the header,
and what is behind them reads as zeroes.

    databases   the mounted database: position, lag, state; one row
    readers     read transactions that are open
    requests    requests to the store, by purpose; `usd` is NULL where they have no price
    files       the LTX files that pages of the database are read from
    points      the newest points that `.at` leads to

Users who may only read the database (`--allow-other`) see name, TXID, time and lag, and nothing in the other tables.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import litereplica
from litereplica.fuse.at_names import TXID_PREFIX
from litereplica.fuse.names import AT_NAME
from litereplica.fuse.nodes import Attributes, Node, is_insider
from litereplica.fuse.state import MountState
from litereplica.times import format_time
from litereplica.types import FileInfo

SIZE = 1 << 20
"""Bytes that the kernel is told, more than any content: it asks for no page behind the header's."""
MAX_ROWS = 4096
"""Of one table: the newest files. A row has some 60 bytes."""

_TABLES = {
    "databases": (
        "name", "db_path", "mountpoint", "url", "state", "txid", "timestamp", "newest_txid", "lag_ms", "behind_bytes",
        "news_age_ms", "size_bytes", "wal_frames", "pid", "version", "error",
    ),
    "readers": ("pid", "command", "txid", "since"),
    "requests": ("purpose", "requests", "errors", "received_bytes", "usd"),
    "files": ("level", "min_txid", "max_txid", "size_bytes"),
    "points": ("txid", "timestamp"),
}  # fmt: skip

Row = Mapping[str, Any]


class StatusDatabase(Node):
    """The file. `state` returns the state of the mount, `files` and `points` the rows of these tables."""

    waits_until_ready = False

    def __init__(
        self,
        inode: int,
        state: Callable[[], MountState],
        *,
        files: Callable[[], Sequence[FileInfo]],
        points: Callable[[], Awaitable[Sequence[Row]]],
    ) -> None:
        super().__init__(inode)
        self._state = state
        self._files = files
        self._points = points

    def attributes(self) -> Attributes:
        """Return the attributes, which do not depend on the content."""
        return Attributes(size=SIZE)

    async def open(self, *, own: bool, uid: int) -> bytes:
        """Return the content for this handle."""
        if not is_insider(uid):
            return serialised({"databases": [self._state().public()]})
        points = await self._points()
        state = self._state()
        record = state.record()
        return serialised(
            {
                "databases": [{**record, "pid": os.getpid(), "version": litereplica.__version__}],
                "readers": record["readers"],
                "requests": record["requests"],
                "files": map(_file_row, self._files()[-MAX_ROWS:]),
                "points": points,
            }
        )


def point_row(txid: int, timestamp_ms: int) -> Row:
    """The row of a point."""
    return {"txid": f"{txid:016x}", "timestamp": format_time(timestamp_ms)}


def at_paths(points: Iterable[Row], directory: Path, name: str) -> list[Row]:
    """Return the rows of points, each with the `path` of the database `name` at that point, in `.at` of `directory`."""
    return [{**row, "path": str(directory / AT_NAME / f"{TXID_PREFIX}{row['txid']}" / name)} for row in points]


def _file_row(info: FileInfo) -> Row:
    txids = {"min_txid": f"{info.min_txid:016x}", "max_txid": f"{info.max_txid:016x}"}
    return {"level": info.level, **txids, "size_bytes": info.size}


def serialised(rows: Mapping[str, Iterable[Row]]) -> bytes:
    """Return a database with the tables, and these rows in them; columns that a row does not have are NULL."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for table, columns in _TABLES.items():
            connection.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
            marks = ", ".join("?" * len(columns))
            values = ([row.get(column) for column in columns] for row in rows.get(table, ()))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", values)
        connection.commit()
        return connection.serialize()
