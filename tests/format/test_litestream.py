"""The real Litestream: we read what it wrote, it reads what we wrote, and both compact alike."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from litereplica.format import decoder, ltx, names
from litereplica.format.compactor import compact
from litereplica.format.names import Layout
from litereplica.testing.litestream import LitestreamProcess, litestream_restore
from litereplica.testing.ltx_files import compaction_input, encode_file
from tests.format.builders import GOLDEN, Pages, database, decoded, fold, golden_file

SIZES = [512, 4096, 65536]
COMPACTION_DEADLINE_S = 60.0


def sqlite(db: Path, script: str) -> None:
    subprocess.run(["sqlite3", "-bail", db], input=script, text=True, check=True, capture_output=True)


def ltx_files(root: Path, level: int) -> list[Path]:
    """The files of a level, by TXID."""
    return sorted((root / names.level_prefix(Layout.FILE, level)).glob("*.ltx"))


# --- what Litestream wrote -------------------------------------------------------------------


@pytest.mark.parametrize("txid", [1, 2, 3])
@pytest.mark.parametrize("page_size", SIZES)
def test_golden_files_lead_to_the_database_that_litestream_restored(page_size: int, txid: int) -> None:
    files = [decoded(golden_file(page_size, number)) for number in range(1, txid + 1)]
    assert [(header.min_txid, header.max_txid, header.page_size) for header, _ in files] == [
        (number, number, page_size) for number in range(1, txid + 1)
    ]
    restored = database(*fold(files), page_size)
    expected = (GOLDEN / str(page_size) / "sha256").read_text().split()[txid - 1]
    assert hashlib.sha256(restored).hexdigest() == expected


@pytest.mark.parametrize("page_size", SIZES)
def test_golden_files_encode_again_to_files_of_the_same_meaning(page_size: int) -> None:
    for txid in (1, 2, 3):
        data = golden_file(page_size, txid)
        header, pages = decoded(data)
        assert header.encode() == data[: ltx.HEADER_SIZE]
        again = encode_file(header, pages.items())
        assert decoded(again) == (header, pages)


@pytest.fixture(scope="session")
def litestream_replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a replica that the real Litestream filled: L0 with growth and shrinking, L1, and a snapshot."""
    directory = tmp_path_factory.mktemp("litestream")
    db, root = directory / "app.db", directory / "replica"
    sqlite(
        db,
        "PRAGMA page_size=1024; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL;"
        "CREATE TABLE t(id INTEGER PRIMARY KEY, body);",
    )
    settings = {"levels": [{"interval": "500ms"}], "snapshot": {"interval": "1s"}}
    with LitestreamProcess(db, f"file://{root}", settings=settings) as litestream:
        for step in range(6):
            sqlite(db, "INSERT INTO t(body) SELECT randomblob(700) FROM generate_series(1, 40);")
            litestream.sync()
            sqlite(db, f"DELETE FROM t WHERE id % 7 < {step}; PRAGMA incremental_vacuum;")
            newest = litestream.sync()
        deadline = time.monotonic() + COMPACTION_DEADLINE_S
        while not all(newest in last_txids(root, level) for level in (1, names.SNAPSHOT_LEVEL)):
            assert time.monotonic() < deadline, litestream.log
            time.sleep(0.05)
    return root


def last_txids(root: Path, level: int) -> list[int]:
    parsed = [names.parse_name(path.name) for path in ltx_files(root, level)]
    return [txids[1] for txids in parsed if txids is not None]


def test_every_file_that_litestream_writes_is_read(litestream_replica: Path) -> None:
    paths = [path for level in names.LEVELS for path in ltx_files(litestream_replica, level)]
    assert {path.parent.name for path in paths} == {"0", "1", "9"}
    for path in paths:
        header, _ = decoded(path.read_bytes())
        assert names.parse_name(path.name) == (header.min_txid, header.max_txid)


def test_level_0_leads_to_the_database_that_litestream_restores(litestream_replica: Path, tmp_path: Path) -> None:
    files = [decoded(path.read_bytes()) for path in ltx_files(litestream_replica, 0)]
    commits = [header.commit for header, _ in files]
    assert any(after < before for before, after in pairwise(commits)), "no file shrinks"
    litestream_restore(f"file://{litestream_replica}", tmp_path / "out")
    assert database(*fold(files), 1024) == (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("level", [1, names.SNAPSHOT_LEVEL])
def test_we_compact_level_0_to_what_litestream_compacts_it_to(level: int, litestream_replica: Path) -> None:
    level0 = [decoded(path.read_bytes()) for path in ltx_files(litestream_replica, 0)]
    paths = ltx_files(litestream_replica, level)
    assert paths
    for path in paths:
        theirs, their_pages = decoded(path.read_bytes())
        inputs = [(h, p) for h, p in level0 if theirs.min_txid <= h.min_txid and h.max_txid <= theirs.max_txid]
        ours, our_pages = decoded(
            b"".join(compact([compaction_input(header, pages.items()) for header, pages in inputs]))
        )
        assert our_pages == their_pages
        assert (ours.min_txid, ours.max_txid, ours.commit) == (theirs.min_txid, theirs.max_txid, theirs.commit)
        if level != names.SNAPSHOT_LEVEL:  # a snapshot is made from the database and has a time of its own
            assert ours == theirs


# --- what we write ---------------------------------------------------------------------------


def pages_of(db: Path, page_size: int) -> Pages:
    data = db.read_bytes()
    return {i // page_size + 1: data[i : i + page_size] for i in range(0, len(data), page_size)}


def put(root: Path, level: int, data: bytes) -> None:
    header = decoder.decode_file(data).header
    path = root / names.file_key(Layout.FILE, level, header.min_txid, header.max_txid)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(header.timestamp_ms * 10**6,) * 2)


@pytest.mark.parametrize("page_size", SIZES)
def test_litestream_restores_what_we_wrote_and_compacted(page_size: int, tmp_path: Path) -> None:
    db, now = tmp_path / "app.db", int(time.time() * 1000)
    sqlite(db, f"PRAGMA page_size={page_size}; PRAGMA auto_vacuum=FULL; CREATE TABLE t(id INTEGER PRIMARY KEY, body);")
    before: Pages = {}
    files: list[bytes] = []
    for txid, change in enumerate(
        (
            "INSERT INTO t(body) SELECT randomblob(800) FROM generate_series(1, 200)",
            "UPDATE t SET body = zeroblob(700) WHERE id % 3 = 0",
            "DELETE FROM t WHERE id > 100",
            "INSERT INTO t(body) SELECT hex(randomblob(300)) FROM generate_series(1, 60)",
        ),
        start=1,
    ):
        sqlite(db, change + ";")
        pages = pages_of(db, page_size)
        header = ltx.Header(
            page_size=page_size, commit=len(pages), min_txid=txid, max_txid=txid, timestamp_ms=now + txid
        )
        files.append(encode_file(header, {p: page for p, page in pages.items() if before.get(p) != page}.items()))
        before = pages
        put(tmp_path / "replica", 0, files[-1])
    commits = [decoder.decode_file(data).header.commit for data in files]
    assert any(after < before for before, after in pairwise(commits)), "no file shrinks"

    litestream_restore(f"file://{tmp_path}/replica", tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == db.read_bytes()

    whole = b"".join(compact([compaction_input(header, pages.items()) for header, pages in map(decoded, files)]))
    put(tmp_path / "compacted", names.SNAPSHOT_LEVEL, whole)
    litestream_restore(f"file://{tmp_path}/compacted", tmp_path / "restored again")
    assert (tmp_path / "restored again").read_bytes() == db.read_bytes()
