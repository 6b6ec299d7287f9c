"""Replicas made of a few words: a history of databases, and the files that any range of it would have."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from litereplica.format import ltx
from litereplica.format.names import Layout
from litereplica.format.sqlite import MAGIC, lock_pgno
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Storage
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.memory import MemoryStorage
from litereplica.types import FileInfo

PAGE_SIZE = 512
TIMESTAMP_MS = 1_700_000_000_000


@dataclass(slots=True)
class History:
    """What happened to a database, one `commit` a TXID. Page contents are made from (pgno, TXID), hard to compress."""

    page_size: int = PAGE_SIZE
    sizes: list[int] = field(default_factory=list)
    changes: list[dict[int, bytes]] = field(default_factory=list)

    @property
    def txid(self) -> int:
        return len(self.sizes)

    def commit(self, size: int, *changed: int) -> None:
        """A transaction that leaves `size` pages and changes these; pages that the database grows by are added."""
        before = self.sizes[-1] if self.sizes else 0
        txid = self.txid + 1
        pgnos = {*changed, *range(before + 1, size + 1)} - {lock_pgno(self.page_size)}
        self.changes.append({pgno: page_of(pgno, txid, self.page_size) for pgno in sorted(pgnos)})
        self.sizes.append(size)

    def database(self, txid: int) -> bytes:
        """The whole database at a TXID, each transaction applied in turn."""
        pages: dict[int, bytes] = {}
        for size, changed in zip(self.sizes[:txid], self.changes[:txid], strict=True):
            pages |= changed
            pages = {pgno: page for pgno, page in pages.items() if pgno <= size}
        empty = bytes(self.page_size)
        return b"".join(pages.get(pgno, empty) for pgno in range(1, self.sizes[txid - 1] + 1))

    def file(self, low: int, high: int) -> bytes:
        """The LTX file of the TXIDs low..high."""
        pages: dict[int, bytes] = {}
        for txid in range(low, high + 1):
            pages |= self.changes[txid - 1]
            pages = {pgno: page for pgno, page in pages.items() if pgno <= self.sizes[txid - 1]}
        return make_file(pages, commit=self.sizes[high - 1], low=low, high=high, page_size=self.page_size)


def page_of(pgno: int, txid: int, page_size: int = PAGE_SIZE) -> bytes:
    """A page that no other page and no other TXID has. Page 1 has what a SQLite database begins with."""
    head = MAGIC + struct.pack(">HBB", page_size % 65535, 2, 2) if pgno == 1 else b""
    return (head + f"page {pgno} at {txid} ".encode()).ljust(page_size, b".")


def make_file(pages: Mapping[int, bytes], *, commit: int, low: int, high: int, page_size: int = PAGE_SIZE) -> bytes:
    """A valid file with these pages."""
    header = ltx.Header(page_size=page_size, commit=commit, min_txid=low, max_txid=high, timestamp_ms=TIMESTAMP_MS)
    return encode_file(header, sorted(pages.items()))


def memory_store(storage: Storage | None = None) -> LTXStore:
    return LTXStore(storage or MemoryStorage(), Layout.S3)


async def publish(store: LTXStore, history: History, level: int, low: int, high: int) -> FileInfo:
    """Put the file of a range of TXIDs into a level."""
    return await put(store, level, low, high, history.file(low, high))


async def put(store: LTXStore, level: int, low: int, high: int, data: bytes) -> FileInfo:
    info = FileInfo(level, low, high, len(data), TIMESTAMP_MS)
    await store.put(info, data, timestamp_ms=TIMESTAMP_MS)
    return info
