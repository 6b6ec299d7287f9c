"""Events of directories: told to those who watch, and not relied on where they do not come."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from litereplica import file_events
from litereplica.file_events import MISSES, FileEvents

DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(DEADLINE_S):
        yield


async def test_changes_of_the_names_that_are_watched_are_told_and_others_are_not(tmp_path: Path) -> None:
    events = FileEvents()
    async with (
        events.watching(tmp_path, "a".__eq__) as a,
        events.watching(tmp_path, "b".__eq__) as b,
        events.watching(tmp_path, lambda name: True) as every,
    ):
        assert all(each.is_sure and each.take() for each in (a, b, every))
        assert not a.take()
        (tmp_path / "a").write_bytes(b"new")
        await a.wait()
        await every.wait()
        assert (a.take(), every.take(), b.take()) == (True, True, False)
        assert not a.take()
        with (tmp_path / "a").open("ab") as file:
            file.write(b"more")
        await a.wait()
        assert a.take()
        (tmp_path / "other").write_bytes(b"")
        os.rename(tmp_path / "other", tmp_path / "b")  # noqa: PTH104
        await b.wait()
        os.unlink(tmp_path / "a")  # noqa: PTH108
        await a.wait()


async def test_a_directory_that_vanishes_or_cannot_be_watched_is_not_sure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = FileEvents()
    directory = tmp_path / "d"
    directory.mkdir()
    async with events.watching(directory, lambda name: True) as changes:
        directory.rmdir()
        while changes.is_sure:
            await changes.wait()
            changes.take()
            await trio.lowlevel.checkpoint()
    async with events.watching(tmp_path / "missing", lambda name: True) as changes:
        assert not changes.is_sure

    def refused() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(file_events, "INotify", lambda **options: refused())
    async with events.watching(tmp_path, lambda name: True) as changes:
        assert not changes.is_sure


async def test_changes_that_nobody_told_of_end_the_reliance_unless_some_are_told(tmp_path: Path) -> None:
    async with FileEvents().watching(tmp_path, lambda name: True) as changes:
        for _ in range(MISSES - 1):
            changes.missed()
        changes.wake()
        changes.take()
        for _ in range(MISSES - 1):
            changes.missed()
        assert changes.is_sure
        changes.missed()
        assert not changes.is_sure


async def test_descriptors_are_closed_when_nobody_watches(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    events = FileEvents()
    for _ in range(3):
        async with events.watching(tmp_path, lambda name: True), events.watching(tmp_path, lambda name: True):
            await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
