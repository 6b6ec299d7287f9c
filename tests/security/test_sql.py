"""Whoever writes the SQL or the pages of a database: what reads it here ends in bounds, and runs nothing of theirs."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from litereplica.errors import ExitCode
from litereplica.format.names import Layout, file_key
from litereplica.testing.ltx_files import encode_file
from tests.helpers.publisher import Publisher
from tests.security.hostile_files import PAGE_SIZE, header, place
from tests.security.limited import limited, require_orderly

SETUP = "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES (1, zeroblob(9000)), (2, 'two')"


def published(publisher: Publisher, content: bytes) -> None:
    """Publish a database of these bytes as the next TXID, with all checksums right."""
    txid = publisher.txid + 1
    pages = [(i // PAGE_SIZE + 1, content[i : i + PAGE_SIZE]) for i in range(0, len(content), PAGE_SIZE)]
    data = encode_file(header(publisher, txid, txid, commit=len(pages)), pages)
    place(publisher, data, low=txid, high=txid)
    publisher.txid = txid


def huge_payload(content: bytes) -> bytes:
    """The first cell of `t` claims two gigabytes, in an overflow chain that leads back to itself."""
    page = bytearray(content[PAGE_SIZE : 2 * PAGE_SIZE])
    (cell,) = struct.unpack_from(">H", page, 8)
    end = cell
    while page[end] >= 0x80:
        end += 1
    page[cell : end + 1] = b"\x87\xff\xff\xff\x7f"[: end + 1 - cell].rjust(end + 1 - cell, b"\x87")
    return content[:PAGE_SIZE] + bytes(page) + content[2 * PAGE_SIZE :]


def interior(children: int, *, key: int) -> bytes:
    """An interior page of a table of which all children are one page, `children` of them."""
    count = 300
    page = bytearray(PAGE_SIZE)
    struct.pack_into(">BHHHBI", page, 0, 5, 0, count, PAGE_SIZE - 6 * count, 0, children)
    for i in range(count):
        place_of = PAGE_SIZE - 6 * (i + 1)
        struct.pack_into(">H", page, 12 + 2 * i, place_of)
        struct.pack_into(">IBB", page, place_of, children, 0x80 | (key + i) >> 7 & 0x7F, (key + i) & 0x7F)
    return bytes(page)


def tree_without_end(content: bytes) -> bytes:
    """Six levels of interior pages, each with 300 ways to the next one: 10¹⁴ rows."""
    pages = [content[i : i + PAGE_SIZE] for i in range(0, len(content), PAGE_SIZE)]
    leaf = len(pages) + 6
    root = pages[1]
    levels = [interior(len(pages) + 1 + i, key=1) for i in range(6)]
    pages[1] = levels[0]
    pages += [*levels[1:], root]
    assert len(pages) == leaf
    first = bytearray(pages[0])
    struct.pack_into(">I", first, 28, len(pages))
    pages[0] = bytes(first)
    return b"".join(pages)


def page_1_of_another_kind(content: bytes) -> bytes:
    """A line of an authorized_keys file."""
    return b"ssh-ed25519 AAAA attacker\n".ljust(PAGE_SIZE, b"\n") + content[PAGE_SIZE:]


def own_root(content: bytes) -> bytes:
    """The root of `t` is a child of itself."""
    return content[:PAGE_SIZE] + interior(2, key=1) + content[2 * PAGE_SIZE :]


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    each.__name__: each for each in (huge_payload, tree_without_end, own_root, page_1_of_another_kind)
}

BAD = (ExitCode.DAMAGED, ExitCode.ENVIRONMENT)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_diff_of_a_hostile_database_ends_in_bounds(tmp_path: Path, hostile: str) -> None:
    with Publisher(tmp_path, setup=SETUP) as publisher:
        published(publisher, HOSTILE[hostile](publisher.content))
        ended = limited("diff", publisher.url, "--from", f"{1:016x}", "--to", f"{2:016x}")
        require_orderly(ended, *BAD)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("check", ["quick", "full"])
def test_integrity_check_of_a_hostile_database_ends_in_bounds_and_leaves_no_file(
    tmp_path: Path, hostile: str, check: str
) -> None:
    with Publisher(tmp_path, setup=SETUP) as publisher:
        published(publisher, HOSTILE[hostile](publisher.content))
        output = tmp_path / "restored.db"
        require_orderly(limited("restore", "-o", output, "--integrity-check", check, publisher.url), *BAD)
        assert not output.exists()


def test_page_1_that_is_not_sqlites_does_not_become_a_file(tmp_path: Path) -> None:
    with Publisher(tmp_path, setup=SETUP) as publisher:
        published(publisher, page_1_of_another_kind(publisher.content))
        output = tmp_path / "authorized_keys"
        for options in ([], ["--force"]):
            ended = limited("restore", *options, "-o", output, publisher.url)
            require_orderly(ended, ExitCode.DAMAGED)
            assert "not a SQLite database" in ended.stderr
        assert not output.exists()
        assert [path.name for path in tmp_path.glob(".*tmp")] == []


SQL = {
    "check that makes gigabytes": "CREATE TABLE h(x CHECK (length(hex(zeroblob(400000000))) > 0))",
    "index of an expression": "CREATE TABLE h(x); INSERT INTO h VALUES (1);"
    " CREATE INDEX i ON h(length(hex(zeroblob(x * 5))))",
    "generated column": "CREATE TABLE h(x, y AS (zeroblob(x * 900000000))); INSERT INTO h(x) VALUES (1)",
    "view that loads": "CREATE VIEW v AS SELECT load_extension('PLACE')",
    "trigger": "CREATE TABLE h(x); CREATE TRIGGER r AFTER INSERT ON h BEGIN SELECT writefile('PLACE', 'x'); END",
    "names": 'CREATE TABLE "a\x1b[2Jb\u202e"("c\nd"); INSERT INTO "a\x1b[2Jb\u202e" VALUES (x\'1b5b324a\')',
    "virtual table": "CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES ('a')",
}


@pytest.mark.parametrize("sql", SQL)
@pytest.mark.slow
def test_schema_of_a_hostile_database_runs_nothing_and_prints_nothing_raw(tmp_path: Path, sql: str) -> None:
    with Publisher(tmp_path, setup=SETUP) as publisher:
        publisher.connection.executescript(SQL[sql].replace("PLACE", str(tmp_path / "written")))
        publisher.publish()
        ended = limited("diff", publisher.url, "--from", f"{1:016x}", "--to", f"{2:016x}")
        require_orderly(ended, ExitCode.OK, ExitCode.DAMAGED)
        assert b"\x1b" not in ended.raw
        assert "\u202e" not in ended.stdout + ended.stderr
        output = tmp_path / "restored.db"
        ended = limited("restore", "-o", output, "--integrity-check", "full", publisher.url)
        require_orderly(ended, ExitCode.OK, ExitCode.DAMAGED)
    assert not (tmp_path / "written").exists()


def test_planted_sidecar_is_never_applied_to_a_restored_database(tmp_path: Path) -> None:
    with Publisher(tmp_path, setup=SETUP) as publisher:
        output = tmp_path / "out" / "restored.db"
        output.parent.mkdir()
        sidecar = output.with_name("restored.db-journal")
        sidecar.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
        ended = limited("restore", "-o", output, publisher.url)
        require_orderly(ended, ExitCode.USAGE)
        assert sidecar.exists(), "it is not ours to remove"
        assert not output.exists()


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm", "-txid", "-litereplica", "\nx", "\x1b[2J"])
def test_name_in_the_bucket_that_would_do_harm_is_reported_and_not_restored(tmp_path: Path, suffix: str) -> None:
    root = tmp_path / "replica"
    with Publisher(tmp_path / "made", setup=SETUP) as publisher:
        source = publisher.replica / file_key(Layout.FILE, 0, 1, 1)
        for name in ("app.db", f"app.db{suffix}"):
            target = root / name / file_key(Layout.FILE, 0, 1, 1)
            target.parent.mkdir(parents=True)
            os.link(source, target)
        ended = limited("restore", "--all", "-o", tmp_path / "out", f"file://{root}")
        assert ended.code != ExitCode.OK
        require_orderly(ended, ExitCode(ended.code))
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["app.db"]
        assert "1 of 2 databases were not restored" in ended.stderr
    with closing(sqlite3.connect(tmp_path / "out" / "app.db")) as client:
        assert client.execute("SELECT x FROM t WHERE id = 2").fetchall() == [("two",)]
