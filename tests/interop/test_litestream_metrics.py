"""Names and labels of metrics are Litestream's: compared with those of the real one."""

from __future__ import annotations

import re
import socket
import sqlite3
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.testing.litestream import LitestreamProcess
from litereplica.web.families import FAMILIES
from tests.conftest import S3Bucket

pytestmark = pytest.mark.slow

TABLE = Path(__file__).parents[2] / "docs/LITESTREAM.md"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_names_and_labels_are_those_of_litestream(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    database, port = tmp_path / "app.db", free_port()
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x); INSERT INTO t VALUES (1);")
        with LitestreamProcess(database, s3_bucket.url, settings={"addr": f"127.0.0.1:{port}"}) as litestream:
            litestream.sync()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
                text = answer.read().decode()
    lines = re.findall(r"^(litestream_\w+)\{(.*)\} ", text, re.MULTILINE)
    found = {name: set(re.findall(r'(\w+)="', labels)) for name, labels in lines}
    ours = {family.name: set(family.labels) for family in FAMILIES if family.name.startswith("litestream_")}
    assert {"litestream_txid", "litestream_sync_count", "litestream_replica_operation_total"} <= found.keys()
    both = found.keys() & ours.keys()
    assert {name: found[name] for name in both} == {name: ours[name] for name in both}
    row = next(line for line in TABLE.read_text().splitlines() if line.startswith("| `addr`"))
    told = set(re.findall(r"litestream_[a-z0-9_]+", row))
    assert not told & ours.keys()
    lacking = {name for name in found.keys() - ours.keys() if not name.startswith(tuple(told))}
    assert not lacking, "not in the table of differences"
