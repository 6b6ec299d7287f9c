"""Restoring to every TXID of a long history: DDL, VACUUM, full text, auto-vacuum, and files of all levels."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from litereplica.format.names import SNAPSHOT_LEVEL, format_txid
from litereplica.ltxstore.store import open_ltx_store
from litereplica.restore.restore import restore
from litereplica.testing.litestream import LitestreamError, run_litestream
from tests.helpers.thousand import LongHistory, digest

TXIDS = 1000
SAMPLES_OF_LITESTREAM = (1, 2, 13, 99, 200, 201, 450, 777, 999, 1000)


def integrity(database: bytes) -> str:
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(database)
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


def litestream_database(url: str, txid: int, path: Path) -> bytes:
    """What the real Litestream restores at a TXID."""
    done = run_litestream("restore", "-txid", format_txid(txid), "-o", path, url)
    if done.code != 0:
        raise LitestreamError(f"restore: {done.stderr}{done.stdout}")
    return path.read_bytes()


@pytest.mark.slow
async def test_every_one_of_1000_txids_is_what_the_primary_was(tmp_path: Path) -> None:
    history = LongHistory(tmp_path / "primary", txids=TXIDS)
    history.close()
    store = open_ltx_store(history.url)
    path = tmp_path / "out.db"
    levels: set[int] = set()
    for txid in range(1, TXIDS + 1):
        result = await restore(store, path, target=txid, force=True)
        database = path.read_bytes()
        assert digest(database) == history.digests[txid], txid
        assert integrity(database) == "ok", txid
        levels |= {info.level for info in result.files}
        if txid in SAMPLES_OF_LITESTREAM:
            assert litestream_database(history.url, txid, tmp_path / f"{txid}.db") == database
    assert levels == {0, 1, 2, SNAPSHOT_LEVEL}
    await store.aclose()
