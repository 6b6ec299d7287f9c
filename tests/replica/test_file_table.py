"""The table of files: stable ids for contents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from litereplica.format.ltx import Header, PageIndex
from litereplica.ltxstore.store import OpenedFile
from litereplica.replica.file_holders import HeldFiles
from litereplica.replica.file_table import FileTable
from litereplica.storage.base import Blob
from litereplica.types import FileInfo

HEADER = Header(page_size=512, commit=1, min_txid=1, max_txid=1, timestamp_ms=0)
NO_PAGES = PageIndex(np.empty(0, np.uint32), np.empty(0, np.uint64), np.empty(0, np.uint32))


def opened(txid: int, checksum: int) -> OpenedFile:
    return OpenedFile(FileInfo(0, txid, txid, 1000), HEADER, NO_PAGES, checksum, None)


def u32(*ids: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array(ids, np.uint32)


def test_a_file_keeps_its_id_and_another_content_gets_another() -> None:
    table = FileTable()
    first = table.add(opened(1, 11))
    assert first > 0
    assert table.add(opened(1, 11)) == first
    assert not table.is_replaced_by(opened(1, 11))
    assert table.is_replaced_by(opened(1, 12))
    assert table.add(opened(1, 12)) != first
    known = table.get(first)
    assert known is not None
    assert (known.info.max_txid, known.checksum) == (1, 11)


def test_what_is_not_in_use_is_forgotten_and_its_id_never_comes_back() -> None:
    table = FileTable()
    ids = [table.add(opened(n, n)) for n in range(1, 6)]
    held = HeldFiles([ids[0]], table.holders)
    again = HeldFiles([ids[3], 99], table.holders)
    table.forget_unused()
    assert (held.files().tolist(), again.files().tolist()) == ([ids[0]], [ids[3], 99])
    assert len(table) == 2
    assert [table.get(file_id) is not None for file_id in ids] == [True, False, False, True, False]
    assert table.checksums(u32(ids[3], ids[1], 0, ids[3])).tolist() == [4, 0, 0, 4]
    assert not table.is_replaced_by(opened(2, 99))
    assert table.add(opened(2, 2)) not in ids


def test_an_object_that_has_changed_is_noticed_by_size_or_etag() -> None:
    table = FileTable()
    file_id = table.add(opened(1, 11))
    table.note_etag(file_id, "x")
    assert table.is_same_object(file_id, Blob(b"", 1000, "x"))
    assert not table.is_same_object(file_id, Blob(b"", 1000, "y"))
    assert not table.is_same_object(file_id, Blob(b"", 1001, "x"))


def test_an_object_without_an_etag_is_not_taken_for_the_one_that_was_opened() -> None:
    table = FileTable()
    file_id = table.add(replace(opened(1, 11), etag=""))
    assert not table.is_same_object(file_id, Blob(b"", 1000, ""))
    assert not table.is_same_object(file_id, Blob(b"", 1000, "x"))
    table.note_etag(file_id, "x")
    assert table.is_same_object(file_id, Blob(b"", 1000, "x"))


def test_a_holder_counts_for_as_long_as_it_is_referenced() -> None:
    table = FileTable()
    first, second = (table.add(opened(n, n)) for n in (1, 2))
    holders = [HeldFiles([first], table.holders) for _ in range(1000)]
    other = HeldFiles([second], table.holders)
    del holders[1:]
    table.forget_unused()
    assert len(table) == 2
    holders.clear()
    table.forget_unused()
    assert table.get(first) is None
    assert table.get(second) is not None
    del other
    table.forget_unused()
    assert len(table) == 0
