"""What a writer serves on TCP: its state, and the points of its replicas, which are read from the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from litereplica.errors import DatabaseNotFound
from litereplica.format.names import format_txid
from litereplica.history.points import Point, Selection, read_points, select_points
from litereplica.times import format_time
from litereplica.types import TXID
from litereplica.writer.fleet.control import WriterControl
from litereplica.writer.fleet.supervisor import Supervisor

NEWEST_POINTS = 20
SPREAD_POINTS = 40
"""Points that are shown: the newest ones, and others between them and the oldest. Each takes a request."""


class WriterSite:
    """A `Source` of `litereplica.web`. `fleet` returns None until there is one."""

    def __init__(self, control: WriterControl, fleet: Callable[[], Supervisor | None]) -> None:
        self._control = control
        self._fleet = fleet

    def document(self, wanted: str | None = None) -> dict[str, Any]:
        """Return the document of `GET /status`."""
        return self._control.document(wanted)

    async def points(self, path: str) -> Sequence[Mapping[str, Any]]:
        """Return some points of the replica of a database, ascending.

        Raises `DatabaseNotFound`, and as `select_points`.
        """
        fleet = self._fleet()
        known = (each.path for each in self._control.statistics().databases if str(each.path.absolute()) == path)
        database = next(known, None)
        member = None if fleet is None or database is None else fleet.find(database)
        if member is None:
            raise DatabaseNotFound(f"database not open: {path}")
        store = member.root.store(member.prefix)
        found: list[Point] = []

        async def keep(point: Point) -> None:
            found.append(point)

        await read_points(store, some_of(await select_points(store)), keep, count_pages=False)
        return [
            {"txid": format_txid(point.txid), "timestamp": format_time(point.timestamp_ms)}
            for point in found
            if point.timestamp_ms is not None
        ]


def some_of(selection: Selection) -> Selection:
    """Return the newest points, and some of the others at equal distances."""
    txids = sorted(selection.ending)
    older, newest = txids[:-NEWEST_POINTS], txids[-NEWEST_POINTS:]
    chosen: list[TXID] = [*older[:: max(1, -(-len(older) // SPREAD_POINTS))], *newest]
    return Selection({txid: selection.ending[txid] for txid in chosen}, selection.total)
