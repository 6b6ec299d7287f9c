"""The hidden directory `.at` of a live mount: past states, which appear when they are looked up.

    .at/txid-000000000000002a/app.db       by TXID; a listing of `.at` shows the newest ones, with their times
    .at/2026-11-22T10:00:00Z/app.db        by time: the newest state before it

Listed are TXIDs rather than times, since a TXID names its state whatever clocks did, and since two states may have one
time. The time is the directory's mtime.

A directory belongs to a name that was looked up, a file to the state of a TXID. Several directories may lead to one
file, so that the kernel caches its pages once. Both are records of some hundred bytes that live as long as the kernel
references them; when there are many, it is asked to forget the oldest. The state of a file is opened when it is
needed, and closed when no client has had the file open for `IDLE_S`, or when too many are unused. The next open opens
it again.

Inodes are never reused. The state that a time leads to is chosen at the lookup, and again after `IDLE_S` without use:
a transaction made before that time may have been published later.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyfuse3
import trio

from litereplica.errors import PageSizeChanged, ReplicaError
from litereplica.fuse import at_names
from litereplica.fuse.nodes import Attributes, Entries, InodeTable, Node
from litereplica.fuse.static import StaticFile
from litereplica.replica.past_catalog import Point
from litereplica.replica.past_snapshots import Identity, PastSnapshots
from litereplica.types import TXID

log = logging.getLogger(__name__)

IDLE_S = 60.0
"""A state that no client has open is closed after this time. It takes 16 bytes a page, and opening it again takes as
long as reading a restore plan."""

MAX_UNUSED = 8
"""States that are kept open without a client."""

MAX_NAMES = 1024
"""Directories that the kernel may reference; beyond that, it is asked to forget those unused for longest."""

MAX_IN_USE = 64
"""States that can be open at a time: each has a map of up to 16 bytes a page."""

LISTED_POINTS = 32
"""The newest points that a listing shows; it reads the headers of those that it has not shown before."""

NAME_TIMEOUT_S = 5.0
"""How long the kernel may cache a name; after that a lookup shows that it is in use."""


@dataclass(frozen=True, slots=True)
class PastStatistics:
    """A state that is open: `handles` of clients, and how long ago it was used last."""

    txid: TXID
    timestamp_ms: int
    commit: int
    handles: int
    unused_s: float
    error: str


class PastFile(Node):
    """The database file of one TXID. `state` is None while it is closed."""

    def __init__(self, inode: int, tree: AtDirectory, txid: TXID) -> None:
        super().__init__(inode)
        self.txid = txid
        self.used_at = trio.current_time()
        self.handles = 0
        self.state: StaticFile | None = None
        self.identity: Identity | None = None
        self.turn = trio.Lock()
        self._tree = tree
        self._attributes: Attributes | None = None

    def attributes(self) -> Attributes:
        """Return the attributes of the file, which stay the same for its life."""
        assert self._attributes is not None, "the kernel learns of a file only once its state has been open"
        return self._attributes

    async def open(self, *, own: bool, uid: int) -> None:
        """Count a handle and open the state. Raises `OSError`: ENOENT if no files lead there, or ENFILE."""
        self.handles += 1  # at once, so that it is not closed meanwhile
        try:
            self._tree.check_in_use()
            await self.opened_state()
            if self.is_lost:
                raise OSError(errno.ENOENT, f"no file in the store leads to TXID {self.txid:016x} any more")
        except ReplicaError as exc:
            self._count_down()
            raise OSError(errno.ENOENT, str(exc)) from exc
        except BaseException:
            self._count_down()
            raise

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        """Answer a READ if that takes no waiting; else None."""
        if self.state is None:
            return None
        self.used_at = trio.current_time()
        return self.state.read_now(offset, size)

    async def read(self, offset: int, size: int) -> bytes:
        """Answer a READ; see `StaticFile.read`."""
        state = await self.opened_state()
        return await state.read(offset, size)

    def release(self, handle: int) -> None:
        """Count a handle as closed."""
        self._count_down()

    def _count_down(self) -> None:
        self.handles -= 1
        self.used_at = trio.current_time()

    @property
    def is_lost(self) -> bool:
        """True if a page of the open state is in no file any more. Clients that have it open read the other pages."""
        return self.state is not None and self.state.past.error is not None

    async def opened_state(self) -> StaticFile:
        """The state, opened if it was closed. Raises the errors of `PastSnapshots.open`, and `_OtherState`."""
        self.used_at = trio.current_time()
        if self.state is None:
            async with self.turn:
                if self.state is None:
                    await self._open_state()
        state = self.state
        assert state is not None
        return state

    async def _open_state(self) -> None:
        past = await self._tree.past.open(self.txid)
        if self.identity is None:
            self.identity = past.identity
        elif not past.identity.is_same(self.identity):
            raise _OtherState(f"TXID {self.txid:016x} is another state now")
        state = StaticFile(past)
        if self._attributes is None:
            self._attributes = Attributes(size=state.size, mtime_ns=state.mtime_ns, entry_timeout_s=NAME_TIMEOUT_S)
        self.state = state
        self.used_at = trio.current_time()
        self._tree.close_unused()

    def close_state(self) -> None:
        """Close the state; the next use opens it again."""
        self.state = None

    def statistics(self) -> PastStatistics:
        """Statistics of the state, which must be open."""
        assert self.state is not None
        past = self.state.past
        return PastStatistics(
            txid=self.txid,
            timestamp_ms=past.identity.timestamp_ms,
            commit=past.snapshot.commit,
            handles=self.handles,
            unused_s=0.0 if self.handles else trio.current_time() - self.used_at,
            error=past.error.message if past.error is not None else "",
        )


class PastDirectory(Node):
    """The directory of a name in `.at`; its one entry is the database file."""

    def __init__(self, inode: int, tree: AtDirectory, *, name: bytes, point: Point, file: PastFile) -> None:
        super().__init__(inode)
        self.parent_inode = tree.inode
        self.name = name
        self.file = file
        self.used_at = trio.current_time()
        self._tree = tree
        self._attributes = Attributes(
            is_directory=True, mtime_ns=point.timestamp_ms * 1_000_000, entry_timeout_s=NAME_TIMEOUT_S
        )

    def attributes(self) -> Attributes:
        """Return the attributes of the directory; its mtime is the time of the state."""
        return self._attributes

    async def lookup(self, name: bytes) -> Node | None:
        """Return the database file; None for any other name, or if the state cannot be reached any more."""
        if name != self._tree.database_name:
            return None
        self.use()
        return await self._appear()

    async def entries(self) -> Entries:
        """Return the database file under its name; nothing if the state cannot be reached any more."""
        file = await self._appear()
        return [(self._tree.database_name, file)] if file is not None else []

    def use(self) -> None:
        """Note that the name is in use now."""
        self.used_at = trio.current_time()

    async def _appear(self) -> PastFile | None:
        """Return the file with its state open; None if no files lead to the state any more."""
        try:
            for _ in range(2):
                file = self.file
                try:
                    await file.opened_state()
                except _OtherState:
                    self.file = self._tree.replaced(file)
                    continue
                return None if file.is_lost else file
        except PageSizeChanged as exc:
            log.warning("%s; mount it by itself, with --txid", exc.message)
        except ReplicaError as exc:
            log.info("%s cannot be opened: %s", self.name.decode(errors="replace"), exc.message)
        return None


def _forget_name(inode: int, name: bytes) -> None:
    """Ask the kernel to drop a name in the directory `inode` and everything below it; FORGET requests follow."""
    pyfuse3.invalidate_entry_async(pyfuse3.InodeT(inode), pyfuse3.FileNameT(name), ignore_enoent=True)


class AtDirectory(Node):
    """The directory `.at`. `run` closes what is unused; `name` is that of the database file."""

    def __init__(
        self,
        inodes: InodeTable,
        past: PastSnapshots,
        *,
        name: str,
        idle_s: float = IDLE_S,
        max_unused: int = MAX_UNUSED,
        max_names: int = MAX_NAMES,
        wall_s: Callable[[], float] = time.time,
        forget_name: Callable[[int, bytes], None] = _forget_name,
    ) -> None:
        super().__init__(inodes.allocate())
        self.past = past
        self.database_name = name.encode()
        self._inodes = inodes
        self._idle_s = idle_s
        self._max_unused = max_unused
        self._max_names = max_names
        self._wall_s = wall_s
        self._forget_name = forget_name
        self._names: dict[bytes, PastDirectory] = {}
        self._directories: dict[int, PastDirectory] = {}
        self._txids: dict[TXID, PastFile] = {}
        self._files: dict[int, PastFile] = {}

    async def run(self) -> None:
        """Close and forget unused states and names, until cancelled."""
        while True:
            await trio.sleep(self._idle_s / 4)
            self._tidy()

    def statistics(self) -> list[PastStatistics]:
        """Return the statistics of the states that are open."""
        return [file.statistics() for file in self._files.values() if file.state is not None]

    @property
    def is_in_use(self) -> bool:
        """True if a client has a past state open."""
        return any(file.handles for file in self._files.values())

    def close(self) -> None:
        """Remove the directory and all below it from the table. Nothing may be in use."""
        for node in (*self._directories.values(), *self._files.values(), self):
            self._inodes.remove(node)

    def attributes(self) -> Attributes:
        """Return the attributes of the directory."""
        return Attributes(is_directory=True, entry_timeout_s=NAME_TIMEOUT_S)

    async def lookup(self, name: bytes) -> Node | None:
        """Return the directory of a name: the existing one while it is in use."""
        known = self._names.get(name)
        if known is not None and self._is_in_use(known):
            known.use()
            return known
        point = await self._find(name)
        return self._entered(name, point) if point is not None else None

    def stays_absent(self, name: bytes) -> bool:
        """False: transactions are published."""
        return False

    async def entries(self) -> Entries:
        """Return the directories of the newest points, by TXID."""
        points = await self.past.points(LISTED_POINTS)
        names = [at_names.txid_name(point.txid) for point in points]
        return [(name, self._entered(name, point)) for name, point in zip(names, points, strict=True)]

    # --- names -------------------------------------------------------------------------------------

    async def _find(self, name: bytes) -> Point | None:
        wanted = at_names.parse(name)
        if wanted is None:
            return None
        if wanted.txid:
            return await self.past.point(wanted.txid)
        if wanted.before_ms > self._wall_s() * 1000:
            return None  # the state at a time to come is not known yet
        return await self.past.before(wanted.before_ms)

    def _entered(self, name: bytes, point: Point) -> PastDirectory:
        """Return the directory of a name for this point: the existing one if it is for the same TXID."""
        file = self._file_of(point.txid)
        directory = self._names.get(name)
        if directory is None or directory.file.txid != point.txid:
            directory = PastDirectory(self._inodes.allocate(), self, name=name, point=point, file=file)
            self._names[name] = self._directories[directory.inode] = self._inodes.add(directory)
        directory.use()
        return directory

    def _is_in_use(self, directory: PastDirectory) -> bool:
        unused_since = max(directory.used_at, directory.file.used_at)
        return directory.file.handles > 0 or trio.current_time() - unused_since < self._idle_s

    # --- states ------------------------------------------------------------------------------------

    def check_in_use(self) -> None:
        """Raise `OSError` (ENFILE) if too many states are in use."""
        if sum(each.handles > 0 for each in self._files.values()) > MAX_IN_USE:
            raise OSError(errno.ENFILE, f"more than {MAX_IN_USE} past states are in use; close some")

    def replaced(self, file: PastFile) -> PastFile:
        """Return a new file for the TXID of one whose state has changed."""
        self._txids.pop(file.txid, None)
        return self._file_of(file.txid)

    def close_unused(self) -> None:
        """Close the unused states that exceed `max_unused`, oldest first."""
        unused = [file for file in self._files.values() if file.state is not None and not file.handles]
        unused.sort(key=lambda file: file.used_at)
        for file in unused[: max(0, len(unused) - self._max_unused)]:
            file.close_state()

    def _file_of(self, txid: TXID) -> PastFile:
        if txid not in self._txids:
            file = self._inodes.add(PastFile(self._inodes.allocate(), self, txid))
            self._txids[txid] = self._files[file.inode] = file
        return self._txids[txid]

    # --- tidying -----------------------------------------------------------------------------------

    def _tidy(self) -> None:
        now = trio.current_time()
        for file in self._files.values():
            if not file.handles and now - file.used_at >= self._idle_s:
                file.close_state()
        self._drop_directories()
        unused = [each for each in self._directories.values() if each.references and not self._is_in_use(each)]
        for directory in sorted(unused, key=lambda each: each.used_at)[: max(0, len(unused) - self._max_names)]:
            self._forget_name(self.inode, directory.name)
        self._drop_files()

    def _drop_directories(self) -> None:
        for directory in list(self._directories.values()):
            if not directory.references and not self._is_in_use(directory):
                self._inodes.remove(directory)
                del self._directories[directory.inode]
                if self._names.get(directory.name) is directory:
                    del self._names[directory.name]

    def _drop_files(self) -> None:
        named = {directory.file.inode for directory in self._directories.values()}
        for file in list(self._files.values()):
            if not file.references and not file.handles and file.inode not in named and file.state is None:
                self._inodes.remove(file)
                del self._files[file.inode]
                if self._txids.get(file.txid) is file:
                    del self._txids[file.txid]


class _OtherState(ReplicaError):
    """The replica was made anew: the TXID of a file is another state now."""
