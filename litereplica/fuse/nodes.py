"""The tree of files that a mount shows: what a node answers, and the table of inodes.

A mount of one database has these nodes; each answers for itself, and `Operations` knows none of them by name.

    /                     Directory      the entries below
    ├── app.db            LiveNode       (mount.py), or FixedNode (static_mount.py) and neither -wal nor -shm
    ├── app.db-wal        LiveNode
    ├── app.db-shm        LiveNode
    ├── app.db-pos        GeneratedFile  position of a transaction that begins now
    ├── .litereplica      GeneratedFile  the daemon's status as JSON; not listed
    ├── .litereplica.db   StatusDatabase (status_database.py) the same as a SQLite database; not listed
    └── .at               AtDirectory    (at_tree.py) past states, which appear when they are looked up; not listed

A node is found by its inode, which `InodeTable` allocates and never reuses. Nodes that come and go count the kernel's
references (`remember`, `forget`), and leave the table when there are none. A directory of many databases is one more
node whose `lookup` makes the nodes of a database.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias, TypeVar

import pyfuse3

from litereplica.fuse.mountpoint import Owner

POS_SIZE = 34
"""Bytes of `-pos`: two numbers of 16 hexadecimal digits, a slash, a newline."""

FOREVER_S = 1e9
"""Timeout of entries and attributes: the daemon notifies the kernel of every change, and a GETATTR costs more than a
hot query."""

_FIRST_SHOWN_NUMBER = 1 << 32
"""Inode numbers from here on are shown for names of which no node is known."""

_MTIME_NS = 0
"""Constant: a change of mtime makes the kernel drop the file's cached pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """Attributes of a node. `size` is in bytes.

    The kernel may use the name for `entry_timeout_s` without asking, and the other attributes for `attr_timeout_s`.
    """

    is_directory: bool = False
    size: int = 0
    mtime_ns: int = _MTIME_NS
    entry_timeout_s: float = FOREVER_S
    attr_timeout_s: float = FOREVER_S


class Node:
    """A file or a directory. A file overrides `read`; a directory overrides `lookup` and `entries`.

    Errors are `OSError` or one of `litereplica.errors`; `Operations` translates them.
    """

    waits_until_ready = True
    """False: clients can open it before the mount is ready."""

    daemon_may_write = False
    """True: the daemon itself may open it for writing, to take locks. Clients never may."""

    parent_inode: int = pyfuse3.ROOT_INODE

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.references = 0

    def attributes(self) -> Attributes:
        """Attributes as of now."""
        raise NotImplementedError

    async def open(self, *, own: bool, uid: int) -> bytes | None:
        """Open a file for a user (uid), for the daemon if `own`. Returns the content if it is generated now."""
        return None

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        """Answer a READ of an open file if that takes no waiting; None lets `read` answer it. No checkpoint."""
        return None

    async def read(self, offset: int, size: int) -> bytes:
        """Answer a READ of an open file."""
        raise OSError(errno.EISDIR, f"inode {self.inode} is a directory")

    def extended(self, uid: int) -> Mapping[str, str]:
        """Return the extended attributes that a user (uid) sees, by their names behind `XATTR_PREFIX`."""
        return {}

    def may_open(self, thread_id: int) -> bool:
        """True if the client with this thread may open the file."""
        return True

    def opened(self, handle: int, thread_id: int) -> None:
        """Note that a client has opened the file as `handle`."""

    def may_read(self, handle: int) -> bool:
        """True if the client with this handle may read."""
        return True

    def release(self, handle: int) -> None:
        """Close one handle."""

    async def lookup(self, name: bytes) -> Node | None:
        """Return the entry with this name, or None."""
        raise OSError(errno.ENOTDIR, f"inode {self.inode} is not a directory")

    def stays_absent(self, name: bytes) -> bool:
        """True if the kernel may remember for ever that the directory does not have this name."""
        return True

    async def entries(self) -> Entries:
        """Return what a listing of the directory shows: names, with their nodes where these are known."""
        raise OSError(errno.ENOTDIR, f"inode {self.inode} is not a directory")

    def remember(self) -> None:
        """Count one kernel reference: the answer to a LOOKUP or an entry of a READDIRPLUS."""
        self.references += 1

    def forget(self, count: int) -> None:
        """Drop `count` kernel references (FORGET)."""
        self.references -= count


Entries: TypeAlias = Sequence[tuple[bytes, Node | None]]
"""A listing. Names without a node are looked up by those who need more than the name."""

_N = TypeVar("_N", bound=Node)


class StaleInode(OSError):
    """A request for an inode that has left the table."""


class InodeTable:
    """Nodes by inode. The first inode allocated is the root's; none is allocated twice."""

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._inodes = count(pyfuse3.ROOT_INODE)

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, inode: int) -> bool:
        return inode in self._nodes

    def allocate(self) -> int:
        """Return an inode that was never used."""
        return next(self._inodes)

    def add(self, node: _N) -> _N:
        """Enter a node; returns it."""
        self._nodes[node.inode] = node
        return node

    def remove(self, node: Node) -> None:
        """Drop a node. Requests for its inode fail from now on."""
        del self._nodes[node.inode]

    def get(self, inode: int) -> Node:
        """Return the node of an inode. Raises `StaleInode` (ESTALE) when there is none."""
        node = self._nodes.get(inode)
        if node is None:
            raise StaleInode(errno.ESTALE, f"no file has inode {inode}")
        return node


class Directory(Node):
    """A directory with fixed entries. `hidden` ones can be looked up but are not listed."""

    def __init__(self, inode: int, visible: Mapping[bytes, Node], *, hidden: Mapping[bytes, Node]) -> None:
        super().__init__(inode)
        self._visible = visible
        self._all = {**visible, **hidden}

    def attributes(self) -> Attributes:
        """Return the attributes of the directory."""
        return Attributes(is_directory=True)

    async def lookup(self, name: bytes) -> Node | None:
        """Return the entry of this name, listed or not."""
        return self._all.get(name)

    async def entries(self) -> Entries:
        """Return the entries that are listed."""
        return list(self._visible.items())


class GeneratedFile(Node):
    """A file whose content is generated at each open and not cached by the kernel.

    `public` generates what users other than the mount's own and root get; by default the same. `before_open` is awaited
    before a client's open. `waits_until_ready` is as in `Node`.
    """

    def __init__(
        self,
        inode: int,
        generate: Callable[[], bytes],
        *,
        public: Callable[[], bytes] | None = None,
        attributes: Attributes | None = None,
        before_open: Callable[[], Awaitable[None]] | None = None,
        waits_until_ready: bool = True,
    ) -> None:
        super().__init__(inode)
        self.waits_until_ready = waits_until_ready
        self._generate = generate
        self._public = public or generate
        self._attributes = attributes or Attributes()
        self._before_open = before_open

    def attributes(self) -> Attributes:
        """Return the attributes, which do not depend on the content."""
        return self._attributes

    async def open(self, *, own: bool, uid: int) -> bytes:
        """Return the content for this handle."""
        if self._before_open is not None and not own:
            await self._before_open()
        return self._generate() if is_insider(uid) else self._public()


def is_insider(uid: int) -> bool:
    """True for the user of this mount and for root, who may know its URL, its paths and its errors."""
    return uid in (0, os.getuid())


def entry_of(node: Node, owner: Owner) -> pyfuse3.EntryAttributes:
    """The attributes of a node as the kernel takes them. They are valid until the daemon notifies it of a change."""
    attributes = node.attributes()
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = node.inode
    entry.st_mode = stat.S_IFDIR | 0o555 if attributes.is_directory else stat.S_IFREG | 0o444
    entry.st_nlink = 2 if attributes.is_directory else 1
    entry.st_size = attributes.size
    entry.st_blocks = -(-attributes.size // 512)
    entry.st_blksize = 4096
    entry.st_uid, entry.st_gid = owner.uid, owner.gid
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.mtime_ns
    entry.entry_timeout, entry.attr_timeout = attributes.entry_timeout_s, attributes.attr_timeout_s
    return entry


def name_only(name: bytes) -> pyfuse3.EntryAttributes:
    """An entry of a listing of which nothing but the name is known: the kernel shows it as DT_UNKNOWN.

    Its node id is 0, for which pyfuse3 has no argument: it takes that and the number that a listing shows, which must
    not be 0, from `st_ino`. `fuse_entry_param` begins with the node id, and an `EntryAttributes` with that.
    """
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = zlib.crc32(name) + _FIRST_SHOWN_NUMBER
    entry.st_mode = 0
    node_id = ctypes.c_uint64.from_address(id(entry) + object.__basicsize__)
    if node_id.value != entry.st_ino:
        raise AssertionError("EntryAttributes of pyfuse3 has another layout")
    node_id.value = 0
    return entry


def no_entry(*, for_ever: bool) -> pyfuse3.EntryAttributes:
    """The answer to a lookup of a name that does not exist. `for_ever`: the kernel need not ask again."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = FOREVER_S if for_ever else 0
    return entry
