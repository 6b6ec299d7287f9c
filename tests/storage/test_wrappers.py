"""Each wrapper keeps the contract."""

from __future__ import annotations

import contextlib
import random

import pytest
import trio.testing

from litereplica.errors import PreconditionFailed, StorageError, TransientStorageError
from litereplica.storage.base import Storage
from litereplica.storage.wrappers import (
    Call,
    MeteredStorage,
    Operation,
    PrefixStorage,
    RetryPolicy,
    RetryStorage,
    WrapperStorage,
)
from litereplica.testing.back_doors import MemoryDoor, PrefixDoor, Subject
from litereplica.testing.conformance import StorageConformance
from litereplica.testing.faults import Fault, FaultAt, FaultStorage, Request, When, any_of
from litereplica.testing.latency import LatencyStorage
from litereplica.testing.memory import MemoryStorage, StoredObject


def no_fault(_: Request) -> None:
    return None


class WrapperConformance(StorageConformance):
    def wrap(self, inner: Storage) -> Storage:
        raise NotImplementedError

    @pytest.fixture
    def subject(self) -> Subject:
        memory = MemoryStorage()
        return Subject(self.wrap(memory), MemoryDoor(memory))


class TestDelegation(WrapperConformance):
    def wrap(self, inner: Storage) -> Storage:
        return WrapperStorage(inner)


class TestMetered(WrapperConformance):
    def wrap(self, inner: Storage) -> Storage:
        return MeteredStorage(inner)


class TestLatency(WrapperConformance):
    def wrap(self, inner: Storage) -> Storage:
        return LatencyStorage(inner, 0.001, 1e10)


class TestPrefix(StorageConformance):
    """Beside objects of others, before and behind its own."""

    @pytest.fixture
    def subject(self) -> Subject:
        memory = MemoryStorage()
        for key in ("a", "b/0", "b/c0000/x", "b/d", "c"):
            memory.objects[key] = StoredObject(b"of another", 0)
        return Subject(PrefixStorage(memory, "b/c/", url="memory://test/b/c"), PrefixDoor(memory, "b/c/"))


class TestFault(WrapperConformance):
    def wrap(self, inner: Storage) -> Storage:
        return FaultStorage(inner, no_fault)


class TestRetry(WrapperConformance):
    def wrap(self, inner: Storage) -> Storage:
        return RetryStorage(inner)


class FlakyConformance(WrapperConformance):
    """Retries over a store half of whose requests fail."""

    when: When

    def wrap(self, inner: Storage) -> Storage:
        rng = random.Random(1)

        def half(_: Request) -> Fault | None:
            return Fault(self.when) if rng.random() < 0.5 else None

        patient = RetryPolicy(attempts=100, base_delay_s=0.0001, max_delay_s=0.001, total_s=60)
        return RetryStorage(FaultStorage(inner, half), patient, rng=rng)

    async def test_delete_if_match_refuses_what_is_missing(self, storage: Storage) -> None:
        """Or takes it for its own deletion, if an attempt failed: nobody could tell the two apart."""
        for number in range(20):
            etag = await storage.put(f"{number}", b"x")
            await storage.delete([f"{number}"])
            with contextlib.suppress(PreconditionFailed):
                await storage.delete_if_match(f"{number}", etag)
        assert await storage.list("") == []


class TestRetryOverFailures(FlakyConformance):
    when = When.BEFORE_EFFECT


class TestRetryOverLostAnswers(FlakyConformance):
    when = When.AFTER_EFFECT


async def test_metering_counts_requests_bytes_and_errors() -> None:
    storage = MeteredStorage(MemoryStorage())
    before = storage.statistics()
    await storage.put("k", b"12345")
    await storage.put_if_absent("l", b"123")
    with pytest.raises(PreconditionFailed):
        await storage.put_if_absent("l", b"1")
    await storage.get("k")
    await storage.list("")
    with trio.CancelScope() as scope:
        scope.cancel()
        await storage.head("k")
    after = storage.statistics()
    assert before.requests == 0
    assert after.requests == 6
    assert after.by_operation[Operation.PUT].bytes_sent == 5
    absent = after.by_operation[Operation.PUT_IF_ABSENT]
    assert (absent.requests, absent.bytes_sent, absent.errors) == (2, 4, {"PreconditionFailed": 1})
    assert after.by_operation[Operation.GET].bytes_received == 5
    assert after.by_operation[Operation.HEAD].errors == {"Cancelled": 1}
    assert (absent.failures, after.by_operation[Operation.HEAD].failures) == ({}, {"Cancelled": 1})
    assert after.by_operation[Operation.DELETE].requests == 0


async def test_latency_is_the_round_trip_and_the_time_of_the_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    storage = LatencyStorage(MemoryStorage(), 0.1, 1000.0)
    await storage.put("k", b"x" * 500)
    assert trio.current_time() == pytest.approx(0.6)
    await storage.get("k")
    assert trio.current_time() == pytest.approx(1.2)
    await storage.head("k")
    assert trio.current_time() == pytest.approx(1.3)


async def test_latency_passes_in_part_before_the_effect(autojump_clock: trio.testing.MockClock) -> None:
    memory = MemoryStorage()
    storage = LatencyStorage(memory, 0.1)
    with trio.move_on_after(0.02):
        await storage.put("early", b"x")
    assert "early" not in memory.objects
    with trio.move_on_after(0.08):
        await storage.put("late", b"x")
    assert "late" in memory.objects


def request(number: int, operation: Operation = Operation.GET, number_of_operation: int = 1) -> Request:
    return Request(Call(operation, "k"), number, number_of_operation)


def test_a_fault_plan_is_pure() -> None:
    fault = Fault(When.AFTER_EFFECT, StorageError)
    once, for_good = FaultAt(2, fault=fault), FaultAt(2, fault=fault, for_good=True)
    assert [once(request(n)) for n in (1, 2, 3)] == [None, fault, None]
    assert [for_good(request(n)) for n in (1, 2, 3)] == [None, fault, fault]
    of_put = FaultAt(1, operation=Operation.PUT)
    assert of_put(request(1)) is None
    assert of_put(request(7, Operation.PUT, 1)) == Fault()
    both = any_of(once, of_put)
    assert both(request(2)) == fault
    assert both(request(7, Operation.PUT, 1)) == Fault()
    assert both(request(9)) is None


async def test_a_fault_comes_before_or_after_the_effect() -> None:
    memory = MemoryStorage()
    storage = FaultStorage(memory, FaultAt(1))
    with pytest.raises(TransientStorageError, match="put k failed before its effect"):
        await storage.put("k", b"x")
    assert not memory.objects
    storage.plan = FaultAt(1, operation=Operation.PUT_IF_ABSENT, fault=Fault(When.AFTER_EFFECT, StorageError))
    with pytest.raises(StorageError, match="failed after its effect"):
        await storage.put_if_absent("k", b"x")
    assert "k" in memory.objects
    await storage.put("l", b"x")
