"""Several requests at once, results in order, one error out.

A nursery of trio raises groups of exceptions; a caller of the store wants the one error that ended the work. So the
errors of ours are taken out of the nursery here: that of a job is raised when its turn comes, and ends the others.
Anything else is a bug, or a cancellation, and goes its usual way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeAlias, TypeVar

import trio

from litereplica.errors import LiteReplicaError

T = TypeVar("T")

Job: TypeAlias = Callable[[], Awaitable[T]]


async def gather(jobs: Sequence[Job[T]]) -> list[T]:
    """Run all jobs at once; their results in the jobs' order."""
    results: list[T] = []

    async def keep(result: T) -> bool:
        results.append(result)
        return True

    await in_order(jobs, keep, width=max(1, len(jobs)))
    return results


async def in_order(jobs: Iterable[Job[T]], consume: Callable[[T], Awaitable[bool]], *, width: int) -> None:
    """Run jobs at once, at most `width` of them not yet consumed; `consume` gets their results in order.

    Ends when `consume` returns False; what is under way then is cancelled, as it is by the first error.
    """
    failure: LiteReplicaError | None = None
    async with trio.open_nursery() as nursery:
        waiting: deque[_Running[T]] = deque()
        remaining = iter(jobs)
        try:
            while True:
                while len(waiting) < width and (job := next(remaining, None)) is not None:
                    waiting.append(_Running(job))
                    nursery.start_soon(waiting[-1].run)
                if not waiting or not await consume(await waiting.popleft().result()):
                    break
        except LiteReplicaError as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Running(Generic[T]):
    """A job under way, and what came of it."""

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
