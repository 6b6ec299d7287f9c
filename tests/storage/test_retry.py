"""Retries: how often, how long, and what becomes of a conditional operation whose answer was lost."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from litereplica.errors import (
    AccessDenied,
    NotFound,
    PreconditionFailed,
    StorageError,
    TransientStorageError,
)
from litereplica.storage.wrappers import DEFAULT_POLICY, MeteredStorage, Operation, RetryPolicy, RetryStorage
from litereplica.storage.wrappers import retry as retry_module
from litereplica.testing.faults import Fault, FaultAt, FaultPlan, FaultStorage, Request, When
from litereplica.testing.memory import MemoryStorage, StoredObject

ALWAYS = FaultAt(1, for_good=True)
LOST_ONCE = FaultAt(1, fault=Fault(When.AFTER_EFFECT))


class Stack:
    """A retrying storage over a failing one, the requests counted that get through to the store."""

    def __init__(self, plan: FaultPlan, policy: RetryPolicy = DEFAULT_POLICY, seed: int = 1) -> None:
        self.memory = MemoryStorage()
        self.faulty = FaultStorage(self.memory, plan)
        self.metered = MeteredStorage(self.faulty)
        self.storage = RetryStorage(self.metered, policy, rng=random.Random(seed))

    @property
    def requests(self) -> int:
        return self.metered.statistics().requests


async def test_transient_failures_are_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    stack = Stack(lambda request: Fault() if request.number <= 3 else None)
    await stack.storage.put("k", b"x")
    assert stack.memory.objects["k"].data == b"x"
    assert stack.requests == 4


@pytest.mark.parametrize("kind", [NotFound, AccessDenied, PreconditionFailed, StorageError])
async def test_other_failures_are_not(autojump_clock: trio.testing.MockClock, kind: type[StorageError]) -> None:
    stack = Stack(FaultAt(1, fault=Fault(error=kind)))
    with pytest.raises(kind):
        await stack.storage.put_if_absent("k", b"x")
    assert stack.requests == 1
    assert trio.current_time() == 0


async def test_attempts_are_bounded_and_the_last_error_is_raised(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stack = Stack(ALWAYS, RetryPolicy(attempts=5))
    with pytest.raises(TransientStorageError):
        await stack.storage.get("k")
    assert stack.requests == 5


async def test_cancellation_ends_the_waiting(autojump_clock: trio.testing.MockClock) -> None:
    stack = Stack(ALWAYS, RetryPolicy(attempts=1000, base_delay_s=1, total_s=1e6))
    with trio.move_on_after(60) as scope:
        await stack.storage.get("k")
    assert scope.cancelled_caught


@given(
    policy=st.builds(
        RetryPolicy,
        attempts=st.integers(1, 12),
        base_delay_s=st.floats(0.001, 2),
        max_delay_s=st.floats(0.001, 10),
        total_s=st.floats(0, 40),
    ),
    seed=st.integers(0, 1000),
)
def test_no_policy_is_exceeded(policy: RetryPolicy, seed: int) -> None:
    stack = Stack(ALWAYS, policy, seed)
    starts: list[float] = []

    def failing(_: Request) -> Fault:
        starts.append(trio.current_time())
        return Fault()

    stack.faulty.plan = failing

    async def main() -> None:
        with pytest.raises(TransientStorageError):
            await stack.storage.head("k")

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    delays = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert len(starts) <= policy.attempts
    assert starts[-1] - starts[0] <= policy.total_s + 1e-6
    for failures, delay in enumerate(delays, start=1):
        assert delay <= policy.delay_limit_s(failures) + 1e-6


def test_the_limits_of_delays_double_up_to_the_longest() -> None:
    policy = RetryPolicy(base_delay_s=0.5, max_delay_s=3)
    assert [policy.delay_limit_s(n) for n in range(1, 6)] == [0.5, 1, 2, 3, 3]


# A conditional operation whose answer was lost


@pytest.mark.parametrize("size", [0, 1, 100, 101, 250])
@pytest.mark.parametrize("as_file", [False, True])
async def test_put_if_absent_recognises_its_own_object(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int, as_file: bool
) -> None:
    monkeypatch.setattr(retry_module, "COMPARE_BYTES", 100)
    data = random.Random(size).randbytes(size)
    body: bytes | Path = data
    if as_file:
        body = tmp_path / "body"
        body.write_bytes(data)
    stack = Stack(LOST_ONCE, RetryPolicy(base_delay_s=0.001))
    etag = await stack.storage.put_if_absent("k", body)
    assert stack.memory.objects["k"].data == data
    assert etag == stack.memory.objects["k"].etag


@pytest.mark.parametrize("there", [b"another", b"", b"our bytes and more", b"our byteS"])
async def test_put_if_absent_does_not_claim_anothers_object(
    autojump_clock: trio.testing.MockClock, there: bytes
) -> None:
    stack = Stack(FaultAt(1))
    stack.memory.objects["k"] = StoredObject(there, 0)
    with pytest.raises(PreconditionFailed):
        await stack.storage.put_if_absent("k", b"our bytes")
    assert stack.memory.objects["k"].data == there


async def test_put_if_absent_refused_at_once_is_not_compared(autojump_clock: trio.testing.MockClock) -> None:
    stack = Stack(lambda _: None)
    stack.memory.objects["k"] = StoredObject(b"same", 0)
    with pytest.raises(PreconditionFailed):
        await stack.storage.put_if_absent("k", b"same")
    assert stack.requests == 1


async def test_put_if_absent_whose_object_vanished_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def plan(request: Request) -> Fault | None:
        if request.number == 1:
            return Fault(When.AFTER_EFFECT)
        if request.call.operation is Operation.GET:
            del stack.memory.objects["k"]
        return None

    stack = Stack(plan)
    with pytest.raises(PreconditionFailed):
        await stack.storage.put_if_absent("k", b"x")


async def test_put_if_match_recognises_its_own_object(autojump_clock: trio.testing.MockClock) -> None:
    stack = Stack(LOST_ONCE)
    stack.memory.objects["k"] = seen = StoredObject(b"old", 0)
    etag = await stack.storage.put_if_match("k", b"new", seen.etag)
    assert etag == stack.memory.objects["k"].etag
    assert stack.memory.objects["k"].data == b"new"


async def test_put_if_match_does_not_claim_anothers_object(autojump_clock: trio.testing.MockClock) -> None:
    stack = Stack(FaultAt(1))
    stack.memory.objects["k"] = StoredObject(b"another's", 0)
    with pytest.raises(PreconditionFailed):
        await stack.storage.put_if_match("k", b"ours", StoredObject(b"old", 0).etag)


async def test_delete_if_match_recognises_its_own_deletion(autojump_clock: trio.testing.MockClock) -> None:
    stack = Stack(LOST_ONCE)
    stack.memory.objects["k"] = seen = StoredObject(b"x", 0)
    await stack.storage.delete_if_match("k", seen.etag)
    assert not stack.memory.objects


async def test_delete_if_match_does_not_claim_a_changed_object(autojump_clock: trio.testing.MockClock) -> None:
    stack = Stack(FaultAt(1))
    stack.memory.objects["k"] = StoredObject(b"changed", 0)
    with pytest.raises(PreconditionFailed):
        await stack.storage.delete_if_match("k", StoredObject(b"x", 0).etag)
    with pytest.raises(PreconditionFailed):
        await stack.storage.delete_if_match("missing", "etag")


@given(
    faults=st.lists(st.sampled_from([None, When.BEFORE_EFFECT, When.AFTER_EFFECT]), max_size=6),
    operation=st.sampled_from(["put_if_absent", "put_if_match", "delete_if_match"]),
)
def test_alone_every_conditional_operation_succeeds_whatever_is_lost(faults: list[When | None], operation: str) -> None:
    def plan(request: Request) -> Fault | None:
        when = faults[request.number - 1] if request.number <= len(faults) else None
        return Fault(when) if when else None

    stack = Stack(plan, RetryPolicy(attempts=10, total_s=1000))
    stack.memory.objects["there"] = seen = StoredObject(b"old", 0)

    async def main() -> None:
        if operation == "put_if_absent":
            await stack.storage.put_if_absent("k", b"new")
            assert stack.memory.objects["k"].data == b"new"
        elif operation == "put_if_match":
            await stack.storage.put_if_match("there", b"new", seen.etag)
            assert stack.memory.objects["there"].data == b"new"
        else:
            await stack.storage.delete_if_match("there", seen.etag)
            assert not stack.memory.objects

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_each_attempt_is_logged_at_level_debug_with_its_outcome(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="litereplica.storage.wrappers.retry")
    storage = RetryStorage(FaultStorage(MemoryStorage(), FaultAt(1, Operation.GET)), RetryPolicy())
    await storage.put("key", b"12345")
    await storage.get("key")
    put, failed, got = caplog.records
    assert put.message.startswith("put key of ")
    assert (put.sent_bytes, put.received_bytes) == (5, 0)  # type: ignore[attr-defined]
    assert "failed before its effect" in failed.message
    assert "5 bytes received, 0 sent, in " in got.message
