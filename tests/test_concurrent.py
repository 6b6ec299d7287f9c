"""Jobs at once: order, bounds, and one plain error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from litereplica.concurrent import gather, in_order, open_nursery
from litereplica.errors import NotFound, StorageError


async def after(seconds: float, value: int) -> int:
    await trio.sleep(seconds)
    return value


async def fail(seconds: float, error: Exception) -> int:
    await trio.sleep(seconds)
    raise error


async def test_results_come_in_the_order_of_the_jobs(autojump_clock: trio.testing.MockClock) -> None:
    assert await gather([partial(after, 3, 1), partial(after, 1, 2), partial(after, 2, 3)]) == [1, 2, 3]
    assert trio.current_time() == pytest.approx(3)


async def test_no_jobs_give_no_results() -> None:
    assert await gather([]) == []


async def test_no_more_jobs_than_allowed_run_or_wait(autojump_clock: trio.testing.MockClock) -> None:
    started = 0
    most = 0
    consumed: list[int] = []

    async def job(number: int) -> int:
        nonlocal started, most
        started += 1
        most = max(most, started - len(consumed))
        return await after(1, number)

    async def consume(number: int) -> bool:
        await trio.sleep(10)
        consumed.append(number)
        return True

    await in_order([partial(job, number) for number in range(20)], consume, width=4)
    assert consumed == list(range(20))
    assert most == 4  # the one with the consumer included


async def test_error_is_raised_bare_when_its_turn_comes(autojump_clock: trio.testing.MockClock) -> None:
    seen: list[int] = []

    async def consume(number: int) -> bool:
        seen.append(number)
        return True

    jobs = [partial(after, 5, 1), partial(fail, 1, NotFound("gone", key="k")), partial(after, 100, 3)]
    with pytest.raises(NotFound):
        await in_order(jobs, consume, width=3)
    assert seen == [1]
    assert trio.current_time() == pytest.approx(5)


async def test_error_of_the_consumer_is_raised_bare() -> None:
    async def consume(number: int) -> bool:
        raise StorageError("full")

    with pytest.raises(StorageError):
        await in_order([partial(after, 0, 1)], consume, width=1)


async def test_consumer_that_has_enough_ends_the_rest(autojump_clock: trio.testing.MockClock) -> None:
    async def consume(number: int) -> bool:
        return number < 2

    jobs = [partial(after, 1, 1), partial(after, 1, 2), partial(fail, 1, NotFound("not needed"))]
    await in_order(jobs, consume, width=3)
    assert trio.current_time() == pytest.approx(1)


async def test_bug_stays_in_its_group() -> None:
    with pytest.raises(ExceptionGroup) as error:
        await gather([partial(fail, 0, KeyError("bug"))])
    assert isinstance(error.value.exceptions[0], KeyError)


async def test_gather_keeps_to_its_width(autojump_clock: trio.testing.MockClock) -> None:
    assert await gather([partial(after, 1, number) for number in range(5)], width=2) == [0, 1, 2, 3, 4]
    assert trio.current_time() == pytest.approx(3)


async def test_first_error_of_gather_cancels_the_other_jobs(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(NotFound):
        await gather([partial(after, 100, 1), partial(fail, 1, NotFound("gone", key="k"))])
    assert trio.current_time() == pytest.approx(1)


async def test_nursery_raises_the_first_error_of_its_block_or_tasks_bare(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def fail_twice() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(fail, 1, NotFound("gone", key="k"))
            nursery.start_soon(fail, 2, StorageError("too late"))
            await trio.sleep(10)

    async def fail_in_block() -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise StorageError("full")

    with pytest.raises(NotFound):
        await fail_twice()
    assert trio.current_time() == pytest.approx(1)
    with pytest.raises(StorageError):
        await fail_in_block()


async def test_cancellation_from_outside_goes_before_an_error() -> None:
    with trio.CancelScope() as scope:
        calls: list[Callable[[], Awaitable[None]]] = [partial(fail_when_cancelled, scope), trio.sleep_forever]
        await gather(calls)
    assert scope.cancelled_caught


async def fail_when_cancelled(scope: trio.CancelScope) -> None:
    scope.cancel()
    try:
        await trio.sleep_forever()
    except trio.Cancelled as exc:
        raise StorageError("cut off") from exc
