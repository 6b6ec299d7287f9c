"""The hidden trees of a prefix mount, which mirror the visible one.

    .each/eu/acme.db/.litereplica        what the daemon has to say of this database
    .each/eu/acme.db/.at/<name>/acme.db  its past states, by time or TXID; it is activated for that
    .at/<time>/eu/acme.db                all databases as they were before one time
    .inodes/<number>                     the files that the daemon opens for itself

Their directories are records that live as long as the kernel references them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from litereplica.fuse import at_names, prefix_names
from litereplica.fuse.live_nodes import LiveNode
from litereplica.fuse.names import AT_NAME, STATUS_NAME
from litereplica.fuse.nodes import Attributes, Entries, GeneratedFile, InodeTable, Node
from litereplica.fuse.prefix_database import NAME_TIMEOUT_S, PrefixDatabase
from litereplica.fuse.prefix_tree import Entry, PrefixDirectory, PrefixTree, join
from litereplica.fuse.status import public_status

N = TypeVar("N", bound=Node)


class MirrorDirectory(Node):
    """A directory whose entries are not listed, and are asked for each time."""

    def attributes(self) -> Attributes:
        """Return the attributes of a directory."""
        return Attributes(is_directory=True, entry_timeout_s=NAME_TIMEOUT_S)

    def stays_absent(self, name: bytes) -> bool:
        """False: databases appear."""
        return False

    async def entries(self) -> Entries:
        """Return nothing."""
        return []


class Mirrors:
    """The directories of the hidden trees, made when they are looked up. Call `tidy` now and then."""

    def __init__(self, inodes: InodeTable, tree: PrefixTree, status_of: Callable[[PrefixDatabase], bytes]) -> None:
        self.inodes = inodes
        self.tree = tree
        self.status_of = status_of
        self._nodes: dict[tuple[object, ...], Node] = {}

    def node(self, key: tuple[object, ...], make: Callable[[int], N]) -> N:
        """Return the node with this key; it is made if there is none."""
        if key not in self._nodes:
            self._nodes[key] = self.inodes.add(make(self.inodes.allocate()))
        return self._nodes[key]  # type: ignore[return-value] # the key begins with the kind

    async def find(self, directory: str, name: bytes) -> tuple[str, Entry | None]:
        """Return the path of a name in a directory of the visible tree, and what is there: no file of a database."""
        parts = prefix_names.parse(name)
        if parts is None or parts.suffix:
            return "", None
        path = join(directory, parts.name)
        return path, await self.tree.find(path)

    def tidy(self) -> None:
        """Drop the nodes that the kernel does not reference."""
        for key in [key for key, node in self._nodes.items() if node.references <= 0]:
            self.inodes.remove(self._nodes.pop(key))


class EachDirectory(MirrorDirectory):
    """A directory of `.each`."""

    def __init__(self, inode: int, mirrors: Mirrors, path: str) -> None:
        super().__init__(inode)
        self._mirrors = mirrors
        self._path = path

    async def lookup(self, name: bytes) -> Node | None:
        """Return a directory: that of a database, or of the names below."""
        path, entry = await self._mirrors.find(self._path, name)
        if isinstance(entry, PrefixDirectory):
            return self._mirrors.node(("each", path), lambda inode: EachDirectory(inode, self._mirrors, path))
        if entry is None:
            return None
        return self._mirrors.node(("one", entry), lambda inode: EachDatabase(inode, self._mirrors, entry))


class EachDatabase(MirrorDirectory):
    """The hidden names of one database."""

    def __init__(self, inode: int, mirrors: Mirrors, database: PrefixDatabase) -> None:
        super().__init__(inode)
        self._mirrors = mirrors
        self._database = database

    async def lookup(self, name: bytes) -> Node | None:
        """Return the status, or the past states, for which the database is activated."""
        if name == STATUS_NAME.encode():
            return self._mirrors.node(("status", self._database), self._status)
        if name == AT_NAME.encode():
            with self._database.kept_active():
                return (await self._database.activated()).past
        return None

    def _status(self, inode: int) -> GeneratedFile:
        attributes = Attributes(entry_timeout_s=NAME_TIMEOUT_S)
        return GeneratedFile(
            inode,
            lambda: self._mirrors.status_of(self._database),
            public=lambda: public_status(self._database.state()),
            attributes=attributes,
        )


class TimesDirectory(MirrorDirectory):
    """The directory `.at`: one directory for each time that is looked up."""

    def __init__(self, inode: int, mirrors: Mirrors) -> None:
        super().__init__(inode)
        self._mirrors = mirrors

    async def lookup(self, name: bytes) -> Node | None:
        """Return the tree as of a time."""
        wanted = at_names.parse(name)
        if wanted is None or wanted.txid:
            return None  # a TXID belongs to one database
        return self._mirrors.node(("at", name, ""), lambda inode: TimeDirectory(inode, self._mirrors, name, ""))


class TimeDirectory(MirrorDirectory):
    """A directory of the tree at a time. Its names are those of now."""

    def __init__(self, inode: int, mirrors: Mirrors, time: bytes, path: str) -> None:
        super().__init__(inode)
        self._mirrors = mirrors
        self._time = time
        self._path = path

    async def lookup(self, name: bytes) -> Node | None:
        """Return a directory, or a database as it was before the time; it is activated for that."""
        path, entry = await self._mirrors.find(self._path, name)
        if isinstance(entry, PrefixDirectory):
            key = ("at", self._time, path)
            return self._mirrors.node(key, lambda inode: TimeDirectory(inode, self._mirrors, self._time, path))
        if entry is None:
            return None
        with entry.kept_active():
            past = (await entry.activated()).past
            then = await past.lookup(self._time) if past is not None else None
            return await then.lookup(name) if then is not None else None

    async def entries(self) -> Entries:
        """Return the names of now."""
        directory = await self._mirrors.tree.find(self._path) if self._path else self._mirrors.tree.root
        if not isinstance(directory, PrefixDirectory):
            return []
        own = tuple(suffix.encode() for suffix in prefix_names.OWN_SUFFIXES)
        return [(name, None) for name, _ in await directory.entries() if not name.endswith(own)]


class InodeDirectory(MirrorDirectory):
    """The files of active databases, by number."""

    def __init__(self, inode: int, inodes: InodeTable) -> None:
        super().__init__(inode)
        self._inodes = inodes

    async def lookup(self, name: bytes) -> Node | None:
        """Return the file with a number."""
        number = int(name) if name.isdigit() and len(name) < 20 else 0
        node = self._inodes.get(number) if number in self._inodes else None
        return node if isinstance(node, LiveNode) else None
