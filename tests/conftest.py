"""Fixtures that every test may use."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis
import pytest

from litereplica.testing.seaweed import SeaweedServer

# A busy machine stretches single examples at will; what a test may take in all is its own affair.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs the real S3 store."""
    for item in items:
        if "seaweed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


class _Problems(logging.Handler):
    """Keeps the records of level WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Give each test Python's own levels, and undo what it, or a command that it calls in this process, sets up.

    What a fixture of a whole module set up must not decide either which records `caplog` has.
    """
    levels = {None: logging.WARNING, "litereplica": logging.NOTSET}
    loggers = [logging.getLogger(name) for name in levels]
    handlers = [logger.handlers[:] for logger in loggers]
    for logger, level in zip(loggers, levels.values(), strict=True):
        logger.setLevel(level)
    yield
    for logger, level, before in zip(loggers, levels.values(), handlers, strict=True):
        logger.setLevel(level)
        for handler in [each for each in logger.handlers if each not in before]:
            logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def no_undeclared_warning(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in whose process the package logs a WARNING or ERROR that the test does not declare.

    A test declares with `@pytest.mark.logs("regular expression", ...)`, or by asking for `caplog`, whose records it
    checks by itself. The logs of mounts and writers in processes of their own are checked by those who start them.
    """
    problems = _Problems()
    logger = logging.getLogger("litereplica")
    logger.addHandler(problems)
    try:
        yield
    finally:
        logger.removeHandler(problems)
    if "caplog" not in request.fixturenames:
        allowed = [pattern for mark in request.node.iter_markers("logs") for pattern in mark.args]
        undeclared = [line for line in problems.lines if not any(re.search(each, line) for each in allowed)]
        assert not undeclared, f"the test logged what it does not declare: {undeclared}"


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
