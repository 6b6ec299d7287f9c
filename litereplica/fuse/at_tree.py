"""The hidden directory `.at` of a live mount: past states, which appear when they are looked up.

    .at/txid-000000000000002a/app.db       by TXID; a listing of `.at` shows the newest ones, with their times
    .at/2026-11-22T10:00:00Z/app.db        by time: the newest state before it

Listed are TXIDs rather than times, since a TXID names its state whatever clocks did, and since two states may have one
time. The time is the directory's mtime.

A directory is what was looked up under a name, a file is the state of a TXID; several directories may lead to one file,
so that the kernel has its pages once. Both are records of some hundred bytes that live as long as the kernel knows
them, and when there are many, it is asked to forget the oldest. The state behind a file is another matter: it is
opened when somebody needs it, and closed when nobody has had the file open for `IDLE_S`, or when too many are unused;
the next open opens it again.

Inodes are never given twice. What a time means is decided when it is looked up, and again when that was unused for
`IDLE_S`: a transaction that was made before that time may have been published after it.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import pyfuse3
import trio

from litereplica.errors import PageSizeChanged, ReplicaError
from litereplica.fuse import at_names
from litereplica.fuse.nodes import FIRST_PAST_INODE, Inode, Node
from litereplica.fuse.static import StaticFile
from litereplica.replica.past_catalog import Point
from litereplica.replica.past_snapshots import Identity, PastSnapshots
from litereplica.types import TXID

log = logging.getLogger(__name__)

IDLE_S = 60.0
"""A state that nobody has open is closed after this time: a map of 16 bytes a page, and as long to make as a restore
plan takes to read."""

MAX_UNUSED = 8
"""States that are kept although nobody has them open."""

MAX_NAMES = 1024
"""Directories that the kernel may know; beyond, it is asked to forget those that nobody has used for longest."""

MAX_IN_USE = 64
"""States that can be open at a time: each has a map of up to 16 bytes a page."""

LISTED_POINTS = 32
"""The newest points that a listing shows; it reads the headers of those that it has not shown before."""

NAME_TIMEOUT_S = 5.0
"""For how long the kernel believes that a name leads where it led: then we learn of its use."""


@dataclass(frozen=True, slots=True)
class PastStatistics:
    """A state that is open: `handles` of clients, and how long ago it was used last."""

    txid: TXID
    timestamp_ms: int
    commit: int
    handles: int
    unused_s: float
    error: str


@dataclass(slots=True, eq=False)
class _File:
    """`known`: how often the kernel has been told of it. `state` None: closed."""

    inode: int
    txid: TXID
    used_at: float
    known: int = 0
    handles: int = 0
    state: StaticFile | None = None
    identity: Identity | None = None
    node: Node | None = None
    turn: trio.Lock = field(default_factory=trio.Lock)


@dataclass(slots=True, eq=False)
class _Directory:
    inode: int
    name: bytes
    file: _File
    node: Node
    used_at: float
    known: int = 0


def _forget_name(name: bytes) -> None:
    """Ask the kernel to forget a name in `.at` and what is below it; it tells when it has."""
    pyfuse3.invalidate_entry_async(pyfuse3.InodeT(Inode.AT), pyfuse3.FileNameT(name), ignore_enoent=True)


class AtTree:
    """See the module. `run` closes what is unused; `name` is that of the database file."""

    def __init__(
        self,
        past: PastSnapshots,
        *,
        name: str,
        idle_s: float = IDLE_S,
        max_unused: int = MAX_UNUSED,
        max_names: int = MAX_NAMES,
        wall_s: Callable[[], float] = time.time,
        forget_name: Callable[[bytes], None] = _forget_name,
    ) -> None:
        self._past = past
        self._name = name.encode()
        self._idle_s = idle_s
        self._max_unused = max_unused
        self._max_names = max_names
        self._wall_s = wall_s
        self._forget_name = forget_name
        self._inodes = count(FIRST_PAST_INODE)
        self._names: dict[bytes, _Directory] = {}
        self._directories: dict[int, _Directory] = {}
        self._txids: dict[TXID, _File] = {}
        self._files: dict[int, _File] = {}

    async def run(self) -> None:
        """Close and forget what is unused, for ever."""
        while True:
            await trio.sleep(self._idle_s / 4)
            self._tidy()

    def statistics(self) -> list[PastStatistics]:
        """The states that are open."""
        return [_statistics(file) for file in self._files.values() if file.state is not None]

    # --- what the kernel asks ----------------------------------------------------------------------

    def node(self, inode: int) -> Node:
        if inode == Inode.AT:
            return Node(inode=inode, is_directory=True)
        if inode in self._directories:
            return self._directories[inode].node
        node = self._file(inode).node
        assert node is not None, "the kernel is told of a file only when its state has been open"
        return node

    def is_absent_for_ever(self, parent: int) -> bool:
        return parent != Inode.AT

    async def lookup(self, parent: int, name: bytes) -> Node | None:
        if parent == Inode.AT:
            directory = await self._directory(name)
            return directory.node if directory is not None else None
        if name != self._name:
            return None
        directory = self._required(parent)
        directory.used_at = trio.current_time()
        return await self._appear(directory)

    async def list(self, inode: int) -> Sequence[tuple[bytes, Node]]:
        if inode != Inode.AT:
            node = await self._appear(self._required(inode))
            return [(self._name, node)] if node is not None else []
        points = await self._past.points(LISTED_POINTS)
        return [
            (name, self._entered(name, point).node) for point in points for name in [at_names.txid_name(point.txid)]
        ]

    async def open(self, inode: int) -> None:
        file = self._file(inode)
        file.handles += 1  # at once, so that it is not closed meanwhile
        try:
            if sum(each.handles > 0 for each in self._files.values()) > MAX_IN_USE:
                raise OSError(errno.ENFILE, f"more than {MAX_IN_USE} past states are in use")
            await self._opened(file)
            if _is_lost(file):
                raise OSError(errno.ENOENT, f"nothing in the store leads to TXID {file.txid:016x} any more")
        except ReplicaError as exc:
            self.release(inode)
            raise OSError(errno.ENOENT, str(exc)) from exc
        except BaseException:
            self.release(inode)
            raise

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        state = await self._opened(self._file(inode))
        return await state.read(offset, size)

    def release(self, inode: int) -> None:
        file = self._file(inode)
        file.handles -= 1
        file.used_at = trio.current_time()

    def remember(self, inode: int) -> None:
        record = self._directories.get(inode) or self._files.get(inode)
        if record is not None:
            record.known += 1

    def forget(self, inode: int, count: int) -> None:
        record = self._directories.get(inode) or self._files.get(inode)
        if record is not None:
            record.known -= count

    # --- names -------------------------------------------------------------------------------------

    async def _directory(self, name: bytes) -> _Directory | None:
        """What a name means, or meant when it was last in use."""
        known = self._names.get(name)
        if known is not None and self._is_in_use(known):
            known.used_at = trio.current_time()
            return known
        point = await self._find(name)
        return self._entered(name, point) if point is not None else None

    async def _find(self, name: bytes) -> Point | None:
        wanted = at_names.parse(name)
        if wanted is None:
            return None
        if wanted.txid:
            return await self._past.point(wanted.txid)
        if wanted.before_ms > self._wall_s() * 1000:
            return None  # what will have been then is not known yet
        return await self._past.before(wanted.before_ms)

    def _entered(self, name: bytes, point: Point) -> _Directory:
        """The directory of a name that means this point; the one that there is, if it does already."""
        file = self._file_of(point.txid)
        directory = self._names.get(name)
        if directory is None or directory.file.txid != point.txid:
            node = Node(
                inode=next(self._inodes),
                is_directory=True,
                mtime_ns=point.timestamp_ms * 1_000_000,
                entry_timeout_s=NAME_TIMEOUT_S,
            )
            directory = _Directory(node.inode, name, file, node, trio.current_time())
            self._names[name] = self._directories[node.inode] = directory
        directory.used_at = trio.current_time()
        return directory

    def _is_in_use(self, directory: _Directory) -> bool:
        unused_since = max(directory.used_at, directory.file.used_at)
        return directory.file.handles > 0 or trio.current_time() - unused_since < self._idle_s

    # --- states ------------------------------------------------------------------------------------

    async def _appear(self, directory: _Directory) -> Node | None:
        """The file of a directory, its state open; None when that cannot be reached any more."""
        try:
            for _ in range(2):
                file = directory.file
                try:
                    await self._opened(file)
                except _OtherState:
                    self._txids.pop(file.txid, None)
                    directory.file = self._file_of(file.txid)
                    continue
                return None if _is_lost(file) else file.node
        except PageSizeChanged as exc:
            log.warning("%s; mount it by itself, with --txid", exc.message)
        except ReplicaError as exc:
            log.info("%s is not there: %s", directory.name.decode(errors="replace"), exc.message)
        return None

    async def _opened(self, file: _File) -> StaticFile:
        """The state of a file, opened if it was closed. Raises what `PastSnapshots.open` does, and `_OtherState`."""
        file.used_at = trio.current_time()
        if file.state is None:
            async with file.turn:
                if file.state is None:
                    await self._open_state(file)
        state = file.state
        assert state is not None
        return state

    async def _open_state(self, file: _File) -> None:
        past = await self._past.open(file.txid)
        if file.identity is None:
            file.identity = past.identity
        elif not past.identity.is_same(file.identity):
            raise _OtherState(f"TXID {file.txid:016x} is not the state that it was")
        state = StaticFile(past)
        if file.node is None:
            file.node = Node(inode=file.inode, size=state.size, mtime_ns=state.mtime_ns, entry_timeout_s=NAME_TIMEOUT_S)
        file.state = state
        file.used_at = trio.current_time()
        self._close_unused()

    def _tidy(self) -> None:
        now = trio.current_time()
        for file in list(self._files.values()):
            if not file.handles and now - file.used_at >= self._idle_s:
                file.state = None
        for directory in list(self._directories.values()):
            if not directory.known and not self._is_in_use(directory):
                del self._directories[directory.inode]
                if self._names.get(directory.name) is directory:
                    del self._names[directory.name]
        unused = [each for each in self._directories.values() if each.known and not self._is_in_use(each)]
        for directory in sorted(unused, key=lambda each: each.used_at)[: max(0, len(unused) - self._max_names)]:
            self._forget_name(directory.name)
        named = {directory.file.inode for directory in self._directories.values()}
        for file in list(self._files.values()):
            if not file.known and not file.handles and file.inode not in named and file.state is None:
                del self._files[file.inode]
                if self._txids.get(file.txid) is file:
                    del self._txids[file.txid]

    def _close_unused(self) -> None:
        unused = [file for file in self._files.values() if file.state is not None and not file.handles]
        unused.sort(key=lambda file: file.used_at)
        for file in unused[: max(0, len(unused) - self._max_unused)]:
            file.state = None

    def _file_of(self, txid: TXID) -> _File:
        if txid not in self._txids:
            file = _File(next(self._inodes), txid, trio.current_time())
            self._txids[txid] = self._files[file.inode] = file
        return self._txids[txid]

    def _file(self, inode: int) -> _File:
        if inode not in self._files:
            raise OSError(errno.ESTALE, f"no past state has inode {inode}")
        return self._files[inode]

    def _required(self, inode: int) -> _Directory:
        if inode not in self._directories:
            raise OSError(errno.ENOTDIR if inode in self._files else errno.ESTALE, f"no directory has inode {inode}")
        return self._directories[inode]


class _OtherState(ReplicaError):
    """The replica was made anew: the TXID of a file is that of another state now."""


def _is_lost(file: _File) -> bool:
    """Has a page of the open state been looked for in vain? Who has it open reads what there is."""
    return file.state is not None and file.state.past.error is not None


def _statistics(file: _File) -> PastStatistics:
    assert file.state is not None
    past = file.state.past
    return PastStatistics(
        txid=file.txid,
        timestamp_ms=past.identity.timestamp_ms,
        commit=past.snapshot.commit,
        handles=file.handles,
        unused_s=0.0 if file.handles else trio.current_time() - file.used_at,
        error=past.error.message if past.error is not None else "",
    )
