"""S3 through obstore keeps the contract on a real store."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from litereplica.storage.s3_obstore import ObstoreS3Storage
from litereplica.storage.url import parse_url
from litereplica.testing.back_doors import S3Door, Subject
from litereplica.testing.conformance import StorageConformance
from litereplica.testing.seaweed import SeaweedServer

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def client(seaweed: SeaweedServer) -> Iterator[S3Client]:
    with seaweed.client() as client:
        yield client


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedServer) -> str:
    return seaweed.create_bucket()


@pytest.fixture
async def subject(
    seaweed: SeaweedServer, bucket: str, client: S3Client, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Subject]:
    """A path of its own in one bucket."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    for name, value in seaweed.credentials().items():
        monkeypatch.setenv(name, value)
    path = f"tests/{next(_numbers)} é"
    async with ObstoreS3Storage(parse_url(seaweed.url(bucket, path))) as storage:
        yield Subject(storage, S3Door(client, bucket, path + "/"))


class TestObstore(StorageConformance):
    """The fixture `subject` of this module."""
