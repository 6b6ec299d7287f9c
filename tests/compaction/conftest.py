"""Fixtures of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def spool_dir(tmp_path: Path) -> Iterator[Path]:
    """A place for temporary files, of which none may be left."""
    directory = tmp_path / "spool"
    directory.mkdir()
    yield directory
    assert list(directory.iterdir()) == []
