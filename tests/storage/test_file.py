"""Files keep the contract, are durable, and nothing leaves the root."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from litereplica.errors import AccessDenied, NotFound, PreconditionFailed, StorageError, TransientStorageError
from litereplica.file_access import FileAccess
from litereplica.storage import file_operations as files
from litereplica.storage.file import FileStorage
from litereplica.testing.back_doors import FileDoor, Subject
from litereplica.testing.conformance import StorageConformance
from tests.helpers.waiting import wait_until


def is_there(path: Path) -> bool:
    return path.exists()


class TestFile(StorageConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        root = tmp_path / "made" / "by the first put"
        return Subject(FileStorage(root), FileDoor(root))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def storage(root: Path) -> FileStorage:
    root.mkdir()
    return FileStorage(root)


async def test_a_missing_root_is_empty_and_is_not_made_by_readers(root: Path) -> None:
    storage = FileStorage(root)
    assert await storage.list("") == []
    with pytest.raises(NotFound):
        await storage.get("k")
    with pytest.raises(PreconditionFailed):
        await storage.delete_if_match("k", "etag")
    await storage.delete(["k"])
    assert not is_there(root)


async def test_a_root_that_has_gone_is_an_outage_for_who_has_read_from_it(storage: FileStorage, root: Path) -> None:
    await storage.put("a/k", b"x")
    await storage.get("a/k")
    with pytest.raises(NotFound):
        await storage.get("a/next")
    away = root.with_name("away")
    os.rename(root, away)  # noqa: PTH104
    for ask in (storage.get, storage.head):
        with pytest.raises(TransientStorageError, match=r"the directory of file://.*/root has gone"):
            await ask("a/next")
    assert not is_there(root)
    os.rename(away, root)  # noqa: PTH104
    with pytest.raises(NotFound):
        await storage.get("a/next")
    os.rename(root, away)  # noqa: PTH104
    await storage.put("a/next", b"a writer makes its root")
    assert (await storage.get("a/next")).size == 23


async def test_the_time_is_the_files_mtime(storage: FileStorage, root: Path) -> None:
    await storage.put("k", b"x", modified_ms=1_700_000_000_123)
    assert (root / "k").stat().st_mtime_ns == 1_700_000_000_123_000_000
    assert (await storage.list("k"))[0].modified_ms == 1_700_000_000_123


async def test_file_and_directories_are_fsynced_before_put_returns(
    storage: FileStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        synced.append("temporary" if path.name.startswith(files.TEMPORARY_PREFIX) else path.name)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    await storage.put("a/b/k", b"x")
    assert synced == ["root", "a", "temporary", "b"]


@pytest.mark.parametrize("link_at", ["secret", "sub"])
async def test_no_symbolic_link_is_followed(storage: FileStorage, root: Path, tmp_path: Path, link_at: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"s")
    if link_at == "secret":
        (root / "sub").mkdir()
        (root / "sub" / "secret").symlink_to(outside / "secret")
    else:
        (root / "sub").symlink_to(outside)
    for read in (storage.get, storage.head):
        with pytest.raises(StorageError):
            await read("sub/secret")
    assert await storage.list("") == await storage.list("sub/") == []
    if link_at == "sub":
        with pytest.raises(StorageError):
            await storage.put("sub/new", b"x")
        await storage.delete(["sub/secret"])
    else:
        await storage.put("sub/secret", b"replaces the link")
    assert (outside / "secret").read_bytes() == b"s"
    assert [path.name for path in outside.iterdir()] == ["secret"]


async def test_a_root_behind_a_link_is_the_users_choice(storage: FileStorage, root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    await FileStorage(tmp_path / "link").put("k", b"x")
    assert (await storage.get("k")).data == b"x"


async def test_a_directory_and_a_fifo_are_no_objects(storage: FileStorage, root: Path) -> None:
    (root / "directory").mkdir()
    os.mkfifo(root / "fifo")
    for key in ("directory", "fifo"):
        with pytest.raises(NotFound):
            await storage.get(key)
    assert await storage.list("") == []


async def test_temporary_files_are_not_listed_and_old_ones_are_removed(
    storage: FileStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = root / (files.TEMPORARY_PREFIX + "0123")
    left.write_bytes(b"half")
    assert await storage.list("") == []
    await storage.put("k", b"x")
    assert left.exists()
    monkeypatch.setattr(files, "STALE_TEMPORARY_S", -1.0)
    await FileStorage(root).put("k", b"x")
    assert not left.exists()


@pytest.mark.parametrize("key", [".litereplica-lock", ".litereplica-tmp-1", "a/.litereplica-x/b"])
async def test_names_of_the_store_itself_are_refused(storage: FileStorage, key: str) -> None:
    with pytest.raises(StorageError, match="reserved"):
        await storage.put(key, b"x")


async def test_a_put_that_fails_leaves_nothing(storage: FileStorage, root: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        await storage.put("k", tmp_path / "missing")
    assert FileDoor(root).keys() == []


async def test_a_cancelled_copy_leaves_nothing(
    storage: FileStorage, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    monkeypatch.setattr(files, "CHUNK_BYTES", 1)  # 100,000 system calls: long enough to be cancelled in
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storage.put, "k", source)
        await wait_until(lambda: any(path.stat().st_size for path in root.glob(".litereplica-tmp-*")))
        nursery.cancel_scope.cancel()
    assert FileDoor(root).keys() == []


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        ("EACCES", AccessDenied, "let this user"),
        ("EROFS", AccessDenied, "let this user"),
        ("ENOSPC", StorageError, "free space"),
        ("EDQUOT", StorageError, "free space"),
        ("EIO", StorageError, "check the directory"),
        ("ESTALE", TransientStorageError, "see whether"),
        ("EMFILE", TransientStorageError, "see whether"),
    ],
)
async def test_errors_of_the_system_become_ours(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, number: str, kind: type[StorageError], hint: str
) -> None:
    import errno

    code = getattr(errno, number)

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    await storage.put("0000/k", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as caught:
        await storage.put("0000/k", b"new")
    assert type(caught.value) is kind
    assert caught.value.key == "0000/k"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)
    assert (await storage.get("0000/k")).data == b"old"


async def test_a_file_in_the_place_of_a_directory(storage: FileStorage, root: Path) -> None:
    await storage.put("a", b"x")
    with pytest.raises(NotFound):
        await storage.get("a/b")
    with pytest.raises(StorageError, match="Not a directory"):
        await storage.put("a/b", b"x")
    await storage.put("c/d", b"x")
    with pytest.raises(StorageError):
        await storage.put("c", b"x")


async def test_a_small_object_of_same_inode_size_and_time_has_another_etag(storage: FileStorage, root: Path) -> None:
    before = await storage.put("lease", b"mine", modified_ms=1000)
    inode = (root / "lease").stat().st_ino
    with (root / "lease").open("r+b") as file:
        file.write(b"your")
    os.utime(root / "lease", ns=(1_000_000_000, 1_000_000_000))
    assert (root / "lease").stat().st_ino == inode
    with pytest.raises(PreconditionFailed):
        await storage.put_if_match("lease", b"mine", before)
    assert (root / "lease").read_bytes() == b"your"


async def test_large_objects_of_equal_size_have_different_etags(storage: FileStorage) -> None:
    etags = {await storage.put("k", bytes([n]) * 10_000) for n in range(20)}
    assert len(etags) == 20


async def test_a_lock_that_is_never_released_ends_in_an_error(
    storage: FileStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_TIMEOUT_S", 0.05)
    with files.exclusive_lock(root), pytest.raises(TransientStorageError, match="another process"):
        await storage.put("k", b"x")


CONTENDER = """
import sys, trio
from pathlib import Path
from litereplica.errors import PreconditionFailed
from litereplica.storage.file import FileStorage

async def main():
    storage = FileStorage(Path(sys.argv[1]))
    wins = 0
    while wins < 50:
        seen = await storage.get("counter")
        try:
            await storage.put_if_match("counter", b"%d" % (int(seen.data) + 1), seen.etag)
            wins += 1
        except PreconditionFailed:
            pass

trio.run(main)
"""


def test_processes_that_increment_a_counter_lose_no_increment(root: Path) -> None:
    trio.run(FileStorage(root).put, "counter", b"0")
    processes = [subprocess.Popen([sys.executable, "-c", CONTENDER, str(root)]) for _ in range(3)]
    try:
        for process in processes:
            assert process.wait(timeout=60) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert (root / "counter").read_bytes() == b"150"


async def test_new_files_follow_the_umask(storage: FileStorage, root: Path) -> None:
    old = os.umask(0o027)
    try:
        await storage.put("sub/k", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((root / "sub" / "k").stat().st_mode) == 0o640
    assert stat.S_IMODE((root / "sub").stat().st_mode) == 0o750


async def test_objects_are_no_more_accessible_than_the_limit_of_their_prefix(storage: FileStorage, root: Path) -> None:
    storage.set_access(FileAccess(0o600), prefix="private/")
    storage.set_access(FileAccess(0o644), prefix="public/")
    for key in ("private/ltx/k", "public/ltx/k", "k"):
        await storage.put(key, b"x")
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("private", "private/ltx", "private/ltx/k")}
    assert modes == {"private": 0o700, "private/ltx": 0o700, "private/ltx/k": 0o600}
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("public", "public/ltx", "public/ltx/k", "k")}
    assert modes == {"public": 0o755, "public/ltx": 0o755, "public/ltx/k": 0o644, "k": 0o644}


async def test_process_that_knows_no_limit_follows_the_directory(storage: FileStorage, root: Path) -> None:
    storage.set_access(FileAccess(0o600))
    await storage.put("ltx/0/k", b"x")
    other = FileStorage(root)
    await other.put("ltx/0/other", b"x")
    await other.put("ltx/1/other", b"x")
    assert [stat.S_IMODE((root / key).stat().st_mode) for key in ("ltx/0/other", "ltx/1", "ltx/1/other")] == [
        0o600,
        0o700,
        0o600,
    ]


async def test_a_directory_without_objects_is_not_listed(storage: FileStorage, root: Path) -> None:
    for key in ("a.db/ltx/0/k", "b.db/ltx/0/k"):
        await storage.put(key, b"x")
    await storage.delete(["a.db/ltx/0/k"])
    (root / "link").symlink_to(root / "b.db")
    assert (root / "a.db" / "ltx" / "0").is_dir()
    assert (await storage.list_directory("")).directories == ["b.db"]
