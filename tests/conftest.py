"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis
import pytest

from tests.helpers.seaweed import SeaweedServer

# A busy machine stretches single examples at will; what a test may take in all is its own affair.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@dataclass(frozen=True, slots=True)
class S3Bucket:
    """A fresh bucket; `url` is a replica URL in it, with the credentials in this process's environment."""

    server: SeaweedServer
    name: str
    url: str


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """One real S3 store for the whole run."""
    with SeaweedServer(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def s3_bucket(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    """A fresh bucket on the real S3 store."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    for name, value in seaweed.credentials().items():
        monkeypatch.setenv(name, value)
    bucket = seaweed.create_bucket()
    return S3Bucket(server=seaweed, name=bucket, url=seaweed.url(bucket, "app.db"))
