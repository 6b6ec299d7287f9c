"""S3 through requests of our own keeps the contract on a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from litereplica.storage.s3_direct import DirectS3Storage
from litereplica.storage.url import parse_url
from litereplica.testing.back_doors import S3Door, Subject
from litereplica.testing.conformance import StorageConformance
from litereplica.testing.seaweed import SeaweedServer

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


@pytest.fixture
async def subject(
    seaweed: SeaweedServer, bucket: str, client: S3Client, credentials: None, fresh_path: str
) -> AsyncIterator[Subject]:
    async with DirectS3Storage(parse_url(seaweed.url(bucket, fresh_path))) as storage:
        yield Subject(storage, S3Door(client, bucket, fresh_path + "/"))


class TestDirect(StorageConformance):
    """The fixture `subject` of this module."""
