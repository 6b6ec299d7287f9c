"""Retention deletes genuine files only behind a file that was made here, or read whole and checked here."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from litereplica.compaction.checked_files import FILE_NAME
from litereplica.compaction.compaction import compact_level
from litereplica.compaction.pruner import Pruner
from litereplica.compaction.retention import RetentionPolicy
from litereplica.errors import DamagedFile
from litereplica.format.ltx import decode_trailer
from litereplica.ltxstore.store import WHOLE_FILE_LIMIT, LTXStore
from litereplica.storage.wrappers import MeteredStorage
from litereplica.storage.wrappers.delegate import Operation
from litereplica.testing.memory import MemoryStorage
from litereplica.times import HOUR_MS, SteadyClock
from litereplica.types import FileInfo
from tests.helpers.pruning import prune_due
from tests.ltxstore.replicas import TIMESTAMP_MS, History, memory_store

NOW = TIMESTAMP_MS + HOUR_MS
PAGES = 9000
POLICY = RetentionPolicy(l0_ms=1)


class Bench:
    """A replica of five L0 files, and one of level 1 that covers them and is too large to be read at once."""

    def __init__(self) -> None:
        self.memory = MemoryStorage()
        self.metered = MeteredStorage(self.memory)
        self.store: LTXStore = memory_store(self.metered)
        self.history = History()
        self.covering = FileInfo(1, 1, 5, 0)

    async def publish(self) -> None:
        self.history.commit(PAGES)
        for txid in range(2, 6):
            self.history.commit(PAGES, txid)
        for txid in range(1, 6):
            data = self.history.file(txid, txid)
            await self.store.put(FileInfo(0, txid, txid, len(data)), data, timestamp_ms=TIMESTAMP_MS)

    async def plant(self, data: bytes) -> None:
        await self.memory.put(self.store.key(self.covering), data, modified_ms=TIMESTAMP_MS)

    def pruner(self, directory: Path | None = None) -> Pruner:
        return Pruner(self.store, POLICY, SteadyClock(lambda: NOW, lambda: 0), directory=directory)

    def level0(self) -> int:
        return sum(key.startswith("0000/") for key in self.memory.objects)

    @property
    def received(self) -> int:
        return self.metered.statistics().by_operation[Operation.GET].bytes_received


def forged(data: bytes) -> bytes:
    """The file with one page that is another one: header, index and trailer are as they were."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


async def test_genuine_files_stay_behind_a_planted_one_of_which_header_and_index_are_right() -> None:
    bench = Bench()
    await bench.publish()
    data = bench.history.file(1, 5)
    assert len(data) > WHOLE_FILE_LIMIT
    planted = forged(data)
    assert decode_trailer(planted[-16:]) == decode_trailer(data[-16:])
    await bench.plant(planted)
    with pytest.raises(DamagedFile, match=r"0001/.*: "):
        await prune_due(bench.pruner())
    assert bench.level0() == 5
    await bench.plant(data)
    await prune_due(bench.pruner())
    assert bench.level0() == 1


async def test_file_made_here_is_not_read_again_after_a_restart(tmp_path: Path) -> None:
    bench = Bench()
    await bench.publish()
    first = bench.pruner(tmp_path)
    await first.due(await bench.store.list_levels())
    done = await compact_level(bench.store, 1)
    assert done is not None
    await first.made(done.info, done.checksum)
    received = bench.received
    restarted = bench.pruner(tmp_path)
    key = bench.store.key(done.info)
    bench.memory.objects[key] = replace(bench.memory.objects[key], modified_ms=TIMESTAMP_MS)
    await prune_due(restarted)
    assert bench.level0() == 1
    assert bench.received - received == 16, "its trailer only"
    assert restarted.checked.bytes_read == 0


async def test_file_that_was_not_made_here_is_read_whole_once_and_counted(tmp_path: Path) -> None:
    bench = Bench()
    await bench.publish()
    data = bench.history.file(1, 5)
    await bench.plant(data)
    pruner = bench.pruner(tmp_path)
    await prune_due(pruner)
    assert pruner.checked.bytes_read == len(data)
    assert bench.level0() == 1
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


async def test_file_that_replaced_a_checked_one_is_read_whole_again(tmp_path: Path) -> None:
    bench = Bench()
    await bench.publish()
    first = bench.pruner(tmp_path)
    data = bench.history.file(1, 5)
    await bench.plant(data)
    files = await bench.store.list_levels()
    await first.due(files)
    await first.made(next(info for info in files if info.level == 1), decode_trailer(data[-16:]) ^ 1)
    await bench.plant(forged(data))
    with pytest.raises(DamagedFile):
        await prune_due(bench.pruner(tmp_path))
    assert bench.level0() == 5


NOTES = {
    "garbage": b"\xff\x00{",
    "nested": b"[" * 100_000,
    "wrong types": b'{"url": 5, "files": {"a": []}}',
    "other fields": b'{"url": "memory://test", "files": [[1, "1", "5", 99]]}',
    "another replica": b'{"url": "s3://other/app.db", "files": [[1, "1", "5", 1, "8000000000000000"]]}',
}


@pytest.mark.parametrize("note", NOTES)
async def test_note_that_is_not_ours_counts_for_nothing(tmp_path: Path, note: str) -> None:
    bench = Bench()
    await bench.publish()
    await bench.plant(forged(bench.history.file(1, 5)))
    (tmp_path / FILE_NAME).write_bytes(NOTES[note])
    with pytest.raises(DamagedFile):
        await prune_due(bench.pruner(tmp_path))
    assert bench.level0() == 5


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
async def test_note_in_place_of_which_something_else_lies_is_neither_followed_nor_waited_for(
    tmp_path: Path, kind: str
) -> None:
    bench = Bench()
    await bench.publish()
    await bench.plant(bench.history.file(1, 5))
    victim = tmp_path / "victim"
    victim.write_bytes(b"of the user")
    note = tmp_path / FILE_NAME
    if kind == "link":
        note.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(note)
    else:
        note.mkdir()
    await prune_due(bench.pruner(tmp_path))
    assert bench.level0() == 1
    assert victim.read_bytes() == b"of the user"
