"""A kernel, a lock table, a replica and readers for `LiveDatabase`, all in memory, interleaved by chance.

Everything that is not atomic on a real machine gives way to the other tasks here: between two stores, in the middle
of a store into `-shm`, between two loads of a reader, while a READ or a GETATTR is on its way. The kernel caches what
Linux would; the readers follow `walTryBeginRead` and `sqlite3WalFindFrame` of SQLite's wal.c.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

import numpy as np
import trio
from numpy.typing import NDArray

from litereplica.errors import FileVanished, StorageError, TransientStorageError
from litereplica.format import walindex
from litereplica.format.sqlite import with_journal_mode
from litereplica.format.wal import FRAME_HEADER_SIZE, HEADER_SIZE, checksum_words
from litereplica.fuse.kernel_cache import LiveFile, Store
from litereplica.fuse.live import LiveDatabase
from litereplica.replica.file_holders import FileHolders
from litereplica.replica.page_map import LOCATION, PageMap
from litereplica.replica.snapshot import Snapshot, Update
from litereplica.types import Pos

PAGE_SIZE = 512
KERNEL_PAGE = 4096

_INDEX_HEADER = struct.Struct("=IIIBBHIIIIII")


class ProtocolError(AssertionError):
    """Something that must never happen between the daemon and its clients."""


@dataclass(slots=True)
class Chance:
    """Where tasks give way. `patience` is the most that one waits at a place."""

    random: Random
    patience: int = 3

    async def pause(self) -> None:
        for _ in range(self.random.randrange(self.patience + 1)):
            await trio.lowlevel.checkpoint()

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability


# --- locks -----------------------------------------------------------------------------------------


class LockTable:
    """Byte-range locks of one file, held by owners: open file descriptions, or processes."""

    def __init__(self) -> None:
        self._held: defaultdict[int, dict[object, bool]] = defaultdict(dict)  # byte → owner → is it exclusive

    def lock(self, owner: object, start: int, length: int, *, exclusive: bool) -> bool:
        places = range(start, start + length)
        for place in places:
            for other, other_exclusive in self._held[place].items():
                if other is not owner and (exclusive or other_exclusive):
                    return False
        for place in places:
            self._held[place][owner] = exclusive
        return True

    def unlock(self, owner: object, start: int, length: int = 1) -> None:
        for place in range(start, start + length):
            self._held[place].pop(owner, None)

    def holds(self, owner: object, place: int, *, exclusive: bool) -> bool:
        return self._held[place].get(owner, None) is exclusive

    def held_by(self, owner: object) -> list[int]:
        return sorted(place for place, owners in self._held.items() if owner in owners)


class DaemonLocks:
    """`OFDLocks` on a `LockTable`."""

    def __init__(self, table: LockTable) -> None:
        self.table = table

    def try_exclusive(self, start: int, length: int = 1) -> bool:
        return self.table.lock(self, start, length, exclusive=True)

    def try_shared(self, start: int, length: int = 1) -> bool:
        return self.table.lock(self, start, length, exclusive=False)

    def unlock(self, start: int, length: int = 1) -> None:
        self.table.unlock(self, start, length)


# --- the replica -----------------------------------------------------------------------------------


@dataclass(slots=True)
class History:
    """What the database is at each TXID: pgno → what a client sees."""

    databases: dict[int, dict[int, bytes]] = field(default_factory=lambda: {0: {}})
    txid: int = 0

    def has(self, *, pages: int) -> bool:
        """Has there been a database that a transaction which only cuts, to so many pages, would make again?"""
        cut = {pgno: page for pgno, page in self.databases[self.txid].items() if pgno <= pages}
        return len(cut) == pages and cut in self.databases.values()

    def commit(self, changed: Iterable[int], *, pages: int) -> set[int]:
        """One transaction that leaves so many pages; those that it adds are changed, too. Returns what was changed."""
        before = self.databases[self.txid]
        self.txid += 1
        supplied = {pgno for pgno in changed if pgno <= pages} | set(range(len(before) + 1, pages + 1))
        kept = {pgno: page for pgno, page in before.items() if pgno <= pages}
        self.databases[self.txid] = kept | {pgno: page_of(pgno, self.txid) for pgno in supplied}
        return supplied


def page_of(pgno: int, txid: int) -> bytes:
    page = b"page %d of %d." % (pgno, txid) * 64
    page = page[:PAGE_SIZE]
    return with_journal_mode(page, wal=True) if pgno == 1 else page


class FakeReplica:
    """What `LiveDatabase` needs of a `Replica`. A file is a number; it has the pages of some TXID."""

    def __init__(self, history: History, chance: Chance) -> None:
        self._history = history
        self._chance = chance
        self._txid_of_file: dict[int, int] = {}
        self._gone: set[int] = set()
        self.holders = FileHolders()
        self._pages = PageMap.empty(PAGE_SIZE)
        self._heal_turn = trio.Lock()
        self.supplied: dict[int, set[int]] = {}
        self.failing = False
        self.is_behind = False
        self.reads = 0
        self.snapshot = self._next_snapshot()

    def poll(self, *, to: int | None = None) -> Update:
        """The transactions up to `to` (default: all of them) as one update."""
        commits = []
        changed: set[int] = set()
        lowest = self.snapshot.commit
        while self.snapshot.pos.txid < (to or self._history.txid):
            self.snapshot = self._next_snapshot()
            commits.append(self.snapshot.commit)
            lowest = min(lowest, self.snapshot.commit)
            changed |= self.supplied[self.snapshot.pos.txid]
        changed |= set(range(lowest + 1, self.snapshot.commit + 1))
        return Update(self.snapshot, self._ascending(changed, self.snapshot.commit), relocated=False)

    def compact(self) -> Update:
        """All files vanish; one new file has all pages of the present position."""
        self._gone |= set(self._txid_of_file)
        return self._relocated(set())

    def compact_later(self) -> None:
        """All files vanish, which only shows when one is read."""
        self._gone |= set(self._txid_of_file)

    async def heal(self) -> Update | None:
        before = self.snapshot
        async with self._heal_turn:
            await self._chance.pause()
            if self.snapshot is not before:
                return None
            changed: set[int] = set()
            if self._chance.happens(0.3):  # no file ends at our position any more
                changed = set(self.poll().changed.tolist())
            return self._relocated(changed)

    def read_now(self, first: int, last: int, pages: PageMap) -> bytearray | None:
        """Now and then pages whose files are known are at hand."""
        files = pages.lookup(np.arange(first, last + 1, dtype=np.uint32))["file"].tolist()
        if self.failing or self._chance.happens(0.5) or any(file == 0 or file in self._gone for file in files):
            return None
        return bytearray(b"").join(self._content(pgno, file) for pgno, file in enumerate(files, first))

    def _content(self, pgno: int, file: int) -> bytes:
        page = self._history.databases[self._txid_of_file[file]][pgno]
        return with_journal_mode(page, wal=False) if pgno == 1 else page

    async def read(
        self, pgnos: NDArray[np.uint32], locations: NDArray[np.void], *, around: PageMap | None = None
    ) -> list[bytes]:
        self.reads += 1
        await self._chance.pause()
        if self.failing:
            raise TransientStorageError("the store is away")
        pages = []
        for pgno, file in zip(pgnos.tolist(), locations["file"].tolist(), strict=True):
            if file in self._gone:
                raise FileVanished(f"file {file} has gone")
            if not file:
                raise ProtocolError(f"page {pgno} is looked for in no file")
            pages.append(self._content(pgno, file))
        await self._chance.pause()
        return pages

    async def state_between(self, first: int, last: int) -> Snapshot | None:
        """Any state in the range that files lead to; now and then there is none."""
        await self._chance.pause()
        last = min(last, self.snapshot.pos.txid)
        if first > last or self._chance.happens(0.3):
            return None
        txid = self._chance.random.randint(first, last)
        file = len(self._txid_of_file) + 1
        self._txid_of_file[file] = txid
        database = self._history.databases[txid]
        rows = np.zeros(len(database), LOCATION)
        rows["file"], rows["size"], rows["offset"] = file, 1, sorted(database)
        pages = PageMap.empty(PAGE_SIZE).applied(np.array(sorted(database), np.uint32), rows, commit=len(database))
        return Snapshot(Pos(txid), 0, PAGE_SIZE, len(database), pages)

    def newest_txids(self, file_ids: NDArray[np.uint32]) -> NDArray[np.uint64]:
        return np.array([self._txid_of_file[file_id] for file_id in file_ids.tolist()], np.uint64)

    def _next_snapshot(self) -> Snapshot:
        txid = 1 if not self._txid_of_file else self.snapshot.pos.txid + 1
        database = self._history.databases[txid]
        supplied = self.supplied.get(txid, set(database))
        return self._snapshot(txid, supplied)

    def _relocated(self, changed: set[int]) -> Update:
        txid = self.snapshot.pos.txid
        self.snapshot = self._snapshot(txid, set(self._history.databases[txid]))
        return Update(self.snapshot, self._ascending(changed, self.snapshot.commit), relocated=True)

    def _snapshot(self, txid: int, pgnos: set[int]) -> Snapshot:
        file = len(self._txid_of_file) + 1
        self._txid_of_file[file] = txid
        commit = len(self._history.databases[txid])
        rows = np.zeros(len(pgnos), LOCATION)
        rows["file"], rows["size"], rows["offset"] = file, 1, sorted(pgnos)
        self._pages = self._pages.applied(np.array(sorted(pgnos), np.uint32), rows, commit=commit)
        return Snapshot(Pos(txid), 0, PAGE_SIZE, commit, self._pages)

    @staticmethod
    def _ascending(pgnos: set[int], commit: int) -> NDArray[np.uint32]:
        return np.array(sorted(pgno for pgno in pgnos if pgno <= commit), np.uint32)


# --- the kernel ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _File:
    size: int
    attributes_valid: bool = True
    version: int = 0
    pages: dict[int, bytearray] = field(default_factory=dict)
    busy: defaultdict[int, trio.Lock] = field(default_factory=lambda: defaultdict(trio.Lock))


class FakeKernel:
    """The page cache of the three files, as Linux keeps it for a FUSE mount; and a guard of the daemon's promises."""

    def __init__(self, chance: Chance, locks: LockTable) -> None:
        self._chance = chance
        self._locks = locks
        self._in_order = trio.Lock()
        self._files: dict[LiveFile, _File] = {}
        self.daemon: DaemonLocks | None = None
        self.live: LiveDatabase
        self.getattr_is_slow = True

    def know_files(self) -> None:
        """The first look-up of each file."""
        for inode in (LiveFile.DATABASE, LiveFile.WAL, LiveFile.SHM):
            self._files[inode] = _File(self.live.size(inode))

    # what the daemon calls

    async def store(self, stores: Iterable[Store]) -> None:
        async with self._in_order:
            for store in stores:
                await self._chance.pause()
                await self._store(*store)

    async def invalidate(self, inode: LiveFile) -> None:
        async with self._in_order:
            await self._chance.pause()
            file = self._files[inode]
            file.attributes_valid = False
            file.version += 1
            await self._drop_pages(file)
        await self.fstat_size(inode)

    async def _store(self, inode: LiveFile, offset: int, data: bytes) -> None:
        file = self._files[inode]
        if inode == LiveFile.SHM:
            await self._check_index_store(offset, data)
        end = offset + len(data)
        if end > file.size:
            file.size = end
            file.version += 1
        while data:
            number, start = divmod(offset, KERNEL_PAGE)
            piece, data = data[: KERNEL_PAGE - start], data[KERNEL_PAGE - start :]
            await self._chance.pause()
            async with file.busy[number]:
                whole = start == 0 and (len(piece) == KERNEL_PAGE or offset + len(piece) == file.size)
                if number not in file.pages and whole:  # nobody sees a new page before it is up to date
                    await self._chance.pause()
                    file.pages[number] = bytearray(piece.ljust(KERNEL_PAGE, b"\0"))
                elif number in file.pages:
                    await self._copy(file.pages[number], start, piece, torn=inode == LiveFile.SHM)
            offset += len(piece)

    async def _copy(self, page: bytearray, start: int, piece: bytes, *, torn: bool) -> None:
        """Clients that map `-shm` see a store while it is made, word by word."""
        middle = 4 * self._chance.random.randrange(len(piece) // 4 + 1) if torn else 0
        page[start : start + middle] = piece[:middle]
        if torn:
            await self._chance.pause()
        page[start + middle : start + len(piece)] = piece[middle:]

    # what clients call

    async def fstat_size(self, inode: LiveFile) -> int:
        file = self._files[inode]
        if not file.attributes_valid:
            version = file.version
            await self._chance.pause()
            size = self.live.size(inode)
            if self.getattr_is_slow:
                await self._chance.pause()
            if version == file.version:
                await self._take_size(file, size)
        return file.size

    async def _take_size(self, file: _File, size: int) -> None:
        changed, file.size = size != file.size, size
        file.version += 1
        file.attributes_valid = True
        if changed:
            await self._drop_pages(file)

    async def _drop_pages(self, file: _File) -> None:
        for number in list(file.busy):
            async with file.busy[number]:
                file.pages.pop(number, None)

    async def read(self, inode: LiveFile, offset: int, size: int) -> bytes:
        """`pread`."""
        known = await self.fstat_size(inode)
        size = max(0, min(size, known - offset))
        first = offset // KERNEL_PAGE
        pages = [await self._page(inode, first + i) for i in range(-(-(offset % KERNEL_PAGE + size) // KERNEL_PAGE))]
        return b"".join(pages)[offset % KERNEL_PAGE :][:size]

    async def load(self, offset: int, size: int) -> bytes:
        """A load from `-shm`, which clients map. Within one page."""
        if offset + size > self._files[LiveFile.SHM].size:
            raise ProtocolError(f"SIGBUS at {offset} of -shm")
        number = offset // KERNEL_PAGE
        page = self._files[LiveFile.SHM].pages.get(number)
        if page is None:
            await self._page(LiveFile.SHM, number)
            page = self._files[LiveFile.SHM].pages.get(number, bytearray(KERNEL_PAGE))
        start = offset % KERNEL_PAGE
        return bytes(page[start : start + size])

    async def _page(self, inode: LiveFile, number: int) -> bytes:
        file = self._files[inode]
        await self._chance.pause()
        async with file.busy[number]:
            if number not in file.pages:
                offset = number * KERNEL_PAGE
                found = self.live.read_now(offset, KERNEL_PAGE) if inode is LiveFile.DATABASE else None
                data = await self.live.read(inode, offset, KERNEL_PAGE) if found is None else found
                if len(data) != KERNEL_PAGE:
                    raise ProtocolError(f"a READ of {KERNEL_PAGE} bytes was answered with {len(data)}")
                await self._chance.pause()
                file.pages[number] = bytearray(data)
            return bytes(file.pages[number])

    def evict(self) -> None:
        """Memory is short: pages that nobody uses now are dropped."""
        for file in self._files.values():
            for number in [number for number in file.pages if not file.busy[number].locked()]:
                if self._chance.happens(0.3):
                    del file.pages[number]

    # what must hold

    async def _check_index_store(self, offset: int, data: bytes) -> None:
        self._hold(walindex.LOCK_WRITE, "the wal-index is written without the WRITE lock")
        if offset == 0:
            second = self._files[LiveFile.SHM].pages.get(0, bytearray())[48:96]
            if second and second != data:
                raise ProtocolError("the header's first copy is stored before its second")
            await self._check_header(data)
        for reader in range(1, walindex.READ_MARKS):
            place = walindex.CHECKPOINT_INFO + 4 + 4 * reader
            if offset <= place < offset + len(data):
                self._hold(walindex.LOCK_READ + reader, f"mark {reader} is stored without its lock")
                if reader == 1 and data[place - offset : place - offset + 4] != bytes(4):
                    raise ProtocolError("mark 1 has left the floor")
        if offset == walindex.CHECKPOINT_INFO and len(data) == 4:
            self._hold(walindex.LOCK_READ, "nBackfill is stored without READ(0)")
            await self.check_cached(LiveFile.DATABASE)

    def _hold(self, place: int, what: str) -> None:
        assert self.daemon is not None
        if not self._locks.holds(self.daemon, place, exclusive=True):
            raise ProtocolError(what)

    async def _check_header(self, data: bytes) -> None:
        """When the header's first copy is stored, nothing that it makes valid may be wrong in the cache."""
        max_frame = _INDEX_HEADER.unpack_from(data)[6]
        if max_frame == 0:
            for reader in range(1, walindex.READ_MARKS):
                self._hold(walindex.LOCK_READ + reader, f"the WAL is restarted without READ({reader})")
        await self.check_frames(max_frame)
        for number in range(1, -(-walindex.block_of(max_frame or 1) + 1) * walindex.BLOCK_SIZE // KERNEL_PAGE):
            await self._check_page(LiveFile.SHM, number, KERNEL_PAGE)

    async def check_frames(self, count: int) -> None:
        """The same for the first `count` frames of the WAL; what an earlier generation left behind them is nobody's."""
        await self.check_cached(LiveFile.WAL, HEADER_SIZE + count * (FRAME_HEADER_SIZE + PAGE_SIZE))

    async def check_cached(self, inode: LiveFile, end: int | None = None) -> None:
        """No cached byte before `end` (default: the file's) differs from what a READ would be answered now."""
        end = self.live.size(inode) if end is None else end
        file = self._files[inode]
        if file.attributes_valid and file.size < end:
            raise ProtocolError(f"{inode.name} has {end} bytes, and the kernel knows of {file.size}")
        for number in list(file.pages):
            await self._check_page(inode, number, end - number * KERNEL_PAGE)

    async def _check_page(self, inode: LiveFile, number: int, count: int) -> None:
        try:
            expected = await self.live.read(inode, number * KERNEL_PAGE, KERNEL_PAGE)
        except StorageError:
            return
        page = self._files[inode].pages.get(number)
        if page is None or count <= 0 or self._files[inode].busy[number].locked():
            return
        if page[:count] != expected[: min(count, KERNEL_PAGE)]:
            at = next(i for i in range(count) if page[i] != expected[i])
            found, wanted = bytes(page[at : at + 20]), expected[at : at + 20]
            raise ProtocolError(
                f"{inode.name} is stale in the cache at {number * KERNEL_PAGE + at}: {found!r} for {wanted!r}"
            )


# --- readers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class View:
    """What a read transaction goes by."""

    max_frame: int
    min_frame: int
    commit: int
    lock: int


class Reader:
    """A read-only client with one connection."""

    def __init__(self, kernel: FakeKernel, locks: LockTable, chance: Chance) -> None:
        self._kernel = kernel
        self._locks = locks
        self._chance = chance
        self.retries = 0

    async def begin(self) -> View:
        """`walTryBeginRead`, until it succeeds."""
        while True:
            view = await self._try_begin()
            if view is not None:
                return view
            self.retries += 1
            await trio.lowlevel.checkpoint()

    def end(self, view: View) -> None:
        self._locks.unlock(self, walindex.LOCK_READ + view.lock)

    async def _try_begin(self) -> View | None:
        header = await self._header()
        if header is None:
            return None
        fields = _INDEX_HEADER.unpack_from(header)
        max_frame, commit = fields[6], fields[7]
        if await self._word(walindex.CHECKPOINT_INFO) == max_frame and self._lock(0):
            await self._chance.pause()
            return await self._checked(header, View(max_frame, max_frame + 1, commit, 0))
        best, reader = 0, 0
        for i in range(1, walindex.READ_MARKS):
            mark = await self._mark(i)
            if best <= mark <= max_frame:
                best, reader = mark, i
        if reader == 0:
            raise ProtocolError("SQLITE_READONLY_CANTINIT: no mark fits")
        if not self._lock(reader):
            return None
        await self._chance.pause()
        min_frame = await self._word(walindex.CHECKPOINT_INFO) + 1
        view = View(max_frame, min_frame, commit, reader)
        if await self._mark(reader) != best:
            self.end(view)
            return None
        return await self._checked(header, view)

    async def _checked(self, header: bytes, view: View) -> View | None:
        if await self._load(0, walindex.HEADER_SIZE) != header:
            self.end(view)
            return None
        return view

    def _lock(self, reader: int) -> bool:
        return self._locks.lock(self, walindex.LOCK_READ + reader, 1, exclusive=False)

    async def _header(self) -> bytes | None:
        first = await self._load(0, walindex.HEADER_SIZE)
        await self._chance.pause()
        second = await self._load(walindex.HEADER_SIZE, walindex.HEADER_SIZE)
        sums = struct.pack("=II", *checksum_words(first[:40], (0, 0), big_endian=walindex._BIG_ENDIAN))
        if first == second and sums == first[40:]:
            return first
        if self._locks.lock(self, walindex.LOCK_WRITE, 1, exclusive=False):
            raise ProtocolError("SQLITE_READONLY_RECOVERY: a header in the making, and nobody holds WRITE")
        return None

    async def page(self, view: View, pgno: int) -> bytes:
        """A page as this transaction sees it."""
        frame = await self._find(view, pgno)
        if frame:
            offset = HEADER_SIZE + (frame - 1) * (FRAME_HEADER_SIZE + PAGE_SIZE) + FRAME_HEADER_SIZE
            data = await self._kernel.read(LiveFile.WAL, offset, PAGE_SIZE)
        else:
            data = await self._kernel.read(LiveFile.DATABASE, (pgno - 1) * PAGE_SIZE, PAGE_SIZE)
        return data.ljust(PAGE_SIZE, b"\0")  # as SQLite takes a short read

    async def _find(self, view: View, pgno: int) -> int:
        if view.max_frame == 0 or view.lock == 0:
            return 0
        for block in range(walindex.block_of(view.max_frame), walindex.block_of(view.min_frame) - 1, -1):
            found = await self._find_in_block(view, block, pgno)
            if found:
                return found
        return 0

    async def _find_in_block(self, view: View, block: int, pgno: int) -> int:
        base, zero = block * walindex.BLOCK_SIZE, walindex.frames_before(block)
        if await self._kernel.fstat_size(LiveFile.SHM) < base + walindex.BLOCK_SIZE:
            raise ProtocolError("a frame lies in a block that -shm does not have")
        entries = base + (walindex.PREAMBLE_SIZE if block == 0 else 0)
        slot, found = pgno * walindex.HASH_MULTIPLIER & walindex.HASH_SLOTS - 1, 0
        while True:
            (entry,) = struct.unpack("=H", await self._load(base + walindex.HASH_OFFSET + 2 * slot, 2))
            if entry == 0:
                return found
            frame = zero + entry
            if view.min_frame <= frame <= view.max_frame and await self._word(entries + 4 * (entry - 1)) == pgno:
                found = frame
            slot = (slot + 1) & walindex.HASH_SLOTS - 1

    async def _mark(self, reader: int) -> int:
        return await self._word(walindex.CHECKPOINT_INFO + 4 + 4 * reader)

    async def _word(self, offset: int) -> int:
        return int(struct.unpack("=I", await self._load(offset, 4))[0])

    async def _load(self, offset: int, size: int) -> bytes:
        if self._chance.happens(0.2):
            await self._chance.pause()
        if size <= 4:
            return await self._kernel.load(offset, size)
        middle = 4 * self._chance.random.randrange(size // 4)
        first = await self._kernel.load(offset, middle)
        if self._chance.happens(0.2):
            await self._chance.pause()
        return first + await self._kernel.load(offset + middle, size - middle)
