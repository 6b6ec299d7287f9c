"""A replica for the tests of commands: the files of the module's `history` in level 0 of a directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from litereplica.format.names import Layout
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.file import FileStorage
from tests.ltxstore.replicas import History, publish


@pytest.fixture
def replica(tmp_path: Path, history: History) -> str:
    """The URL of the replica at `tmp_path / "replica"`."""
    root = tmp_path / "replica"

    async def fill() -> None:
        store = LTXStore(FileStorage(root), Layout.FILE)
        for txid in range(1, history.txid + 1):
            await publish(store, history, 0, txid, txid)

    trio.run(fill)
    return f"file://{root}"
