"""A bucket of the real S3 store for each module."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

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
def credentials(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's key pair, in this process's environment."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    for name, value in seaweed.credentials().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def fresh_path() -> str:
    """A path of the test's own in the bucket."""
    return f"tests/{next(_numbers)} é"
