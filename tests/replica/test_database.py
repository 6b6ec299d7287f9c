"""A replica at the newest TXID: opening, polling, healing and reading, over a store in memory."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from litereplica.errors import NoReplica
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.snapshot import Snapshot
from litereplica.types import Pgno
from tests.helpers.history import History


async def content(replica: Replica, snapshot: Snapshot | None = None) -> dict[Pgno, bytes]:
    """The whole database of a snapshot, as it is read through the replica."""
    snapshot = snapshot or replica.snapshot
    pgnos: NDArray[np.uint32] = np.arange(1, snapshot.commit + 1, dtype=np.uint32)
    pages = await replica.read(pgnos, snapshot.pages.lookup(pgnos), around=snapshot.pages)
    return dict(zip(pgnos.tolist(), pages, strict=True))


async def test_an_empty_store_has_no_replica() -> None:
    with pytest.raises(NoReplica):
        async with open_replica(History().store):
            raise AssertionError("opened")


async def test_a_poll_applies_all_that_is_new() -> None:
    history = History()
    await history.commit({1: b"a", 2: b"b"})
    async with open_replica(history.store) as replica:
        assert await content(replica) == history.at(1)
        assert await replica.poll() is None
        await history.commit({2: b"c"})
        await history.commit({2: b"d"}, pages=4)
        update = await replica.poll()
        assert update is not None
        assert update.snapshot is replica.snapshot
        assert update.changed.tolist() == [2, 3, 4]
        assert not update.relocated
        assert replica.snapshot.pos.txid == 3
        assert await content(replica) == history.at(3)
