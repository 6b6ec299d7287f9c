"""What a replica asks of its store, by purpose and kind, and what that costs.

Each purpose has a view of the same store, and a caller gets the view of the purpose that it serves. The
price is an estimate: that of S3 by its list, whatever the store is. Sums are counted with what they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from litereplica.ltxstore.store import LTXStore
from litereplica.storage.prices import price_usd
from litereplica.storage.wrappers import MeteredStorage, Operation, OperationStatistics, StorageStatistics


class Purpose(StrEnum):
    """Why a request is made."""

    OPEN = "open"  # listing and indexes at the start
    POLL = "poll"  # the next L0 by its name
    LIST = "list"  # looking for what polling cannot see, and the files found so
    PAGE = "page"  # what a reader waits for, and its neighbourhood
    AHEAD = "ahead"  # what a reader will probably want
    HYDRATE = "hydrate"  # the whole database, in the background
    PAST = "past"  # listings, headers and indexes of past states; their pages are read as any others


@dataclass(frozen=True, slots=True)
class PurposeCosts:
    """Requests of one purpose by operation, those that were made; `usd` is their price in US dollars."""

    by_operation: Mapping[Operation, OperationStatistics]
    usd: float


class RequestCosts:
    """The views of one store."""

    def __init__(self, store: LTXStore) -> None:
        self._meters = {purpose: MeteredStorage(store.storage) for purpose in Purpose}
        self._stores = {purpose: LTXStore(meter, store.layout) for purpose, meter in self._meters.items()}

    def store(self, purpose: Purpose) -> LTXStore:
        """The store as it is asked for one purpose."""
        return self._stores[purpose]

    def statistics(self) -> Mapping[Purpose, PurposeCosts]:
        """The counts of this moment, for every purpose."""
        return MappingProxyType({purpose: _entry(meter.statistics()) for purpose, meter in self._meters.items()})


def _entry(statistics: StorageStatistics) -> PurposeCosts:
    made = {operation: each for operation, each in statistics.by_operation.items() if each.requests}
    return PurposeCosts(MappingProxyType(made), price_usd(statistics))
