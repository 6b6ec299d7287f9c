"""Structured concurrency in which one of our errors ends the work and is raised as it is.

A nursery of trio raises groups of exceptions, while a caller of the store wants the one error that ended the work.
`open_nursery` unwraps it; `gather` and `in_order` run jobs in such a nursery. A bug or a cancellation from outside goes
before our errors, and is raised in a group as usual.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeAlias, TypeVar

import trio

from litereplica.errors import LiteReplicaError

T = TypeVar("T")

Job: TypeAlias = Callable[[], Awaitable[T]]


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that raises the first `LiteReplicaError` of its block and tasks bare, after cancelling the others."""
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        ours, others = group.split(LiteReplicaError)
        if others is not None:
            raise others from None
        assert isinstance(ours, ExceptionGroup)
        failure = first_error(ours)
    if failure is not None:  # outside of the handler: the group is not its context
        raise failure


async def gather(jobs: Sequence[Job[T]], *, width: int | None = None) -> list[T]:
    """Run all jobs at once, or `width` at a time, and return their results in the jobs' order.

    The first `LiteReplicaError` cancels the other jobs and is raised.
    """
    results: dict[int, T] = {}
    numbered = iter(enumerate(jobs))

    async def work() -> None:
        for i, job in numbered:
            results[i] = await job()

    async with open_nursery() as nursery:
        for _ in range(min(width or len(jobs), len(jobs))):
            nursery.start_soon(work)
    return [results[i] for i in range(len(jobs))]


async def in_order(
    jobs: Iterable[Job[T]], consume: Callable[[T], Awaitable[bool]], *, width: int | Callable[[], int]
) -> None:
    """Run jobs at once, at most `width` of them not yet consumed; pass their results to `consume` in order.

    A function as `width` is asked before each job is started. Ends when `consume` returns False, and cancels the jobs
    under way then. The error of a job is raised when its turn comes, so that every earlier result has been consumed.
    """
    async with open_nursery() as nursery:
        waiting: deque[_Running[T]] = deque()
        remaining = iter(jobs)
        while True:
            while (
                len(waiting) < (width if isinstance(width, int) else width())
                and (job := next(remaining, None)) is not None
            ):
                waiting.append(_Running(job))
                nursery.start_soon(waiting[-1].run)
            if not waiting or not await consume(await waiting.popleft().result()):
                break
        nursery.cancel_scope.cancel()


class _Running(Generic[T]):
    """A job under way, and its outcome."""

    def __init__(self, job: Job[T]) -> None:
        self._job = job
        self._done = trio.Event()
        self._outcome: list[T] | LiteReplicaError = []

    async def run(self) -> None:
        try:
            self._outcome = [await self._job()]
        except LiteReplicaError as exc:
            self._outcome = exc
        self._done.set()

    async def result(self) -> T:
        await self._done.wait()
        if isinstance(self._outcome, LiteReplicaError):
            raise self._outcome
        return self._outcome[0]


def first_error(error: Exception) -> Exception:
    """Return the first exception in a group of groups; the exception itself if it is no group."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
