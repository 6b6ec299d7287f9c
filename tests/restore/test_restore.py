"""Restoring: the bytes that come out, what is refused, and what happens while files vanish or are damaged."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock as Clock

from litereplica.errors import (
    AccessDenied,
    DamagedFile,
    EnvironmentProblem,
    ExitCode,
    GapError,
    NoReplica,
    NotFound,
    PointNotFound,
    UsageError,
)
from litereplica.format import sqlite
from litereplica.format.decoder import decode_file
from litereplica.ltxstore.replan import MAX_PLANS
from litereplica.ltxstore.store import LTXStore
from litereplica.restore import database_builder, output_file, plan_reader
from litereplica.restore.restore import restore
from litereplica.storage.base import Blob, Range
from litereplica.storage.wrappers.delegate import WrapperStorage
from litereplica.storage.wrappers.metering import MeteredStorage
from litereplica.testing.faults import Fault, FaultAt, FaultStorage
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from tests.ltxstore.replicas import PAGE_SIZE, History, make_file, memory_store, page_of, publish, put


def long_history(transactions: int = 12) -> History:
    """Growth, shrink, regrowth and rewrites; some pages are those of the first transaction to the end."""
    history = History()
    rng = random.Random(transactions)
    history.commit(60)
    while history.txid < transactions:
        size = max(50, history.sizes[-1] + rng.choice((-4, -1, 0, 0, 1, 3)))
        history.commit(size, 1, *rng.sample(range(1, size + 1), min(size, 2)))
    return history


async def publish_all(store: LTXStore, history: History) -> None:
    for txid in range(1, history.txid + 1):
        await publish(store, history, 0, txid, txid)


def left_over(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- what comes out --------------------------------------------------------------------------


async def test_database_at_every_txid_is_what_its_transactions_made(tmp_path: Path) -> None:
    history = long_history(25)
    store = memory_store()
    await publish_all(store, history)
    for txid in range(1, history.txid + 1):
        output = tmp_path / f"{txid}.db"
        result = await restore(store, output, target=txid)
        assert output.read_bytes() == history.database(txid)
        assert (result.txid, result.pages, result.size) == (txid, history.sizes[txid - 1], output.stat().st_size)


async def test_any_set_of_files_that_covers_the_history_gives_the_same_database(tmp_path: Path) -> None:
    rng = random.Random(1)
    history = long_history(14)
    for attempt in range(40):
        store = memory_store()
        await publish(store, history, 9, 1, rng.randint(1, history.txid))
        await publish_all(store, history)
        for _ in range(4):
            low, high = sorted((rng.randint(1, 14), rng.randint(1, 14)))
            if not any(info[1:3] == (low, high) for info in map(_fields, await store.list_levels())):
                await publish(store, history, rng.randint(1, 3), low, high)
        output = tmp_path / f"{attempt}.db"
        await restore(store, output)
        assert output.read_bytes() == history.database(history.txid)


def _fields(info: FileInfo) -> tuple[int, int, int]:
    return info.level, info.min_txid, info.max_txid


async def test_pages_dropped_by_a_shrink_do_not_come_back_from_older_files(tmp_path: Path) -> None:
    """Page 3 was dropped at TXID 2; a file that grows the database again without it is not to be believed."""
    history = History()
    history.commit(3)
    history.commit(1, 1)
    store = memory_store()
    await publish_all(store, history)
    bad = make_file({2: page_of(2, 3)}, commit=3, low=3, high=3)
    info = await put(store, 0, 3, 3, bad)
    with pytest.raises(DamagedFile, match="page 3"):
        await restore(store, tmp_path / "out.db")
    await store.delete([info])
    await put(store, 0, 3, 3, make_file({2: page_of(2, 3), 3: page_of(3, 3)}, commit=3, low=3, high=3))
    await restore(store, tmp_path / "out.db")
    assert (tmp_path / "out.db").read_bytes() == page_of(1, 2) + page_of(2, 3) + page_of(3, 3)


async def test_page_size_may_change_where_a_file_holds_the_whole_database(tmp_path: Path) -> None:
    store = memory_store()
    await put(store, 0, 1, 1, make_file({1: b"a" * 512, 2: b"b" * 512}, commit=2, low=1, high=1))
    whole = make_file({1: b"c" * 1024, 2: b"d" * 1024}, commit=2, low=2, high=2, page_size=1024)
    await put(store, 0, 2, 2, whole)
    await restore(store, tmp_path / "out.db")
    assert (tmp_path / "out.db").read_bytes() == b"c" * 1024 + b"d" * 1024


def test_lock_page_is_zeroes_whatever_a_damaged_file_wrote_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PENDING_BYTE", 3 * PAGE_SIZE)  # the real one is behind a gigabyte
    history = History()
    history.commit(6)
    data = history.file(1, 1)
    info = FileInfo(9, 1, 1, len(data))
    with (tmp_path / "out.db").open("w+b") as file:
        made = database_builder.Assembly(file.fileno)
        made.begin([info])
        os.pwrite(file.fileno(), b"x" * 10 * PAGE_SIZE, 0)
        made.open_file(info)
        file_read = decode_file(data)
        made.take(file_read.header, list(zip(file_read.index.pgno.tolist(), file_read.pages, strict=True)))
        made.close_file(file_read.header)
        made.finish()
        assert made.is_complete
        assert file.read() == history.database(1)
    assert history.database(1)[3 * PAGE_SIZE : 4 * PAGE_SIZE] == bytes(PAGE_SIZE)


async def test_large_file_is_read_in_pieces_several_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_reader, "PIECE_BYTES", 1000)
    monkeypatch.setattr(plan_reader, "WHOLE_FILE_LIMIT", 2000)
    history = long_history(3)
    meter = MeteredStorage(MemoryStorage())
    store = memory_store(meter)
    await publish_all(store, history)
    total = 0
    told: list[int] = []

    @contextmanager
    def progress(total_bytes: int) -> Iterator[Callable[[int], None]]:
        nonlocal total
        total = total_bytes
        yield told.append

    await restore(store, tmp_path / "out.db", progress=progress)
    assert (tmp_path / "out.db").read_bytes() == history.database(3)
    first, *others = [info.size for info in await store.list_levels()]
    assert max(others) < 2000 < first
    assert total == first + sum(others) == sum(told)
    assert len(told) == len(others) - (-first // 1000)


async def test_new_file_is_the_users_alone_and_one_that_replaces_another_has_the_mode_of_that(tmp_path: Path) -> None:
    store, output = memory_store(), tmp_path / "out.db"
    await publish_all(store, long_history(2))
    await restore(store, output)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    output.chmod(0o664)
    await restore(store, output, force=True)
    assert stat.S_IMODE(output.stat().st_mode) == 0o664
    assert left_over(tmp_path) == ["out.db"]


async def test_file_that_replaces_another_has_its_owner_and_group(tmp_path: Path) -> None:
    store, output = memory_store(), tmp_path / "out.db"
    await publish_all(store, long_history(2))
    output.touch(mode=0o640)
    owner, group = (12345, 54321) if os.geteuid() == 0 else (os.geteuid(), os.getgroups()[-1])  # root gives files away
    os.chown(output, owner, group)
    await restore(store, output, force=True)
    status = output.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (owner, group, 0o640)


# --- what is refused -------------------------------------------------------------------------


@pytest.fixture
async def ready() -> LTXStore:
    store = memory_store()
    await publish_all(store, long_history(3))
    return store


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
async def test_existing_database_or_sidecar_is_refused_and_kept(tmp_path: Path, ready: LTXStore, suffix: str) -> None:
    existing = tmp_path / f"out.db{suffix}"
    existing.write_bytes(b"precious")
    with pytest.raises(UsageError, match="--force"):
        await restore(ready, tmp_path / "out.db")
    assert existing.read_bytes() == b"precious"
    assert left_over(tmp_path) == [existing.name]


async def test_force_replaces_the_database_and_removes_its_sidecars(tmp_path: Path, ready: LTXStore) -> None:
    for suffix in ("", *output_file.SIDECARS):
        (tmp_path / f"out.db{suffix}").write_bytes(b"old")
    await restore(ready, tmp_path / "out.db", force=True)
    assert left_over(tmp_path) == ["out.db"]
    assert (tmp_path / "out.db").read_bytes() == long_history(3).database(3)


async def test_empty_file_is_replaced_without_force(tmp_path: Path, ready: LTXStore) -> None:
    (tmp_path / "out.db").touch()
    await restore(ready, tmp_path / "out.db")
    assert (tmp_path / "out.db").stat().st_size > 0


async def test_link_is_followed_to_the_file_that_sqlite_would_open(tmp_path: Path, ready: LTXStore) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "there" / "real.db")
    (tmp_path / "there" / "real.db-wal").write_bytes(b"old")
    with pytest.raises(UsageError, match=r"real\.db-wal"):
        await restore(ready, tmp_path / "link.db")
    await restore(ready, tmp_path / "link.db", force=True)
    assert left_over(tmp_path / "there") == ["real.db"]
    assert (tmp_path / "link.db").is_symlink()


@pytest.mark.parametrize("place", ["file/out.db", "file/missing/out.db", "directory"])
async def test_place_that_cannot_hold_a_file_is_refused_even_with_force(
    tmp_path: Path, ready: LTXStore, place: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "directory").mkdir()
    with pytest.raises(UsageError):
        await restore(ready, tmp_path / place, force=True)


async def test_missing_directories_are_made(tmp_path: Path, ready: LTXStore) -> None:
    result = await restore(ready, tmp_path / "a" / "b" / "out.db")
    assert (tmp_path / "a" / "b" / "out.db").stat().st_size == result.size


async def test_directories_that_were_made_for_nothing_are_taken_away(tmp_path: Path, ready: LTXStore) -> None:
    class Failing(WrapperStorage):
        async def get(self, key: str, range: Range | None = None) -> Blob:
            raise AccessDenied(f"{key} may not be read", key=key)

    with pytest.raises(AccessDenied):
        await restore(LTXStore(Failing(ready.storage), ready.layout), tmp_path / "a" / "b" / "out.db")
    assert left_over(tmp_path) == []


async def test_database_that_appears_meanwhile_is_kept(tmp_path: Path, ready: LTXStore) -> None:
    output = tmp_path / "out.db"

    class Appearing(WrapperStorage):
        async def get(self, key: str, range: Range | None = None) -> Blob:
            output.write_bytes(b"precious")
            return await super().get(key, range)

    with pytest.raises(UsageError):
        await restore(LTXStore(Appearing(ready.storage), ready.layout), output)
    assert left_over(tmp_path) == ["out.db"]
    assert output.read_bytes() == b"precious"


async def test_crash_between_any_two_steps_never_leaves_an_old_sidecar_beside_the_new_database(
    tmp_path: Path, ready: LTXStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state that `publish` goes through: the old database with all its sidecars, none at all, or the new one."""
    names = ("", "-wal", "-journal")
    output = tmp_path / "out.db"
    states: list[tuple[bytes | None, frozenset[str]]] = []

    def observe() -> None:
        sidecars = frozenset(suffix for suffix in names[1:] if Path(f"{output}{suffix}").exists())
        states.append((output.read_bytes() if output.exists() else None, sidecars))

    def observed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            observe()
            result = function(*args, **options)
            observe()
            return result

        return call

    for suffix in names:
        (tmp_path / f"out.db{suffix}").write_bytes(b"old")
    for name in ("unlink", "rename"):
        monkeypatch.setattr(os, name, observed(getattr(os, name)))
    await restore(ready, output, force=True)
    new = long_history(3).database(3)
    assert {content for content, _ in states} == {b"old", None, new}
    for content, sidecars in states:
        assert content is None or (content == b"old" and len(sidecars) == 2) or (content == new and not sidecars)


# --- failures --------------------------------------------------------------------------------


async def test_empty_replica_is_named_so(tmp_path: Path) -> None:
    with pytest.raises(NoReplica):
        await restore(memory_store(), tmp_path / "out.db")
    assert left_over(tmp_path) == []


async def test_gap_is_looked_at_twice_then_an_error(autojump_clock: Clock, tmp_path: Path) -> None:
    history = long_history(4)
    store = memory_store(meter := MeteredStorage(MemoryStorage()))
    for txid in (1, 2, 4):
        await publish(store, history, 0, txid, txid)
    before = meter.statistics().requests
    with pytest.raises(GapError):
        await restore(store, tmp_path / "out.db")
    assert meter.statistics().requests - before == 20
    assert left_over(tmp_path) == []


class OnGet(WrapperStorage):
    """Calls `action` with each key before it is read."""

    def __init__(self, inner: MemoryStorage, action: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(inner)
        self._action = action

    async def get(self, key: str, range: Range | None = None) -> Blob:
        await self._action(key)
        return await super().get(key, range)


async def test_files_compacted_and_deleted_while_they_are_read_are_read_from_the_new_file(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    history = long_history(10)
    objects = MemoryStorage()
    store = memory_store(objects)
    await publish_all(store, history)
    done = False

    async def compact(key: str) -> None:
        nonlocal done
        if not done and key.endswith("05.ltx"):
            done = True
            await publish(store, history, 1, 1, 7)
            await store.delete([FileInfo(0, txid, txid, 0) for txid in range(1, 8)])

    result = await restore(memory_store(OnGet(objects, compact)), tmp_path / "out.db", parallelism=1)
    assert done
    assert (tmp_path / "out.db").read_bytes() == history.database(10)
    assert result.files[0].level == 1


async def test_what_was_read_before_a_file_vanished_is_not_read_again(autojump_clock: Clock, tmp_path: Path) -> None:
    history = long_history(10)
    objects = MemoryStorage()
    store = memory_store(objects)
    await publish_all(store, history)
    keys: list[str] = []

    async def compact(key: str) -> None:
        keys.append(key)
        if len(keys) == 6:
            await publish(store, history, 1, 1, 6)
            await store.delete([FileInfo(0, txid, txid, 0) for txid in range(1, 7)])

    await restore(memory_store(OnGet(objects, compact)), tmp_path / "out.db", parallelism=1)
    assert (tmp_path / "out.db").read_bytes() == history.database(10)
    *read, trailer = keys  # of the newest file, for the provenance: the files have no lineage
    assert len(read) == len(set(read))
    assert trailer == store.key(FileInfo(0, 10, 10, 0))


async def test_newer_txid_is_restored_when_the_first_is_no_longer_the_end_of_a_file(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    history = long_history(10)
    objects = MemoryStorage()
    store = memory_store(objects)
    for txid in range(1, 7):
        await publish(store, history, 0, txid, txid)
    done = False

    async def move_on(key: str) -> None:
        nonlocal done
        if not done and key.endswith("03.ltx"):
            done = True
            await publish(store, history, 9, 1, 10)
            await store.delete([FileInfo(0, txid, txid, 0) for txid in range(1, 7)])

    result = await restore(memory_store(OnGet(objects, move_on)), tmp_path / "out.db", parallelism=1)
    assert result.txid == 10
    assert (tmp_path / "out.db").read_bytes() == history.database(10)


async def test_txid_that_was_asked_for_is_kept_when_files_vanish(autojump_clock: Clock, tmp_path: Path) -> None:
    history = long_history(10)
    objects = MemoryStorage()
    store = memory_store(objects)
    await publish_all(store, history)
    compacted = (1, 6)

    async def compact(key: str) -> None:
        if key.endswith("03.ltx"):
            await store.delete([FileInfo(0, txid, txid, 0) for txid in range(1, 7)])
            if not await store.list_level(1):
                await publish(store, history, 1, *compacted)

    reading = memory_store(OnGet(objects, compact))
    assert (await restore(reading, tmp_path / "6.db", target=6, parallelism=1)).txid == 6
    assert (tmp_path / "6.db").read_bytes() == history.database(6)
    await store.delete(await store.list_levels())
    await publish_all(store, history)
    compacted = (1, 7)
    with pytest.raises(PointNotFound, match="the nearest: 0000000000000007"):
        await restore(reading, tmp_path / "other.db", target=6, parallelism=1)


async def test_file_under_another_name_is_damaged(autojump_clock: Clock, tmp_path: Path, ready: LTXStore) -> None:
    info = FileInfo(0, 2, 2, 0)
    await ready.delete([info])
    await put(ready, 0, 2, 2, long_history(3).file(3, 3))
    with pytest.raises(DamagedFile, match="differ from its name") as error:
        await restore(ready, tmp_path / "out.db")
    assert error.value.key == ready.key(info)


async def test_files_that_always_vanish_are_an_error_after_some_plans(autojump_clock: Clock, tmp_path: Path) -> None:
    history = long_history(4)
    store = memory_store(FaultStorage(MemoryStorage(), lambda request: None))
    await publish_all(store, history)
    gone = Fault(error=NotFound)
    faulty = FaultStorage(store.storage, lambda request: gone if request.call.operation == "get" else None)
    meter = MeteredStorage(faulty)
    with pytest.raises(NotFound):
        await restore(memory_store(meter), tmp_path / "out.db")
    assert meter.statistics().requests <= MAX_PLANS * (10 + plan_reader.PARALLELISM)
    assert left_over(tmp_path) == []


def flip(objects: MemoryStorage, key: str, offset: int) -> None:
    data = bytearray(objects.objects[key].data)
    data[offset] ^= 0x10
    objects.objects[key] = type(objects.objects[key])(bytes(data), 0)


async def test_damaged_file_is_avoided_when_others_have_its_transactions(autojump_clock: Clock, tmp_path: Path) -> None:
    history = long_history(8)
    objects = MemoryStorage()
    store = memory_store(objects)
    await publish_all(store, history)
    for level, low, high in ((9, 1, 4), (1, 1, 6), (2, 5, 8)):
        key = store.key(await publish(store, history, level, low, high))
        for offset in (13, 60, 150, len(objects.objects[key].data) - 3):
            flip(objects, key, offset)
            await restore(store, tmp_path / "out.db", force=True)
            assert (tmp_path / "out.db").read_bytes() == history.database(8)
            flip(objects, key, offset)


async def test_damaged_file_without_a_substitute_is_named_and_nothing_is_written(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    history = long_history(5)
    objects = MemoryStorage()
    store = memory_store(objects)
    await publish_all(store, history)
    (tmp_path / "out.db").write_bytes(b"old")
    for txid in (1, 3, 5):
        key = store.key(FileInfo(0, txid, txid, 0))
        flip(objects, key, 160)
        with pytest.raises(DamagedFile) as error:
            await restore(store, tmp_path / "out.db", force=True)
        assert error.value.key == key
        assert error.value.exit_code == ExitCode.DAMAGED
        assert (tmp_path / "out.db").read_bytes() == b"old"
        assert left_over(tmp_path) == ["out.db"]
        flip(objects, key, 160)


async def test_newest_file_without_pages_is_part_of_another_plan_too(autojump_clock: Clock, tmp_path: Path) -> None:
    history = History()
    history.commit(9)
    history.commit(9)
    objects = MemoryStorage()
    store = memory_store(objects)
    await publish_all(store, history)
    await publish(store, history, 1, 1, 1)
    flip(objects, store.key(FileInfo(1, 1, 1, 0)), 160)
    await restore(store, tmp_path / "out.db")
    assert (tmp_path / "out.db").read_bytes() == history.database(2)


async def test_damage_in_the_newest_transaction_is_not_passed_off_as_an_older_latest(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    history = long_history(5)
    objects = MemoryStorage()
    store = memory_store(objects)
    await publish_all(store, history)
    flip(objects, store.key(FileInfo(0, 5, 5, 0)), 160)
    with pytest.raises(DamagedFile):
        await restore(store, tmp_path / "out.db")
    await restore(store, tmp_path / "out.db", target=4)
    assert (tmp_path / "out.db").read_bytes() == history.database(4)


async def test_header_that_claims_a_huge_database_is_refused_before_memory_is_taken(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    store = memory_store()
    await put(store, 0, 1, 1, make_file({1: page_of(1, 1)}, commit=1, low=1, high=1))
    await put(store, 0, 2, 2, make_file({1: page_of(1, 2)}, commit=0xFFFFFFFE, low=2, high=2))
    with pytest.raises(DamagedFile, match="more than the files can hold"):
        await restore(store, tmp_path / "out.db")


async def test_storage_error_ends_it_at_once(tmp_path: Path, ready: LTXStore) -> None:
    denied = FaultStorage(ready.storage, FaultAt(12, fault=Fault(error=AccessDenied), for_good=True))
    with pytest.raises(AccessDenied):
        await restore(memory_store(denied), tmp_path / "out.db")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
async def test_file_system_that_does_not_take_it_is_an_environment_problem(
    tmp_path: Path, ready: LTXStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def pwrite(fd: int, data: bytes, offset: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(EnvironmentProblem, match=r"out\.db") as error:
        await restore(ready, tmp_path / "out.db")
    assert error.value.exit_code == ExitCode.ENVIRONMENT
    assert ("no space left" in error.value.message) == (number != errno.EIO)
    assert left_over(tmp_path) == []


async def test_short_writes_are_continued(tmp_path: Path, ready: LTXStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:100], offset))
    await restore(ready, tmp_path / "out.db")
    assert (tmp_path / "out.db").read_bytes() == long_history(3).database(3)


async def test_cancelled_restore_leaves_nothing(tmp_path: Path, ready: LTXStore) -> None:
    reached = trio.Event()

    async def block(key: str) -> None:
        if key.endswith("01.ltx"):
            reached.set()
            await trio.sleep_forever()

    assert isinstance(ready.storage, MemoryStorage)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restore, memory_store(OnGet(ready.storage, block)), tmp_path / "out.db")
        with trio.fail_after(10):
            await reached.wait()
        assert [name for name in left_over(tmp_path) if name.endswith(".tmp")]
        nursery.cancel_scope.cancel()
    assert left_over(tmp_path) == []
