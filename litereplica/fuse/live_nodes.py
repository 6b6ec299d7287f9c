"""The nodes of one live database: `app.db`, `-wal`, `-shm` and `-pos`.

What they answer comes from a `LiveSource` (`live_service.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from litereplica.fuse.client_locks import ClientLocks
from litereplica.fuse.kernel_cache import LiveFile
from litereplica.fuse.nodes import FOREVER_S, POS_SIZE, Attributes, GeneratedFile, Node
from litereplica.types import Pos


class LiveSource(Protocol):
    """A live database as its nodes see it. `clients` are its clients."""

    @property
    def clients(self) -> ClientLocks:
        """The clients of the database."""

    @property
    def pos(self) -> Pos:
        """The position that a transaction which begins now will see."""

    def attributes(self, file: LiveFile) -> Attributes:
        """Attributes of a file as of now."""

    def extended(self, uid: int) -> Mapping[str, str]:
        """Extended attributes of the database file, as a user (uid) sees them."""

    async def prepare(self, file: LiveFile) -> None:
        """Called before a client's open of a file. Raises if it cannot be read now."""

    async def read(self, file: LiveFile, offset: int, size: int) -> bytes:
        """Answer a READ."""

    def read_now(self, file: LiveFile, offset: int, size: int) -> bytes | bytearray | None:
        """Answer a READ if that takes no waiting; else None."""

    def opened(self, handle: int, file: LiveFile, thread_id: int) -> None:
        """Note that a client has opened a file."""

    def closed(self, handle: int) -> None:
        """Note that a handle was closed."""


class LiveNode(Node):
    """One of the three files of a live database that the kernel caches."""

    def __init__(self, inode: int, source: LiveSource, *, file: LiveFile) -> None:
        super().__init__(inode)
        self.daemon_may_write = file is LiveFile.SHM
        self._source = source
        self._file = file

    def attributes(self) -> Attributes:
        """Return the attributes with the current size."""
        return self._source.attributes(self._file)

    def extended(self, uid: int) -> Mapping[str, str]:
        """Return the attributes of the database; the other files have none."""
        return self._source.extended(uid) if self._file is LiveFile.DATABASE else {}

    async def open(self, *, own: bool, uid: int) -> None:
        """Let a client open the file once the source is prepared."""
        if not own:
            await self._source.prepare(self._file)

    def may_open(self, thread_id: int) -> bool:
        """False for a client whose locks are missing. `-shm` may be opened, so that it can lock."""
        return self._file is LiveFile.SHM or self._source.clients.may_open(thread_id)

    def opened(self, handle: int, thread_id: int) -> None:
        """Tell the source."""
        self._source.opened(handle, self._file, thread_id)

    def may_read(self, handle: int) -> bool:
        """False for a client whose locks are missing. `-shm` may be read: it is copied, and holds no rows."""
        return self._file is LiveFile.SHM or self._source.clients.may_read(handle)

    def release(self, handle: int) -> None:
        """Tell the source."""
        self._source.closed(handle)

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        """Answer a READ if that takes no waiting; else None."""
        return self._source.read_now(self._file, offset, size)

    async def read(self, offset: int, size: int) -> bytes:
        """Answer a READ. Raises `StaleReplica`, and as `LiveFiles.read`."""
        return await self._source.read(self._file, offset, size)


def live_node(inode: int, source: LiveSource, file: LiveFile) -> LiveNode:
    """Return the node of a file that the kernel caches."""
    return LiveNode(inode, source, file=file)


def pos_node(inode: int, source: LiveSource, *, entry_timeout_s: float = FOREVER_S) -> GeneratedFile:
    """Return the node of `-pos`."""
    return GeneratedFile(
        inode,
        lambda: f"{source.pos}\n".encode(),
        attributes=Attributes(size=POS_SIZE, entry_timeout_s=entry_timeout_s),
        before_open=partial(source.prepare, LiveFile.SHM),
    )


def live_nodes(name: str, files: Mapping[LiveFile, int], pos_inode: int, source: LiveSource) -> dict[bytes, Node]:
    """Return all nodes of a database by name; `files` are the inodes of those that the kernel caches."""
    nodes: dict[bytes, Node] = {
        f"{name}{file.value}".encode(): live_node(inode, source, file) for file, inode in files.items()
    }
    nodes[f"{name}-pos".encode()] = pos_node(pos_inode, source)
    return nodes
