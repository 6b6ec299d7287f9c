"""Synthetic histories of a database as LTX files in a storage, with what each TXID's database is, kept naively.

    history = History(store)
    await history.commit({1: b"a", 2: b"b"})          # L0 1-1
    await history.commit({2: b"c"}, pages=3)          # L0 2-2; page 3 is new
    await history.compact(1, 1, 2)                    # L1 1-2
    await history.delete(0, 1)
    history.at(2)  ->  {1: …, 2: …, 3: …}

Contents given in short are padded to a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from litereplica.format.decoder import decode_file
from litereplica.format.frame_checksums import FrameChecksumsEncoder
from litereplica.format.ltx import HEADER_SIZE, Header
from litereplica.format.names import SNAPSHOT_LEVEL, Layout
from litereplica.format.sqlite import lock_pgno
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.base import Storage
from litereplica.testing.ltx_files import encode_file
from litereplica.testing.memory import MemoryStorage
from litereplica.types import TXID, FileInfo, Pgno

PAGE_SIZE = 512
FIRST_TIMESTAMP_MS = 1_700_000_000_000
WAL_STEP = 1000
"""Bytes of the WAL that a transaction takes: L0 files tell where theirs lie."""


@dataclass(slots=True)
class History:
    """The writer's side. `databases[txid]` is pgno → page, without the lock page; `commits[txid]` the page count.

    `with_sums`: beside each file lie its sums. `lineage` is the files' node id, each history's own; 0: as Litestream
    has it. `clock_ms` is the writer's clock, to which each TXID adds a millisecond.
    """

    storage: Storage = field(default_factory=MemoryStorage)
    page_size: int = PAGE_SIZE
    databases: dict[TXID, dict[Pgno, bytes]] = field(default_factory=lambda: {0: {}})
    commits: dict[TXID, int] = field(default_factory=lambda: {0: 0})
    supplied: dict[TXID, set[Pgno]] = field(default_factory=dict)
    txid: TXID = 0
    wal_salts: tuple[int, int] = (1, 1)
    with_sums: bool = False
    lineage: int = field(default_factory=partial(next, count(1)))
    clock_ms: int = FIRST_TIMESTAMP_MS
    timestamps: dict[TXID, int] = field(default_factory=dict)

    @property
    def store(self) -> LTXStore:
        return LTXStore(self.storage, Layout.S3)

    def at(self, txid: TXID) -> dict[Pgno, bytes]:
        """The database at a TXID, as a reader must see it: the lock page is zeroes."""
        database = dict(self.databases[txid])
        lock = lock_pgno(self.page_size)
        if lock <= self.commits[txid]:
            database[lock] = bytes(self.page_size)
        return database

    async def commit(self, changes: Mapping[Pgno, bytes], *, pages: int | None = None, publish: bool = True) -> TXID:
        """One transaction, published as an L0 file. The database has `pages` pages then (default: as many as needed).

        Pages that it gains and `changes` does not name are supplied with a content of their own.
        """
        before = self.commits[self.txid]
        after = max([before, *changes]) if pages is None else pages
        self.txid += 1
        new = {pgno: self._page(b"new %d at %d" % (pgno, self.txid)) for pgno in range(before + 1, after + 1)}
        new |= {pgno: self._page(content) for pgno, content in changes.items()}
        new = {pgno: page for pgno, page in new.items() if pgno <= after and pgno != lock_pgno(self.page_size)}
        merged = self.databases[self.txid - 1] | new
        self.databases[self.txid] = {pgno: page for pgno, page in merged.items() if pgno <= after}
        self.commits[self.txid] = after
        self.supplied[self.txid] = set(new)
        self.timestamps[self.txid] = self.clock_ms + self.txid
        if publish:
            await self.publish(0, self.txid, self.txid)
        return self.txid

    async def publish(self, level: int, first: TXID, last: TXID) -> FileInfo:
        """The file of a range of TXIDs: the pages that any of them supplied, as they are at the last."""
        pgnos = set().union(*(self.supplied[txid] for txid in range(first, last + 1)))
        if first == 1:
            pgnos = set(self.databases[last])
        wal = (WAL_STEP * first, WAL_STEP, *self.wal_salts) if level == 0 else (0, 0, 0, 0)
        header = Header(
            page_size=self.page_size,
            commit=self.commits[last],
            min_txid=first,
            max_txid=last,
            timestamp_ms=self.timestamps[last],
            wal_offset=wal[0],
            wal_size=wal[1],
            wal_salt1=wal[2],
            wal_salt2=wal[3],
            node_id=self.lineage,
        )
        pages = [(pgno, self.databases[last][pgno]) for pgno in sorted(pgnos) if pgno <= self.commits[last]]
        body = encode_file(header, pages)
        info = FileInfo(level, first, last, len(body))
        if self.with_sums:
            await self.store.put_frame_checksums(info, sums_of_file(body))
        await self.storage.put(self.store.key(info), body)
        return info

    async def compact(self, level: int, first: TXID, last: TXID) -> FileInfo:
        """A file of a higher level; what it was made from stays."""
        return await self.publish(level, first, last)

    async def snapshot(self) -> FileInfo:
        """The whole database of now, in level 9."""
        return await self.publish(SNAPSHOT_LEVEL, 1, self.txid)

    async def delete(self, level: int, first: TXID, last: TXID | None = None) -> None:
        await self.store.delete([FileInfo(level, first, last or first, 0)])

    def _page(self, content: bytes) -> bytes:
        return content.ljust(self.page_size, b"\0")


def sums_of_file(body: bytes) -> bytes:
    """The sums that belong beside a whole file."""
    index = decode_file(body).index
    encoder = FrameChecksumsEncoder()
    encoder.feed(body[:HEADER_SIZE])
    for offset, size in zip(index.offset.tolist(), index.size.tolist(), strict=True):
        encoder.feed(body[offset : offset + size])
    encoder.feed(body[index.frames_end :])
    return encoder.finish()
