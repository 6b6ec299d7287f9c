"""Back doors: the objects of each backend, reached without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from litereplica.storage.base import Storage
from litereplica.testing.memory import MemoryStorage, StoredObject

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


class BackDoor(Protocol):
    """The objects of a storage, reached behind its back."""

    def write(self, key: str, data: bytes) -> None: ...

    def read(self, key: str) -> bytes | None: ...

    def keys(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """A storage under test and its back door."""

    storage: Storage
    door: BackDoor


@dataclass(frozen=True, slots=True)
class MemoryDoor:
    """The dictionary."""

    storage: MemoryStorage

    def write(self, key: str, data: bytes) -> None:
        self.storage.objects[key] = StoredObject(data, 1_700_000_000_000)

    def read(self, key: str) -> bytes | None:
        stored = self.storage.objects.get(key)
        return stored.data if stored else None

    def keys(self) -> list[str]:
        return sorted(self.storage.objects)


@dataclass(frozen=True, slots=True)
class PrefixDoor:
    """The part of the dictionary that lies below a prefix."""

    storage: MemoryStorage
    prefix: str

    def write(self, key: str, data: bytes) -> None:
        MemoryDoor(self.storage).write(self.prefix + key, data)

    def read(self, key: str) -> bytes | None:
        return MemoryDoor(self.storage).read(self.prefix + key)

    def keys(self) -> list[str]:
        mine = [key for key in self.storage.objects if key.startswith(self.prefix)]
        return sorted(key.removeprefix(self.prefix) for key in mine)


@dataclass(frozen=True, slots=True)
class FileDoor:
    """The directory; the lock is no object."""

    root: Path

    def write(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def read(self, key: str) -> bytes | None:
        path = self.root / key
        return path.read_bytes() if path.exists() else None

    def keys(self) -> list[str]:
        names = [str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()]
        return sorted(name for name in names if name != ".litereplica-lock")


@dataclass(frozen=True, slots=True)
class S3Door:
    """A client of its own."""

    client: S3Client
    bucket: str
    base: str

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self.base + key, Body=data)

    def read(self, key: str) -> bytes | None:
        try:
            return self.client.get_object(Bucket=self.bucket, Key=self.base + key)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None

    def keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.base)
        return sorted(entry["Key"].removeprefix(self.base) for page in pages for entry in page.get("Contents", ()))
