"""Finds the TXID of a point that a user has named in the store of a replica."""

from __future__ import annotations

import logging
from collections.abc import Callable

from litereplica.cli.point import Point
from litereplica.history.timeline import find_txid, require_point
from litereplica.ltxstore.replan import Listing, find_point
from litereplica.ltxstore.store import LTXStore
from litereplica.types import TXID

log = logging.getLogger(__name__)


async def resolve(store: LTXStore, point: Point, *, warn: Callable[[str], None] = log.warning) -> TXID | None:
    """Return the TXID of a point that can be restored; None for the latest point, without a request.

    Lists all levels, twice if the point is not found; for a time, also reads some headers. `warn` is called if its
    points lie in the future.

    Raises:
        PointNotFound: the history does not have the point.
        NoReplica: there is no file.
        StorageError: a request failed.
    """
    if point.is_latest:
        return None

    async def choose(listing: Listing) -> TXID:
        if point.txid is not None:
            require_point(listing.listed, point.txid)
            return point.txid
        assert point.before_ms is not None
        return await find_txid(store, listing.listed, before_ms=point.before_ms, warn=warn)

    return await find_point(store, choose)
