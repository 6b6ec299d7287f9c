"""FUSE requests, translated: which file, which bytes, which errno. No behaviour of its own.

`FileSystem` is what the mounted directory holds, `PastTree` what its hidden directory of past states does; this module
knows nothing of replicas, and they know nothing of requests. Every handler passes through `_answered`, the one place
that turns errors into an errno: pyfuse3 takes the whole mount down when a handler raises anything but `FUSEError`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from litereplica.fuse import nodes
from litereplica.fuse.errno import errno_of, is_expected
from litereplica.fuse.nodes import FIRST_PAST_INODE, Inode, Node, Owner

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_GENERATED = (Inode.POS, Inode.STATUS)
"""Files whose content is made when they are opened; the kernel caches none of it."""


class FileSystem(Protocol):
    """What is mounted."""

    mtime_ns: int

    @property
    def names(self) -> Mapping[bytes, Inode]:
        """What a listing shows."""

    def size(self, inode: Inode) -> int:
        """Bytes of a file of the database."""

    def check_open(self, inode: Inode) -> None:
        """Raise what an open of a file is to fail with."""

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of a file of the database."""

    def generate(self, inode: Inode) -> bytes:
        """Content of a generated file, as of now."""


class PastTree(Protocol):
    """A directory of past states, `Inode.AT`, and what is below it.

    `remember` and `forget` count what the kernel knows of each inode.
    """

    def node(self, inode: int) -> Node:
        """What is known of an inode."""

    async def lookup(self, parent: int, name: bytes) -> Node | None:
        """An entry of a directory, or None."""

    def is_absent_for_ever(self, parent: int) -> bool:
        """Will a name that this directory does not have never be in it?"""

    async def list(self, inode: int) -> Sequence[tuple[bytes, Node]]:
        """What a listing of a directory shows."""

    async def open(self, inode: int) -> None:
        """Somebody opens a file."""

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        """Bytes of a file that is open; fewer at its end."""

    def release(self, inode: int) -> None:
        """Somebody closes a file."""

    def remember(self, inode: int) -> None:
        """The kernel has been told of it once more."""

    def forget(self, inode: int, count: int) -> None:
        """The kernel has forgotten so many times that it was told."""


@dataclass(frozen=True, slots=True)
class Handle:
    """An open file. `content` is that of a generated one; `own` says that the daemon itself opened it."""

    inode: int
    own: bool
    content: bytes | None


def _answered(handler: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    @wraps(handler)
    async def answer(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except Exception as exc:
            if is_expected(exc):
                log.error("%s: %s", handler.__name__, exc)
            else:
                log.exception("%s failed", handler.__name__)
            raise FUSEError(errno_of(exc)) from exc

    return answer


def _refuse(*_args: object) -> NoReturn:
    raise FUSEError(errno.EROFS)


class Operations(pyfuse3.Operations):
    """Read-only files for everybody; only the daemon itself may open `-shm` for writing, to take locks."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, file_system: FileSystem, owner: Owner, past: PastTree | None = None) -> None:
        super().__init__()
        self.before_open: Callable[[], Awaitable[None]] | None = None
        self._fs = file_system
        self._owner = owner
        self._past = past
        self._names = file_system.names
        self._handles: dict[int, Handle] = {}
        self._listings: dict[int, Sequence[tuple[bytes, Node]]] = {}
        self._next_handle = 1
        self._released = trio.Event()
        self._open_to_others = trio.Event()

    def open_to_others(self) -> None:
        """From now on others get the files that they open; who came before this has waited."""
        self._open_to_others.set()

    def close_to_others(self) -> None:
        """Whoever opens a file waits, until `open_to_others`."""
        if self._open_to_others.is_set():
            self._open_to_others = trio.Event()

    @property
    def client_handles(self) -> int:
        """Files that others have open."""
        return sum(not handle.own for handle in self._handles.values())

    async def wait_until_unused(self) -> None:
        """Return when no file is open for others."""
        while self.client_handles:
            self._released = trio.Event()
            await self._released.wait()

    @_answered
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        if self._is_past(parent_inode):
            return await self._past_lookup(parent_inode, name)
        if name in (b".", b".."):
            return self._attributes(Inode.ROOT)
        if self._past is not None and name == nodes.AT_NAME.encode():
            return self._attributes(Inode.AT)
        inode = Inode.STATUS if name == nodes.STATUS_NAME.encode() else self._names.get(name)
        return nodes.no_entry() if inode is None else self._attributes(inode)

    async def _past_lookup(self, parent: int, name: bytes) -> EntryAttributes:
        assert self._past is not None
        if name == b".":
            return self._told(self._past.node(parent))
        if name == b"..":
            return self._attributes(Inode.ROOT if parent == Inode.AT else Inode.AT)
        node = await self._past.lookup(parent, name)
        return self._told(node) if node is not None else nodes.no_entry(ever=self._past.is_absent_for_ever(parent))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            if self._past is not None and inode >= FIRST_PAST_INODE:
                self._past.forget(inode, count)

    @_answered
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(inode)

    @_answered
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        if mode & os.W_OK:
            _refuse()
        return True

    @_answered
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        own = _is_own_thread(ctx.pid)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if writes and not (own and inode == Inode.SHM):
            _refuse()
        if not own and inode != Inode.STATUS:
            await self._open_to_others.wait()
        content = None
        if self._past is not None and self._is_past(inode):
            await self._past.open(inode)
        else:
            node = Inode(inode)
            if not own and node is not Inode.STATUS:
                if self.before_open is not None:
                    await self.before_open()
                self._fs.check_open(node)
            content = self._fs.generate(node) if node in _GENERATED else None
        handle = self._new_handle()
        self._handles[handle] = Handle(inode, own, content)
        return FileInfo(fh=handle, keep_cache=content is None, direct_io=content is not None)

    @_answered
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        handle = self._handles[fh]
        if handle.content is not None:
            return handle.content[off : off + size]
        if self._past is not None and self._is_past(handle.inode):
            return await self._past.read(handle.inode, off, size)
        return await self._fs.read(Inode(handle.inode), off, size)

    @_answered
    async def release(self, fh: FileHandleT) -> None:
        handle = self._handles.pop(fh)
        if self._past is not None and self._is_past(handle.inode):
            self._past.release(handle.inode)
        self._released.set()

    @_answered
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        if self._past is not None and self._is_past(inode):
            listing = await self._past.list(inode)
        else:
            listing = [(name, self._node(each)) for name, each in self._names.items()]
        handle = self._new_handle()
        self._listings[handle] = listing
        return handle

    @_answered
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        for i, (name, node) in enumerate(self._listings[fh][start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, FileNameT(name), nodes.attributes(node, self._owner), i):
                break
            if self._past is not None and node.inode >= FIRST_PAST_INODE:
                self._past.remember(node.inode)

    @_answered
    async def releasedir(self, fh: FileHandleT) -> None:
        del self._listings[fh]

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = -(-self._fs.size(Inode.DATABASE) // 4096)
        answer.f_files = len(Inode)
        answer.f_namemax = 255
        return answer

    # --- whatever would change something -----------------------------------------------------

    @_answered
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        _refuse()

    @_answered
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        _refuse()

    @_answered
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        _refuse()

    @_answered
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        _refuse()

    @_answered
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        _refuse()

    @_answered
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        _refuse()

    @_answered
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        _refuse()

    @_answered
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        _refuse()

    @_answered
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        _refuse()

    @_answered
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        _refuse()

    @_answered
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        _refuse()

    @_answered
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        _refuse()

    def _attributes(self, inode: int) -> EntryAttributes:
        if self._past is not None and self._is_past(inode):
            return nodes.attributes(self._past.node(inode), self._owner)
        return nodes.attributes(self._node(Inode(inode)), self._owner)

    def _node(self, inode: Inode) -> Node:
        if inode is Inode.ROOT:
            return Node(inode=inode, is_directory=True)
        if inode is Inode.STATUS:
            return Node(inode=inode)
        size = nodes.POS_SIZE if inode is Inode.POS else self._fs.size(inode)
        return Node(inode=inode, size=size, mtime_ns=self._fs.mtime_ns)

    def _told(self, node: Node) -> EntryAttributes:
        """The answer to a lookup of a past state, which the kernel takes back by `forget`."""
        assert self._past is not None
        if node.inode >= FIRST_PAST_INODE:
            self._past.remember(node.inode)
        return nodes.attributes(node, self._owner)

    def _is_past(self, inode: int) -> bool:
        return self._past is not None and (inode == Inode.AT or inode >= FIRST_PAST_INODE)

    def _new_handle(self) -> FileHandleT:
        handle = self._next_handle
        self._next_handle += 1
        return FileHandleT(handle)


def _is_own_thread(thread_id: int) -> bool:
    """A request carries the id of the thread that made it: is that one of this process?"""
    return Path(f"/proc/self/task/{thread_id}").exists()
