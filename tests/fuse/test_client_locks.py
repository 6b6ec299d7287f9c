"""Who reads: the locks of all processes, as /proc has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from litereplica.fuse import client_locks
from litereplica.fuse.client_locks import ProcessFiles


async def test_one_look_serves_all_who_want_the_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "locks"
    table.write_text("1: POSIX  ADVISORY  READ 4711 00:27:4 123 128\n")
    monkeypatch.setattr(client_locks, "_LOCKS", table)
    files = ProcessFiles()
    with files.one_look():
        first = files.locks(max_age_s=0.0)
        table.write_text("")
        assert files.locks(max_age_s=0.0) == first != {}
    assert files.locks(max_age_s=-1.0) == {}
    with files.one_look():
        assert files.locks(max_age_s=0.0) == {}
