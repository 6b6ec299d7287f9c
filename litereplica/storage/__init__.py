"""Opaque objects by key: `file://`, `s3://` and memory behind one contract.

This layer knows nothing of LTX. Importing it does not import boto3.
"""

from litereplica.storage.base import Blob, Body, ByteRange, ObjectInfo, Range, Storage, Suffix
from litereplica.storage.file import FileStorage
from litereplica.storage.memory import MemoryStorage
from litereplica.storage.open import open_storage
from litereplica.storage.url import ReplicaURL, basename, parse_url, redacted
from litereplica.storage.wrappers import (
    FaultStorage,
    LatencyStorage,
    MeteredStorage,
    RetryPolicy,
    RetryStorage,
    StorageStatistics,
)

__all__ = [
    "Blob",
    "Body",
    "ByteRange",
    "FaultStorage",
    "FileStorage",
    "LatencyStorage",
    "MemoryStorage",
    "MeteredStorage",
    "ObjectInfo",
    "Range",
    "ReplicaURL",
    "RetryPolicy",
    "RetryStorage",
    "Storage",
    "StorageStatistics",
    "Suffix",
    "basename",
    "open_storage",
    "parse_url",
    "redacted",
]
