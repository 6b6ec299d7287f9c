"""Pages on the local disk: kept over restarts, and right or a miss whatever happens to the files."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litereplica.errors import EnvironmentProblem
from litereplica.replica import disk_pages
from litereplica.replica.cache_files import RECORD, write_all
from litereplica.replica.disk_pages import DiskPages, open_disk_pages
from litereplica.replica.page_key import PageKey, page_key

PAGE_SIZE = 512
CHECKSUM = 1 << 63 | 0xABCDEF


def page(n: int) -> bytes:
    return random.Random(n).randbytes(PAGE_SIZE)


def pages(*numbers: int) -> dict[PageKey, bytes]:
    return {page_key(CHECKSUM, n): page(n) for n in numbers}


async def reopened(directory: Path, keys: list[PageKey], *, slots: int = 64) -> dict[PageKey, bytes]:
    """What a new process finds."""
    async with open_disk_pages(directory, size=slots * PAGE_SIZE, page_size=PAGE_SIZE) as disk:
        assert disk is not None
        return await disk.read(keys)


def read_now(disk: DiskPages, keys: list[PageKey]) -> dict[PageKey, bytes] | None:
    """What can be had of the disk without waiting."""
    content = bytearray(len(keys) * PAGE_SIZE)
    places = [memoryview(content)[i * PAGE_SIZE : (i + 1) * PAGE_SIZE] for i in range(len(keys))]
    if not disk.read_now(keys, places):
        return None
    return {key: bytes(place) for key, place in zip(keys, places, strict=True)}


async def fill(directory: Path, contents: dict[PageKey, bytes], *, slots: int = 64) -> None:
    async with open_disk_pages(directory, size=slots * PAGE_SIZE, page_size=PAGE_SIZE) as disk:
        assert disk is not None
        disk.write_soon(contents)


async def test_pages_survive_a_restart(tmp_path: Path) -> None:
    await fill(tmp_path / "cache", pages(*range(1, 41)))
    wanted = pages(*range(1, 50))
    assert await reopened(tmp_path / "cache", list(wanted)) == pages(*range(1, 41))


async def test_pages_in_any_order_are_read_without_waiting_if_all_are_there(tmp_path: Path) -> None:
    await fill(tmp_path / "cache", pages(*range(1, 41)))
    async with open_disk_pages(tmp_path / "cache", size=64 * PAGE_SIZE, page_size=PAGE_SIZE) as disk:
        assert disk is not None
        for numbers in ([7], [3, 4, 5, 6], [9, 8, 30, 31, 1], list(range(1, 41)), [5, 5]):
            assert read_now(disk, [page_key(CHECKSUM, n) for n in numbers]) == pages(*numbers)
        assert read_now(disk, list(pages(1, 2, 41))) is None
        assert read_now(disk, [page_key(CHECKSUM + 1, 1)]) is None
        disk.write_soon(pages(41))
        assert read_now(disk, list(pages(41))) is None, "it is not on disk yet"
        await written(disk)
        assert read_now(disk, list(pages(40, 41))) == pages(40, 41)


async def test_a_page_is_known_by_its_content_not_by_its_number_alone(tmp_path: Path) -> None:
    await fill(tmp_path / "cache", pages(1))
    assert await reopened(tmp_path / "cache", [page_key(CHECKSUM + 1, 1)]) == {}


async def test_the_files_never_outgrow_their_size_and_the_newest_pages_stay(tmp_path: Path) -> None:
    for n in range(0, 100, 10):
        await fill(tmp_path / "cache", pages(*range(n + 1, n + 11)), slots=16)
    assert (tmp_path / "cache" / "pages").stat().st_size <= 16 * PAGE_SIZE
    found = await reopened(tmp_path / "cache", list(pages(*range(1, 101))), slots=16)
    assert set(pages(*range(91, 101))) <= set(found)
    assert len(found) == 16


async def test_a_page_that_is_read_is_passed_over_once(tmp_path: Path) -> None:
    async with open_disk_pages(tmp_path / "cache", size=4 * PAGE_SIZE, page_size=PAGE_SIZE) as disk:
        assert disk is not None
        for batch in (pages(1, 2, 3, 4), pages(5), pages(6)):
            disk.write_soon(batch)
            await written(disk)
            assert list(await disk.read(list(pages(1)))) == list(pages(1))
        assert await disk.read(list(pages(1, 2, 3, 4, 5, 6))) == pages(1, 4, 5, 6)


async def test_a_smaller_size_keeps_what_fits(tmp_path: Path) -> None:
    await fill(tmp_path / "cache", pages(*range(1, 41)))
    found = await reopened(tmp_path / "cache", list(pages(*range(1, 41))), slots=8)
    assert found == pages(*range(1, 9))
    assert (tmp_path / "cache" / "pages").stat().st_size == 8 * PAGE_SIZE


async def test_another_page_size_begins_anew(tmp_path: Path) -> None:
    await fill(tmp_path / "cache", pages(1, 2))
    async with open_disk_pages(tmp_path / "cache", size=1 << 20, page_size=1024) as disk:
        assert disk is not None
        assert await disk.read(list(pages(1, 2))) == {}
    assert await reopened(tmp_path / "cache", list(pages(1, 2))) == {}


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << (position % 8)
    path.write_bytes(data)


def cut(path: Path, position: int) -> None:
    path.write_bytes(path.read_bytes()[: position % path.stat().st_size])


def exchange(path: Path, position: int) -> None:
    """Put the first bytes somewhere else: records and pages change their places."""
    width = RECORD.itemsize if path.name == "slots" else PAGE_SIZE
    data = path.read_bytes()
    slot = position % (len(data) // width) * width
    path.write_bytes(data[:slot] + data[:width] + data[slot + width :])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    damages=st.lists(
        st.tuples(st.sampled_from([flip, cut, exchange]), st.sampled_from(["pages", "slots"]), st.integers(0, 1 << 20)),
        min_size=1,
        max_size=4,
    )
)
def test_damage_is_a_miss_and_never_wrong_bytes(
    tmp_path_factory: pytest.TempPathFactory, damages: list[tuple[Callable[[Path, int], None], str, int]]
) -> None:
    cache = tmp_path_factory.mktemp("damage") / "cache"
    contents = pages(*range(1, 13))

    async def run() -> None:
        await fill(cache, contents)
        for damage, name, position in damages:
            if (cache / name).stat().st_size >= PAGE_SIZE:
                damage(cache / name, position)
        async with open_disk_pages(cache, size=64 * PAGE_SIZE, page_size=PAGE_SIZE) as disk:
            assert disk is not None
            singly = [read_now(disk, [key]) for key in contents]
            at_once = read_now(disk, list(contents))
            found = await disk.read(list(contents))
            assert found.items() <= contents.items()
            assert all(each is None or each.items() <= found.items() for each in [at_once, *singly])
            disk.write_soon(contents)
        assert await reopened(cache, list(contents)) == contents

    trio.run(run)


@pytest.mark.parametrize("name", ["pages", "slots"])
async def test_a_file_of_another_cache_gives_no_wrong_page(tmp_path: Path, name: str) -> None:
    ours, theirs = pages(*range(1, 13)), pages(*range(101, 113))
    await fill(tmp_path / "ours", ours)
    await fill(tmp_path / "theirs", theirs)
    shutil.copy(tmp_path / "theirs" / name, tmp_path / "ours" / name)
    async with open_disk_pages(tmp_path / "ours", size=64 * PAGE_SIZE, page_size=PAGE_SIZE) as disk:
        assert disk is not None
        found = await disk.read([*ours, *theirs])
    assert not found.items() - (ours | theirs).items()


async def test_a_kill_between_page_and_record_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    await fill(cache, pages(1, 2, 3), slots=3)
    calls = []

    def only_the_pages(fd: int, parts: list[bytes], offset: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            write_all(fd, parts, offset)

    monkeypatch.setattr(disk_pages, "write_all", only_the_pages)
    await fill(cache, pages(4, 5), slots=3)
    assert len(calls) == 2
    monkeypatch.undo()
    assert await reopened(cache, list(pages(1, 2, 3, 4, 5)), slots=3) == pages(3)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
async def test_a_disk_that_fails_is_said_once_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    def fail(fd: int, parts: list[bytes], offset: int) -> None:
        raise OSError(error, os.strerror(error))

    async with open_disk_pages(tmp_path / "cache", size=1 << 20, page_size=PAGE_SIZE) as disk:
        assert disk is not None
        monkeypatch.setattr(disk_pages, "write_all", fail)
        for n in range(3):
            disk.write_soon(pages(n + 1))
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert await disk.read(list(pages(1, 2, 3))) == {}
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.levelno for record in warnings] == [logging.WARNING]
    assert os.strerror(error) in warnings[0].getMessage()


async def test_a_second_user_of_the_directory_does_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_disk_pages(tmp_path / "cache", size=1 << 20, page_size=PAGE_SIZE) as first:
        assert first is not None
        async with open_disk_pages(tmp_path / "cache", size=1 << 20, page_size=PAGE_SIZE) as second:
            assert second is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert await reopened(tmp_path / "cache", list(pages(1))) == {}


async def test_directory_and_files_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        await fill(tmp_path / "a" / "cache", pages(1))
    finally:
        os.umask(old)
    assert (tmp_path / "a" / "cache").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "a" / "cache").iterdir()} == {0o600}


def writable_by_others(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)


def a_link(cache: Path) -> None:
    (cache.parent / "elsewhere").mkdir()
    cache.symlink_to(cache.parent / "elsewhere")


def a_linked_file(cache: Path) -> None:
    cache.mkdir(mode=0o700)
    (cache.parent / "victim").write_bytes(b"precious")
    (cache / "pages").symlink_to(cache.parent / "victim")


def a_second_name(cache: Path) -> None:
    cache.mkdir(mode=0o700)
    (cache.parent / "victim").write_bytes(b"precious")
    (cache / "slots").hardlink_to(cache.parent / "victim")


def a_file(cache: Path) -> None:
    cache.write_bytes(b"")


@pytest.mark.parametrize("trap", [writable_by_others, a_link, a_linked_file, a_second_name, a_file])
async def test_a_directory_that_is_not_safe_is_refused(tmp_path: Path, trap: Callable[[Path], None]) -> None:
    trap(tmp_path / "cache")
    with pytest.raises(EnvironmentProblem, match="--cache-dir"):
        await fill(tmp_path / "cache", pages(1))
    if (tmp_path / "victim").exists():
        assert (tmp_path / "victim").read_bytes() == b"precious"


async def written(disk: DiskPages) -> None:
    """Wait until nothing is left to write."""
    with trio.fail_after(5):
        while disk._pending:  # noqa: ASYNC110 - nothing is told of it outside of tests
            await trio.sleep(0.001)


async def test_pages_can_be_given_other_keys(tmp_path: Path) -> None:
    """As when the file that they were read from has gone, and another is known to hold the same pages."""
    async with open_disk_pages(tmp_path / "cache", size=1 << 20, page_size=PAGE_SIZE) as disk:
        assert disk is not None
        disk.write_soon(pages(1, 2, 3))
        await written(disk)
        await disk.rename(lambda checksums, pgnos: np.where(pgnos == 2, np.uint64(77), checksums))
        expected = pages(1, 3) | {page_key(77, 2): page(2)}
        assert await disk.read([*pages(1, 2, 3), page_key(77, 2)]) == expected
    assert await reopened(tmp_path / "cache", [*pages(1, 2, 3), page_key(77, 2)]) == expected
