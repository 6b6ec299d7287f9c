"""Writing whole buffers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from litereplica.file_io import fsync_directory, write_all


def test_all_is_written_although_each_call_writes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:3], offset))
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        write_all(fd, b"0123456789", 5)
    finally:
        os.close(fd)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"0123456789"


def test_directory_is_synced_and_not_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    fsync_directory(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
