"""Request n of a reader's life fails, for every n and in every way: no wrong page, and all is well afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import Enum
from itertools import count

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from litereplica.errors import LiteReplicaError, NotFound, TransientStorageError
from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.replica.database import Replica, open_replica
from litereplica.replica.next_files import LIST_INTERVAL_S, REBASE_INTERVAL_S
from litereplica.replica.patience import READ_TIMEOUT_S
from litereplica.storage.base import Blob, ObjectInfo, Range
from litereplica.storage.wrappers import WrapperStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.types import Pgno
from tests.helpers.history import History

PAGES = 30
SMALL = 1000
"""Bytes that count as a small file here: the first one and what it is merged into are large."""

SILENCE_S, PATIENCE_S = 0.15, 0.1
"""How long a silent store says nothing, and how long its readers wait."""

ATTEMPTS = 4


class Kind(Enum):
    """What a request that fails does."""

    ERROR = "error"
    SILENCE = "silence, and then an error"
    GONE = "not found, or an empty listing"
    TRUNCATED = "half of the bytes"
    FLIPPED = "a flipped bit"


class FailingStorage(WrapperStorage):
    """Request `n` fails; all others are answered at once."""

    def __init__(self, inner: MemoryStorage, n: int, kind: Kind) -> None:
        super().__init__(inner)
        self.requests = 0
        self._n = n
        self._kind = kind

    async def get(self, key: str, range: Range | None = None) -> Blob:
        if not await self._is_due(key):
            return await super().get(key, range)
        blob = await super().get(key, range)
        if self._kind is Kind.GONE:
            raise NotFound(f"{key} does not exist, as planned", key=key)
        if self._kind is Kind.TRUNCATED:
            return replace(blob, data=blob.data[: len(blob.data) // 2])
        data = bytearray(blob.data)
        if data:
            data[len(data) // 3] ^= 1
        return replace(blob, data=bytes(data))

    async def list(self, prefix: str, *, start_after: str | None = None) -> list[ObjectInfo]:
        found = await super().list(prefix, start_after=start_after)
        if await self._is_due(prefix):
            return [] if self._kind is not Kind.TRUNCATED else found[: len(found) // 2]
        return found

    async def _is_due(self, key: str) -> bool:
        self.requests += 1
        due = self.requests == self._n
        if due and self._kind is Kind.SILENCE:
            await trio.sleep(SILENCE_S)
        if due and self._kind in (Kind.ERROR, Kind.SILENCE):
            raise TransientStorageError(f"{key} cannot be read, as planned", key=key)
        return due


class Life:
    """A reader from its opening to a database that has moved on under it: what it meets, and what it reads."""

    def __init__(self, n: int, kind: Kind, *, with_sums: bool) -> None:
        self.memory = MemoryStorage()
        self.history = History(self.memory, with_sums=with_sums)
        self.storage = FailingStorage(self.memory, n, kind)
        self.read_timeout_s = PATIENCE_S if kind is Kind.SILENCE else READ_TIMEOUT_S
        self.now = 0.0
        self.failures = 0

    async def live(self) -> None:
        await self.history.commit({pgno: np.random.default_rng(pgno).bytes(512) for pgno in range(1, PAGES + 1)})
        await self.history.commit({2: b"two"})
        for attempt in count(1):
            try:
                async with open_replica(
                    LTXStore(self.storage, Layout.S3),
                    memory_size=3000,
                    read_timeout_s=self.read_timeout_s,
                    clock=lambda: self.now,
                ) as replica:
                    await self._follow(replica)
                return
            except LiteReplicaError:
                self.failures += 1
                assert attempt < ATTEMPTS

    async def _follow(self, replica: Replica) -> None:
        await self._read(replica)
        for n in range(3):
            await self.history.commit({n + 3: b"at %d" % self.history.txid}, pages=PAGES - n)
            await self._try(replica.poll)
        await self._read(replica)
        await self.history.compact(1, 1, self.history.txid)
        for txid in range(1, self.history.txid):
            await self.history.delete(0, txid)
        await self._read(replica)  # heals
        await self._hydrate(replica)
        await self.history.commit({5: b"five"})
        await self.history.snapshot()
        self.now += REBASE_INTERVAL_S + 1
        await self._try(replica.poll)
        await self._read(replica)
        await self.history.commit({}, pages=PAGES + 9)
        await self.history.compact(1, self.history.txid - 1, self.history.txid)
        await self.history.delete(0, self.history.txid - 1)
        self.now += LIST_INTERVAL_S
        await self._try(replica.poll)
        await self._end(replica)

    async def _end(self, replica: Replica) -> None:
        """Nothing fails any more, or it has not failed yet: within a few polls all is well."""
        for _ in range(ATTEMPTS):
            self.now += LIST_INTERVAL_S * 11
            await self._try(replica.poll)
        assert replica.snapshot.pos.txid == self.history.txid
        assert await self._read(replica)

    async def _read(self, replica: Replica) -> bool:
        """Read everything, as a mount does: heal once. What is read is right. False when it cannot be read."""
        for _ in range(3):
            snapshot = replica.snapshot
            pgnos = np.arange(1, snapshot.commit + 1, dtype=np.uint32)
            try:
                pages = await replica.read(pgnos, snapshot.pages.lookup(pgnos), around=snapshot.pages)
            except LiteReplicaError:
                self.failures += 1
                await self._try(replica.heal)
                continue
            found: dict[Pgno, bytes] = dict(zip(pgnos.tolist(), pages, strict=True))
            assert found == self.history.at(snapshot.pos.txid)
            return True
        return False

    async def _hydrate(self, replica: Replica) -> None:
        async def run() -> None:
            await replica._hydrator._pass(replica.snapshot.pages)

        await self._try(run)
        await self._read(replica)

    async def _try(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except LiteReplicaError:
            self.failures += 1


@pytest.fixture(autouse=True)
def small_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("litereplica.ltxstore.store", "litereplica.replica.file_reader"):
        monkeypatch.setattr(f"{module}.WHOLE_FILE_LIMIT", SMALL)


async def requests_of_a_life(*, with_sums: bool) -> int:
    life = Life(0, Kind.ERROR, with_sums=with_sums)
    await life.live()
    return life.storage.requests


CASES = [*((kind, True) for kind in Kind), (Kind.ERROR, False), (Kind.GONE, False)]
"""A flipped bit is found for sure only in files with sums."""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "with_sums"), [pytest.param(*case, id=f"{case[0].name} {case[1]}") for case in CASES])
@pytest.mark.logs("as planned", "cannot be checked until the file has been read whole")
async def test_whichever_request_fails_no_page_is_wrong_and_all_is_well_afterwards(
    autojump_clock: MockClock, kind: Kind, with_sums: bool
) -> None:
    requests = await requests_of_a_life(with_sums=with_sums)
    assert requests > 40
    noticed = 0
    for n in range(1, requests + 1):
        life = Life(n, kind, with_sums=with_sums)
        try:
            await life.live()
        except AssertionError as exc:
            exc.add_note(f"request {n} of {requests}")
            raise
        noticed += life.failures > 0
    assert noticed > 0
