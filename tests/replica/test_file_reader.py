"""Bytes of a file are those of the file that was opened, whatever happened to the object since."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from litereplica.errors import FileVanished
from litereplica.replica.file_reader import read_source
from litereplica.replica.file_table import FileTable
from litereplica.storage.base import ByteRange
from litereplica.storage.open import open_storage
from litereplica.storage.wrappers import MeteredStorage, Operation
from litereplica.types import FileInfo
from tests.helpers.history import History

SPAN = ByteRange(1000, 3000)
LARGE = {pgno: os.urandom(1024) for pgno in range(1, 200)}
"""Pages of a file too large for an etag by content."""


class Replica:
    """A `file://` replica with one large file, which has been opened and read from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.storage = MeteredStorage(open_storage(f"file://{root}"))
        self.store = History(storage=self.storage).store
        self.files = FileTable()
        self.info: FileInfo
        self.file_id: int

    async def fill(self) -> bytes:
        await self.publish(LARGE)
        (self.info,) = await self.store.list_level(0)
        self.file_id = self.files.add(await self.store.open(self.info))
        return (await read_source(self.store, self.files, self.file_id, SPAN)).data

    async def publish(self, pages: dict[int, bytes]) -> None:
        self.root.mkdir(exist_ok=True)
        await History(page_size=1024, storage=self.storage).commit(pages)

    @property
    def path(self) -> Path:
        return self.root / self.store.key(self.info)

    def gets(self) -> int:
        return self.storage.statistics().by_operation[Operation.GET].requests


async def test_an_object_whose_time_was_set_is_still_read_and_is_looked_into_once(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "r")
    before = await replica.fill()
    os.utime(replica.path, (1_700_000_000, 1_700_000_000))
    first = replica.gets()
    assert (await read_source(replica.store, replica.files, replica.file_id, SPAN)).data == before
    assert replica.gets() == first + 2
    assert (await read_source(replica.store, replica.files, replica.file_id, SPAN)).data == before
    assert replica.gets() == first + 3


async def test_another_file_of_that_name_and_size_counts_as_vanished(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "r")
    await replica.fill()
    replica.path.unlink()
    await replica.publish({pgno: page[::-1] for pgno, page in LARGE.items()})
    assert replica.path.stat().st_size == replica.info.size
    with pytest.raises(FileVanished, match="replaced"):
        await read_source(replica.store, replica.files, replica.file_id, SPAN)


async def test_an_object_that_is_no_ltx_file_counts_as_vanished(tmp_path: Path) -> None:
    replica = Replica(tmp_path / "r")
    await replica.fill()
    replica.path.write_bytes(bytes(replica.info.size))
    with pytest.raises(FileVanished, match="replaced"):
        await read_source(replica.store, replica.files, replica.file_id, SPAN)
