"""Counts the requests to a store, their bytes and their errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from litereplica.errors import NotFound, PreconditionFailed
from litereplica.storage.base import Storage
from litereplica.storage.wrappers.delegate import Call, Operation, WrapperStorage, received_bytes

T = TypeVar("T")

_ANSWERS = frozenset({NotFound.__name__, PreconditionFailed.__name__})


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """Counters of one operation.

    `requests` counts those that have ended, including failed ones; `errors` maps the names of error classes to counts.
    `bytes_sent` and `bytes_received` count bodies only.
    """

    requests: int
    bytes_sent: int
    bytes_received: int
    errors: Mapping[str, int]

    @property
    def failures(self) -> Mapping[str, int]:
        """The errors but those that are answers: that there is no such object, or that a condition is not met."""
        return {name: count for name, count in self.errors.items() if name not in _ANSWERS}


@dataclass(frozen=True, slots=True)
class StorageStatistics:
    """A snapshot of the counters of every operation."""

    by_operation: Mapping[Operation, OperationStatistics]

    @property
    def requests(self) -> int:
        """Requests of all operations."""
        return sum(each.requests for each in self.by_operation.values())


class MeteredStorage(WrapperStorage):
    """Counts requests, bytes and errors by operation. A cancelled operation counts as the error `Cancelled`."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._requests: Counter[Operation] = Counter()
        self._sent: Counter[Operation] = Counter()
        self._received: Counter[Operation] = Counter()
        self._errors: dict[Operation, Counter[str]] = {each: Counter() for each in Operation}

    def statistics(self) -> StorageStatistics:
        """Return a record of the present counts."""
        return StorageStatistics(
            MappingProxyType(
                {
                    each: OperationStatistics(
                        requests=self._requests[each],
                        bytes_sent=self._sent[each],
                        bytes_received=self._received[each],
                        errors=MappingProxyType(dict(self._errors[each])),
                    )
                    for each in Operation
                }
            )
        )

    async def _around(self, call: Call, perform: Callable[[], Awaitable[T]]) -> T:
        sent = call.sent_bytes
        try:
            result = await perform()
        except BaseException as exc:
            self._errors[call.operation][type(exc).__name__] += 1
            raise
        else:
            self._received[call.operation] += received_bytes(result)
            return result
        finally:
            self._requests[call.operation] += 1
            self._sent[call.operation] += sent
