"""Storages around a storage: retries, metering, injected latency and injected faults."""

from litereplica.storage.wrappers.delegate import Call, Operation, WrapperStorage
from litereplica.storage.wrappers.faults import Fault, FaultAt, FaultPlan, FaultStorage, Request, When, any_of
from litereplica.storage.wrappers.latency import LatencyStorage
from litereplica.storage.wrappers.metering import MeteredStorage, OperationStatistics, StorageStatistics
from litereplica.storage.wrappers.prefix import PrefixStorage
from litereplica.storage.wrappers.retry import DEFAULT_POLICY, RetryPolicy, RetryStorage

__all__ = [
    "DEFAULT_POLICY",
    "Call",
    "Fault",
    "FaultAt",
    "FaultPlan",
    "FaultStorage",
    "LatencyStorage",
    "MeteredStorage",
    "Operation",
    "OperationStatistics",
    "PrefixStorage",
    "Request",
    "RetryPolicy",
    "RetryStorage",
    "StorageStatistics",
    "When",
    "WrapperStorage",
    "any_of",
]
