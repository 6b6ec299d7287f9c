"""FUSE requests, translated: which file, which bytes, which errno. No behaviour of its own.

`FileSystem` is what the mounted directory holds; this module knows nothing of replicas, and `FileSystem` nothing
of FUSE. Every handler passes through `_answered`, the one place that turns errors into an errno: pyfuse3 takes the
whole mount down when a handler raises anything but `FUSEError`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Coroutine
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
from litereplica.fuse.nodes import Inode, Owner

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_GENERATED = (Inode.POS, Inode.STATUS)
"""Files whose content is made when they are opened; the kernel caches none of it."""


class FileSystem(Protocol):
    """What is mounted."""

    name: str

    def size(self, inode: Inode) -> int:
        """Bytes of a file of the database."""

    def check_open(self, inode: Inode) -> None:
        """Raise what an open of a file is to fail with."""

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of a file of the database."""

    def generate(self, inode: Inode) -> bytes:
        """Content of a generated file, as of now."""


@dataclass(frozen=True, slots=True)
class Handle:
    """An open file. `content` is that of a generated one; `own` says that the daemon itself opened it."""

    inode: Inode
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

    def __init__(self, file_system: FileSystem, owner: Owner) -> None:
        super().__init__()
        self._fs = file_system
        self._owner = owner
        self._names = nodes.file_names(file_system.name)
        self._handles: dict[int, Handle] = {}
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
        if name in (b".", b".."):
            return self._attributes(Inode.ROOT)
        inode = Inode.STATUS if name == nodes.STATUS_NAME.encode() else self._names.get(name)
        return nodes.no_entry() if inode is None else self._attributes(inode)

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
        node = Inode(inode)
        own = _is_own_thread(ctx.pid)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if writes and not (own and node is Inode.SHM):
            _refuse()
        if not own and node is not Inode.STATUS:
            await self._open_to_others.wait()
            self._fs.check_open(node)
        content = self._fs.generate(node) if node in _GENERATED else None
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = Handle(node, own, content)
        return FileInfo(fh=handle, keep_cache=content is None, direct_io=content is not None)

    @_answered
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        handle = self._handles[fh]
        if handle.content is not None:
            return handle.content[off : off + size]
        return await self._fs.read(handle.inode, off, size)

    @_answered
    async def release(self, fh: FileHandleT) -> None:
        del self._handles[fh]
        self._released.set()

    @_answered
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return inode

    @_answered
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        for name, inode in self._names.items():
            if inode > start_id and not pyfuse3.readdir_reply(token, name, self._attributes(inode), inode):
                break

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
        node = Inode(inode)
        if node is Inode.ROOT or node is Inode.STATUS:
            size = 0
        else:
            size = nodes.POS_SIZE if node is Inode.POS else self._fs.size(node)
        return nodes.attributes(node, size=size, owner=self._owner)


def _is_own_thread(thread_id: int) -> bool:
    """A request carries the id of the thread that made it: is that one of this process?"""
    return Path(f"/proc/self/task/{thread_id}").exists()
