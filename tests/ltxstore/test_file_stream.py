"""Reading one file in pieces: pages in order, one object of the listed size, every check."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from litereplica.concurrent import in_order
from litereplica.errors import DamagedFile, FileVanished
from litereplica.format.names import Layout
from litereplica.ltxstore.file_stream import FileStream, piece_jobs
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Blob
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo
from tests.ltxstore.replicas import History

PIECE = 700


async def stored(data: bytes, *, low: int = 1, high: int = 1) -> tuple[LTXStore, FileInfo]:
    store = LTXStore(MemoryStorage(), Layout.S3)
    info = FileInfo(9, low, high, len(data))
    await store.storage.put(store.key(info), data)
    return store, info


def file_of(pages: int) -> bytes:
    history = History()
    history.commit(pages)
    return history.file(1, 1)


async def read(store: LTXStore, info: FileInfo) -> dict[int, bytes]:
    stream = FileStream(store, info)
    pages: dict[int, bytes] = {}

    def take(piece: Blob) -> None:
        for some in stream.feed(piece):
            pages.update(some)

    async def consume(piece: Blob) -> bool:
        await trio.to_thread.run_sync(take, piece)
        return True

    await in_order(piece_jobs(store, info, piece_bytes=PIECE), consume, width=2)
    assert stream.is_complete
    file = await trio.to_thread.run_sync(stream.finish)
    assert file.index.pgno.tolist() == list(pages)
    return pages


async def test_pages_come_from_pieces_of_any_size() -> None:
    pages = await read(*await stored(file_of(20)))
    assert list(pages) == list(range(1, 21))


async def test_size_that_was_not_listed_is_another_file() -> None:
    store, info = await stored(file_of(20))
    with pytest.raises(FileVanished):
        await read(store, replace(info, size=info.size - 1))


async def test_object_that_was_replaced_between_two_pieces_is_another_file() -> None:
    store, info = await stored(file_of(20))
    jobs = list(piece_jobs(store, info, piece_bytes=PIECE))
    stream = FileStream(store, info)
    first = await jobs[0]()
    await store.storage.put(store.key(info), file_of(20)[:-1] + b"\0")
    second = await jobs[1]()

    def feed() -> None:
        list(stream.feed(first))
        list(stream.feed(second))

    with pytest.raises(FileVanished):
        await trio.to_thread.run_sync(feed)


@pytest.mark.parametrize("where", [-1, 60])
async def test_damage_is_named_with_the_file(where: int) -> None:
    data = bytearray(file_of(20))
    data[where] ^= 1
    store, info = await stored(bytes(data))
    with pytest.raises(DamagedFile) as error:
        await read(store, info)
    assert error.value.key == store.key(info)


async def test_file_under_the_name_of_another_is_damaged() -> None:
    with pytest.raises(DamagedFile, match="differ from its name"):
        await read(*await stored(file_of(3), high=2))


async def test_empty_file_is_damaged() -> None:
    with pytest.raises(DamagedFile, match="truncated"):
        await read(*await stored(b""))
