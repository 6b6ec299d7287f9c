"""Memory keeps the contract, and is deterministic."""

from __future__ import annotations

import pytest
import trio.testing

from litereplica.testing.back_doors import MemoryDoor, Subject
from litereplica.testing.conformance import StorageConformance
from litereplica.testing.memory import MemoryStorage


class TestMemory(StorageConformance):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = MemoryStorage()
        return Subject(storage, MemoryDoor(storage))


async def test_it_needs_no_time_and_no_thread(autojump_clock: trio.testing.MockClock) -> None:
    storage = MemoryStorage(now_ms=lambda: 42)
    await storage.put("k", b"x")
    assert (await storage.head("k")).modified_ms == 42
    assert trio.current_time() == 0
