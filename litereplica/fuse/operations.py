"""FUSE requests: finds the node, passes the request on, translates errors to an errno.

What a request means is the affair of the nodes (`nodes.py`); here are handles, the kernel's references, and the gate
that clients wait at until the mount is ready. Every handler passes through `_answered`, the one place that limits its
time and turns errors into an errno: a process that waits for an answer cannot be killed, and pyfuse3 takes the whole
mount down when a handler raises anything but `FUSEError`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

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
    StatvfsData,
    XAttrNameT,
)

from litereplica.fuse.errno import errno_of, is_expected
from litereplica.fuse.mountpoint import Owner
from litereplica.fuse.names import XATTR_PREFIX
from litereplica.fuse.nodes import Entries, InodeTable, Node, StaleInode, entry_of, name_only, no_entry

log = logging.getLogger(__name__)

FREE_BLOCKS = 1 << 28
"""Of 4096 bytes, 1 TiB, reported as free by statfs(2): a mount that reports none counts as full and sets off alarms."""
FREE_FILES = 1 << 20

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Handle:
    """An open file. `content` is that of a generated file; `own` is True if the daemon itself opened it.

    `direct` is True if it was opened with O_DIRECT: then the kernel does not cut reads at the file's end.
    """

    node: Node
    own: bool
    content: bytes | None
    direct: bool


def _answered(handler: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    @wraps(handler)
    async def answer(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        operations = args[0]
        assert isinstance(operations, Operations)
        try:
            with trio.fail_after(operations.limit_s):
                return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except trio.TooSlowError:
            log.error("%s: not answered within %g s", handler.__name__, operations.limit_s)
            raise FUSEError(errno.ETIMEDOUT) from None
        except Exception as exc:
            if isinstance(exc, StaleInode):
                log.debug("%s: %s", handler.__name__, exc)  # the kernel looks the name up again
            elif is_expected(exc):
                log.error("%s: %s", handler.__name__, exc)
            else:
                log.exception("%s failed", handler.__name__)
            raise FUSEError(errno_of(exc)) from exc

    return answer


class Operations(pyfuse3.Operations):
    """The request handlers of a read-only mount.

    `total_size` returns the bytes that `statfs` reports as used. Requests that take longer than `limit_s` fail.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, inodes: InodeTable, owner: Owner, *, total_size: Callable[[], int], limit_s: float) -> None:
        super().__init__()
        self.limit_s = limit_s
        self._inodes = inodes
        self._owner = owner
        self._total_size = total_size
        self._handles: dict[int, Handle] = {}
        self._listings: dict[int, Entries] = {}
        self._next_handle = 1
        self._released = trio.Event()
        self._open_to_others = trio.Event()

    def open_to_others(self) -> None:
        """Let clients open files; those that already wait in an open go on."""
        self._open_to_others.set()

    def close_to_others(self) -> None:
        """Make clients that open a file wait until `open_to_others`."""
        if self._open_to_others.is_set():
            self._open_to_others = trio.Event()

    @property
    def client_handles(self) -> int:
        """Number of files that clients have open."""
        return sum(not handle.own for handle in self._handles.values())

    async def wait_until_unused(self) -> None:
        """Return when no client has a file open."""
        while self.client_handles:
            self._released = trio.Event()
            await self._released.wait()

    @_answered
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """LOOKUP: return the attributes of a name, and count a reference of the kernel."""
        parent = self._inodes.get(parent_inode)
        node: Node | None
        if name == b".":
            node = parent
        elif name == b"..":
            node = self._inodes.get(parent.parent_inode)
        else:
            node = await parent.lookup(name)
        if node is None:
            return no_entry(for_ever=parent.stays_absent(name))
        node.remember()
        return entry_of(node, self._owner)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """FORGET: drop references of the kernel."""
        for inode, count in inode_list:
            if inode in self._inodes:
                self._inodes.get(inode).forget(count)

    @_answered
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """GETATTR: return the attributes of an inode."""
        return entry_of(self._inodes.get(inode), self._owner)

    @_answered
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """ACCESS: allow everything but writing."""
        if mode & os.W_OK:
            raise FUSEError(errno.EROFS)
        return True

    @_answered
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """OPEN: wait until the mount is ready, then open the node. Only the daemon itself may open it for writing."""
        node = self._inodes.get(inode)
        own = _is_own_thread(ctx.pid)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if writes and not (own and node.daemon_may_write):
            raise FUSEError(errno.EROFS)
        if not own and node.waits_until_ready:
            await self._open_to_others.wait()
        if not own and not node.may_open(ctx.pid):
            raise FUSEError(errno.ENOLCK)
        content = await node.open(own=own, uid=ctx.uid)
        handle = self._new_handle()
        if not own:
            node.opened(handle, ctx.pid)
        self._handles[handle] = Handle(node, own, content, direct=bool(flags & os.O_DIRECT))
        return FileInfo(fh=handle, keep_cache=content is None, direct_io=content is not None)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes | bytearray:  # type: ignore[override]  # a buffer
        """READ: return what the node, or the content that was generated at the open, has there.

        Most pages are on disk once a database is hydrated. Then the node has them at once, and the time limit, which
        takes as long as the rest, is not needed.
        """
        found = self._read_now(fh, off, size)
        return await self._read(fh, off, size) if found is None else found

    def _read_now(self, fh: FileHandleT, off: int, size: int) -> bytes | bytearray | None:
        try:
            handle = self._handles[fh]
            if handle.content is None and not handle.direct and handle.node.may_read(fh):
                return handle.node.read_now(off, size)
        except Exception:
            log.debug("a READ cannot be answered at once", exc_info=True)  # `_read` says what is wrong
        return None

    @_answered
    async def _read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        handle = self._handles[fh]
        if handle.content is not None:
            end = max(len(handle.content), handle.node.attributes().size)
            return handle.content[off : off + size].ljust(min(size, max(0, end - off)), b"\0")
        if not handle.node.may_read(fh):
            raise FUSEError(errno.ENOLCK)
        if handle.direct:
            size = min(size, max(0, handle.node.attributes().size - off))
        return await handle.node.read(off, size) if size else b""

    @_answered
    async def release(self, fh: FileHandleT) -> None:
        """RELEASE: the last descriptor of a handle was closed."""
        self._handles.pop(fh).node.release(fh)
        self._released.set()

    @_answered
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """OPENDIR: take the listing, so that READDIR continues in the same one."""
        entries = await self._inodes.get(inode).entries()
        handle = self._new_handle()
        self._listings[handle] = entries
        return handle

    @_answered
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """READDIR: reply with the entries from `start_id` on, counting a reference of the kernel for each."""
        for i, (name, node) in enumerate(self._listings[fh][start_id:], start_id + 1):
            is_known = node is not None and node.inode in self._inodes  # it may have gone since OPENDIR
            entry = entry_of(node, self._owner) if node is not None and is_known else name_only(name)
            if not pyfuse3.readdir_reply(token, FileNameT(name), entry, i):
                break
            if node is not None and is_known:
                node.remember()

    @_answered
    async def releasedir(self, fh: FileHandleT) -> None:
        """RELEASEDIR: drop the listing."""
        del self._listings[fh]

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """STATFS: return the sizes of the file system."""
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        used = -(-self._total_size() // 4096)
        answer.f_blocks = used + FREE_BLOCKS
        answer.f_bfree = answer.f_bavail = FREE_BLOCKS
        answer.f_files = len(self._inodes) + FREE_FILES
        answer.f_ffree = answer.f_favail = FREE_FILES
        answer.f_namemax = 255
        return answer

    @_answered
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """GETXATTR: return one of our attributes. The kernel caches none."""
        key = name.decode(errors="replace")
        if key.startswith(XATTR_PREFIX):
            value = self._inodes.get(inode).extended(ctx.uid).get(key.removeprefix(XATTR_PREFIX))
            if value is not None:
                return value.encode()
        raise FUSEError(errno.ENODATA)

    @_answered
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """LISTXATTR: return the names of our attributes."""
        return [XAttrNameT(f"{XATTR_PREFIX}{name}".encode()) for name in self._inodes.get(inode).extended(ctx.uid)]

    async def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise FUSEError(errno.EROFS)

    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = _refuse
    write = setxattr = removexattr = create = _refuse

    def _new_handle(self) -> FileHandleT:
        handle = self._next_handle
        self._next_handle += 1
        return FileHandleT(handle)


def _is_own_thread(thread_id: int) -> bool:
    """True if the request was made by a thread of this process; FUSE requests carry the thread's id."""
    return Path(f"/proc/self/task/{thread_id}").exists()
