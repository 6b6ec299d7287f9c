"""What requests to a store cost: an estimate by S3's list, whatever the store is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from litereplica.storage.wrappers.delegate import Operation
from litereplica.storage.wrappers.metering import StorageStatistics

_CHEAP_USD, _DEAR_USD = 0.0004 / 1000, 0.005 / 1000

S3_PRICES_USD: Mapping[Operation, float] = MappingProxyType(
    {
        Operation.GET: _CHEAP_USD,
        Operation.HEAD: _CHEAP_USD,
        Operation.LIST: _DEAR_USD,
        Operation.PUT: _DEAR_USD,
        Operation.PUT_IF_ABSENT: _DEAR_USD,
        Operation.PUT_IF_MATCH: _DEAR_USD,
        Operation.DELETE: 0.0,
        Operation.DELETE_IF_MATCH: 0.0,
    }
)
"""US dollars a request: S3 Standard in us-east-1, by its list of 2025. Transfer within a region is free."""


def price_usd(statistics: StorageStatistics) -> float:
    """What these requests cost by the list."""
    return sum(S3_PRICES_USD[operation] * each.requests for operation, each in statistics.by_operation.items())


def is_priced(url: str) -> bool:
    """True if requests to the replica at a URL cost something."""
    return url.startswith("s3://")
