"""Backups by Litestream 0.3, made by the real one (`golden/`), are restored as Litestream 0.5 restores them."""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import tarfile
from pathlib import Path

import lz4.frame
import pytest

from litereplica.errors import DamagedFile, PointNotFound, UsageError
from litereplica.file_access import FileAccess
from litereplica.format import ltx, wal
from litereplica.format.generations import GenerationName, backup_prefix, parse_key
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.restore.any_format import chosen_backup, restore_any
from litereplica.restore.generations import Backup, BackupResult, find_backup
from litereplica.restore.integrity_check import IntegrityCheck
from litereplica.restore.restore import RestoreResult
from litereplica.testing.litestream import run_litestream
from litereplica.testing.ltx_files import encode_file
from litereplica.times import format_time
from litereplica.types import FileInfo
from tests.conftest import S3Bucket
from tests.helpers.archives import unpack
from tests.ltxstore.replicas import page_of

GOLDEN = Path(__file__).parent / "golden/litestream-0.3.13.tar"
FIRST, SECOND = "0c931269f37fe9e2", "2717047099308279"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The backup, with the times of its files."""
    with tarfile.open(GOLDEN) as archive:
        unpack(archive, tmp_path)
    return tmp_path / "replica"


@pytest.fixture
def store(root: Path) -> LTXStore:
    return open_ltx_store(f"file://{root}")


async def found(store: LTXStore) -> Backup:
    backup = await find_backup(store.storage)
    assert backup is not None
    return backup


def files_of(directory: Path) -> list[Path]:
    """All files below a directory, by the time at which they were written."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path))


def rows(path: Path) -> list[int]:
    connection = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row for (row,) in connection.execute("SELECT x FROM t ORDER BY x")]
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("generations/0123456789abcdef/snapshots/0000000a.snapshot.lz4", ("0123456789abcdef", 10, None)),
        ("generations/0123456789abcdef/wal/00000001_00001000.wal.lz4", ("0123456789abcdef", 1, 4096)),
        ("generations/0123456789abcdef/wal/00000001_100000000.wal.lz4", ("0123456789abcdef", 1, 1 << 32)),
        ("generations/0123456789abcdef/wal/00000001.wal.lz4", None),
        ("generations/0123456789ABCDEF/snapshots/00000000.snapshot.lz4", None),
        ("generations/0123456789abcdef/snapshots/00000000.snapshot.lz4.tmp", None),
        ("x/generations/0123456789abcdef/snapshots/00000000.snapshot.lz4", None),
    ],
)
def test_names(key: str, name: tuple[str, int, int | None] | None) -> None:
    assert parse_key(key) == (None if name is None else GenerationName(*name))
    assert backup_prefix(key) == ("x" if key.startswith("x/") else None if name is None else "")
    assert backup_prefix(f"a/generations/b/{key}") == (
        None if name is None and not key.startswith("x/") else "a/generations/b" + "/x" * key.startswith("x/")
    )


async def test_newest_state_is_that_of_litestream_byte_for_byte(store: LTXStore, tmp_path: Path) -> None:
    result = await restore_any(store, tmp_path / "ours.db", integrity_check=IntegrityCheck.FULL)
    assert isinstance(result, BackupResult)
    assert (result.generation, result.index) == (SECOND, 2)
    done = run_litestream("restore", "-o", tmp_path / "theirs.db", store.url)
    assert done.code == 0, done.stderr
    assert (tmp_path / "ours.db").read_bytes() == (tmp_path / "theirs.db").read_bytes()
    assert result.size == (tmp_path / "ours.db").stat().st_size == result.pages * result.page_size
    assert rows(tmp_path / "ours.db")[-1] == 23


async def test_file_has_the_mode_that_is_wanted(store: LTXStore, tmp_path: Path) -> None:
    await restore_any(store, tmp_path / "out.db", access=FileAccess(0o640, is_wanted=True))
    assert stat.S_IMODE((tmp_path / "out.db").stat().st_mode) == 0o640


@pytest.mark.slow
async def test_every_state_in_time_is_that_of_litestream(store: LTXStore, tmp_path: Path) -> None:
    backup = await found(store)
    times = sorted({file.modified_ms for file in (*backup.snapshots, *backup.pieces)})
    for number, time_ms in enumerate(times[::2]):
        ours, theirs = tmp_path / f"ours{number}.db", tmp_path / f"theirs{number}.db"
        time_ms += 1  # the files have microseconds
        result = await restore_any(store, ours, before_ms=time_ms)
        assert isinstance(result, BackupResult)
        done = run_litestream("restore", "-timestamp", format_time(time_ms), "-o", theirs, store.url)
        assert done.code == 0, done.stderr
        assert ours.read_bytes() == theirs.read_bytes()
        rows(ours)
    with pytest.raises(PointNotFound, match="no snapshot before that time"):
        await restore_any(store, tmp_path / "none.db", before_ms=times[0] - 1000)
    assert not (tmp_path / "none.db").exists()


@pytest.mark.slow
async def test_backup_in_s3_is_restored(root: Path, s3_bucket: S3Bucket, tmp_path: Path) -> None:
    store = open_ltx_store(s3_bucket.url)
    for path in files_of(root / "generations" / SECOND):
        await store.storage.put(str(path.relative_to(root)), path.read_bytes())
    result = await restore_any(store, tmp_path / "ours.db")
    await store.aclose()
    assert isinstance(result, BackupResult)
    done = run_litestream("restore", "-o", tmp_path / "theirs.db", s3_bucket.url)
    assert done.code == 0, done.stderr
    assert (tmp_path / "ours.db").read_bytes() == (tmp_path / "theirs.db").read_bytes()


def _remove_index(root: Path) -> None:
    for path in root.glob(f"generations/{SECOND}/wal/00000001_*"):
        path.unlink()


def _remove_piece(root: Path) -> None:
    (root / f"generations/{SECOND}/wal/00000001_00000cb0.wal.lz4").unlink()


def _remove_first_piece(root: Path) -> None:
    (root / f"generations/{SECOND}/wal/00000001_00000000.wal.lz4").unlink()


def _cut(root: Path) -> None:
    path = root / f"generations/{SECOND}/snapshots/00000001.snapshot.lz4"
    _rewrite(path, path.read_bytes()[:-9])


def _append(root: Path) -> None:
    path = root / f"generations/{SECOND}/snapshots/00000001.snapshot.lz4"
    _rewrite(path, path.read_bytes() + b"more")


def _not_lz4(root: Path) -> None:
    _rewrite(root / f"generations/{SECOND}/wal/00000001_00000cb0.wal.lz4", b"not LZ4 at all")


def _not_a_database(root: Path) -> None:
    _rewrite(root / f"generations/{SECOND}/snapshots/00000001.snapshot.lz4", lz4.frame.compress(bytes(1024)))


def _flipped_frame(root: Path) -> None:
    """A frame of a WAL file that another follows."""
    path = root / f"generations/{SECOND}/wal/00000001_00000cb0.wal.lz4"
    data = bytearray(lz4.frame.decompress(path.read_bytes()))
    data[100] ^= 1
    _rewrite(path, lz4.frame.compress(bytes(data)))


def _claims_all_pages(root: Path) -> None:
    """The last frame of a WAL file, with a right checksum, ends a transaction of 2³² - 1 pages."""
    path = root / f"generations/{SECOND}/wal/00000001_00000238.wal.lz4"
    data = bytearray(lz4.frame.decompress(path.read_bytes()))
    start = len(data) - 536
    head = lz4.frame.decompress((path.parent / "00000001_00000000.wal.lz4").read_bytes())
    header = wal.WALHeader.decode(head)
    before = struct.unpack(">2I", data[start - 520 : start - 512])
    data[start + 4 : start + 8] = b"\xff" * 4
    state = wal.checksum_words(bytes(data[start : start + 8]), before, big_endian=header.big_endian)
    state = wal.checksum_words(bytes(data[start + 24 :]), state, big_endian=header.big_endian)
    data[start + 16 : start + 24] = struct.pack(">2I", *state)
    _rewrite(path, lz4.frame.compress(bytes(data)))
    for later in path.parent.glob("0000000[12]_*"):
        if later.name > path.name:
            later.unlink()


def _rewrite(path: Path, data: bytes) -> None:
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_index, "WAL file 00000001 of this generation, or its beginning, is missing"),
        (_remove_first_piece, "WAL file 00000001 of this generation, or its beginning, is missing"),
        (_remove_piece, "the WAL file before it has 3248 bytes, it begins at 5392"),
        (_cut, "ends before its LZ4 frame does"),
        (_append, "there is something after its LZ4 frame"),
        (_not_lz4, "not a valid LZ4 frame"),
        (_not_a_database, "not a SQLite database"),
        (_claims_all_pages, r"the WAL claims 4294967295 pages for a database of at most \d+"),
        (_flipped_frame, r"the last \d+ bytes of this WAL file are not valid"),
    ],
)
async def test_damage_is_an_error_and_leaves_nothing(
    root: Path, store: LTXStore, tmp_path: Path, damage: object, message: str
) -> None:
    damage(root)  # type: ignore[operator] # a function of this module
    before = files_of(tmp_path)
    with pytest.raises(DamagedFile, match=message) as caught:
        await restore_any(store, tmp_path / "out.db")
    assert caught.value.hint
    assert files_of(tmp_path) == before


@pytest.mark.logs("bytes of the WAL are not valid, and are left out")
async def test_end_of_the_last_wal_file_that_is_not_valid_is_left_out_as_litestream_does(
    root: Path, store: LTXStore, tmp_path: Path
) -> None:
    path = root / f"generations/{SECOND}/wal/00000001_00001f88.wal.lz4"
    (root / f"generations/{SECOND}/wal/00000002_00000000.wal.lz4").unlink()
    data = bytearray(lz4.frame.decompress(path.read_bytes()))
    data[-1] ^= 1
    _rewrite(path, lz4.frame.compress(bytes(data)))
    await restore_any(store, tmp_path / "ours.db")
    assert run_litestream("restore", "-o", tmp_path / "theirs.db", store.url).code == 0
    assert (tmp_path / "ours.db").read_bytes() == (tmp_path / "theirs.db").read_bytes()


async def test_existing_database_is_replaced_on_request_only(store: LTXStore, tmp_path: Path) -> None:
    (tmp_path / "out.db").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        await restore_any(store, tmp_path / "out.db")
    assert (tmp_path / "out.db").read_bytes() == b"mine"
    assert isinstance(await restore_any(store, tmp_path / "out.db", force=True), BackupResult)
    assert rows(tmp_path / "out.db")[-1] == 23


@pytest.mark.parametrize("upgraded", [True, False])
async def test_beside_ltx_files_each_state_is_restored_from_where_it_is(
    upgraded: bool, store: LTXStore, tmp_path: Path
) -> None:
    """After an upgrade to 0.5 the LTX files are newer than the backup, after a return to 0.3 they are older."""
    backup = await found(store)
    first_ms, last_ms = backup.snapshots[0].modified_ms, backup.newest_ms
    time_ms = last_ms + 60_000 if upgraded else first_ms - 60_000
    header = ltx.Header(page_size=512, commit=1, min_txid=1, max_txid=1, timestamp_ms=time_ms)
    info = FileInfo(0, 1, 1, 0, 0)
    await store.put(info, encode_file(header, [(1, page_of(1, 1))]), timestamp_ms=time_ms)

    async def comes_from_ltx(*, before_ms: int | None = None, target: int | None = None) -> bool:
        result = await restore_any(store, tmp_path / "out.db", force=True, before_ms=before_ms, target=target)
        assert (await chosen_backup(store, before_ms=before_ms, target=target) is None) == isinstance(
            result, RestoreResult
        )
        return isinstance(result, RestoreResult)

    assert await comes_from_ltx() == upgraded
    assert await comes_from_ltx(target=1)
    assert not await comes_from_ltx(before_ms=first_ms + 10)
    assert not await comes_from_ltx(before_ms=last_ms + 1)
    assert await comes_from_ltx(before_ms=time_ms + 1)
    assert await comes_from_ltx(before_ms=last_ms + 120_000) == upgraded
