"""Storages around a storage: retries, metering, a prefix. Those for tests are in `litereplica.testing`."""

from litereplica.storage.wrappers.delegate import Call, Operation, WrapperStorage
from litereplica.storage.wrappers.metering import MeteredStorage, OperationStatistics, StorageStatistics
from litereplica.storage.wrappers.prefix import PrefixStorage
from litereplica.storage.wrappers.retry import DEFAULT_POLICY, RetryPolicy, RetryStorage

__all__ = [
    "DEFAULT_POLICY",
    "Call",
    "MeteredStorage",
    "Operation",
    "OperationStatistics",
    "PrefixStorage",
    "RetryPolicy",
    "RetryStorage",
    "StorageStatistics",
    "WrapperStorage",
]
