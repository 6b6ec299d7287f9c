"""A store that fails as a test says.

A plan is a pure function from a request to a fault or None. `FaultAt` is the plan for the n-th request, of some
operations or of all, once or from then on; `any_of` joins plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, TypeVar

from litereplica.errors import StorageError, TransientStorageError
from litereplica.storage.base import Storage
from litereplica.storage.wrappers.delegate import Call, Operation, WrapperStorage

T = TypeVar("T")


class When(Enum):
    """Whether the operation takes effect although it fails."""

    BEFORE_EFFECT = "before"
    AFTER_EFFECT = "after"


@dataclass(frozen=True, slots=True)
class Fault:
    """One failure: its time, and the class of its error."""

    when: When = When.BEFORE_EFFECT
    error: type[StorageError] = TransientStorageError


@dataclass(frozen=True, slots=True)
class Request:
    """A call with its numbers, which begin at 1: among all requests, and among those of its operation."""

    call: Call
    number: int
    number_of_operation: int


FaultPlan: TypeAlias = Callable[[Request], Fault | None]


@dataclass(frozen=True, slots=True)
class FaultAt:
    """The n-th request fails (`n` from 1), of the given operation if there is one; `for_good`: all later too."""

    n: int
    operation: Operation | None = None
    fault: Fault = Fault()
    for_good: bool = False

    def __call__(self, request: Request) -> Fault | None:
        """Return the fault if this request must fail, else None."""
        if self.operation not in (None, request.call.operation):
            return None
        number = request.number if self.operation is None else request.number_of_operation
        due = number >= self.n if self.for_good else number == self.n
        return self.fault if due else None


def any_of(*plans: FaultPlan) -> FaultPlan:
    """The fault of the first plan that has one for a request."""
    return lambda request: next((fault for plan in plans if (fault := plan(request))), None)


class FaultStorage(WrapperStorage):
    """Fails as `plan` says. `plan` may be replaced at any time; the numbers go on."""

    def __init__(self, inner: Storage, plan: FaultPlan) -> None:
        super().__init__(inner)
        self.plan = plan
        self._requests = 0
        self._requests_of: Counter[Operation] = Counter()

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        self._requests += 1
        self._requests_of[call.operation] += 1
        fault = self.plan(Request(call, self._requests, self._requests_of[call.operation]))
        if fault is None:
            return await perform()
        if fault.when is When.AFTER_EFFECT:
            await perform()
        message = f"{call.operation} {call.key} failed {fault.when.value} its effect, as planned"
        raise fault.error(message, key=call.key)
