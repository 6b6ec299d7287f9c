"""The directories of a prefix mount, and what the kernel is told of their names.

`PrefixTree` knows the names that the kernel, a client or a task uses, by their paths. A name that is not known, or has
been trusted for `TRUST_S`, is asked of the store, once however many ask. A listing is asked of the store each time. It
ends the trust in known names that it lacks, but proves nothing: only a lookup that finds nothing takes a name away.

Names that somebody walks through one after the other, as `find` and `ls -l` do after a listing, are asked of the store
ahead of the walker.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeAlias

import pyfuse3
import trio

from litereplica.errors import StorageError
from litereplica.fuse import prefix_names
from litereplica.fuse.active_databases import ActiveDatabases
from litereplica.fuse.lookups_ahead import LookupsAhead
from litereplica.fuse.nodes import Attributes, Entries, InodeTable, Node
from litereplica.fuse.prefix_database import NAME_TIMEOUT_S, PrefixDatabase
from litereplica.fuse.prefix_names import Patterns
from litereplica.replica.prefix import Kind, Prefix

log = logging.getLogger(__name__)

TRUST_S = 30.0
"""How long a name is taken to exist since the store last had it; the poll of an active database asks for one file."""

KNOWN_PATIENCE_S = 2.0
"""How long a lookup of a known name waits for the store. If there is no answer, the name is taken to exist."""

AGAIN_S = 5.0
"""Time until the store is asked for such a name again."""

ABSENT_S = 0.5
"""How long a name is taken not to exist."""

MAX_UNUSED = 16_384
"""Unused names that the kernel may reference; beyond that, it is asked to forget those unused for longest."""

MAX_ABSENT = 4096
TIDY_S = 15.0

Entry: TypeAlias = "PrefixDirectory | PrefixDatabase"
ForgetName: TypeAlias = Callable[[int, bytes], None]


def _forget_name(inode: int, name: bytes) -> None:
    """Ask the kernel to drop a name in the directory `inode`, and everything below it."""
    pyfuse3.invalidate_entry_async(pyfuse3.InodeT(inode), pyfuse3.FileNameT(name), ignore_enoent=True)


class PrefixDirectory(Node):
    """A directory of the tree. `path` is that below the prefix; `seen_at` is when the store last had it."""

    def __init__(self, inode: int, tree: PrefixTree, path: str, *, parent_inode: int = pyfuse3.ROOT_INODE) -> None:
        super().__init__(inode)
        self.parent_inode = parent_inode
        self.path = path
        self.seen_at = self.used_at = trio.current_time()
        self._tree = tree

    def attributes(self) -> Attributes:
        """Return the attributes of a directory."""
        return Attributes(is_directory=True, entry_timeout_s=NAME_TIMEOUT_S)

    def stays_absent(self, name: bytes) -> bool:
        """True for a rollback journal. All other names may appear."""
        return name.endswith(prefix_names.JOURNAL_SUFFIX.encode())

    async def lookup(self, name: bytes) -> Node | None:
        """Return a database's file, or a directory."""
        parts = prefix_names.parse(name)
        if parts is None:
            return None
        entry = await self._tree.find(join(self.path, parts.name))
        if isinstance(entry, PrefixDatabase):
            return entry.node(parts.suffix)
        return None if parts.suffix else entry

    async def entries(self) -> Entries:
        """Return the names that the store has here."""
        return await self._tree.entries(self)


class RootDirectory(PrefixDirectory):
    """The root, which also has the hidden names of the mount."""

    def __init__(self, inode: int, tree: PrefixTree, hidden: dict[bytes, Node]) -> None:
        super().__init__(inode, tree, "")
        self.hidden = hidden

    async def lookup(self, name: bytes) -> Node | None:
        """Return a hidden node, or what the store has."""
        return self.hidden.get(name) or await super().lookup(name)


class PrefixTree:
    """The names of one prefix mount. `run` tidies up."""

    def __init__(
        self,
        inodes: InodeTable,
        prefix: Prefix,
        active: ActiveDatabases,
        *,
        patterns: Patterns | None = None,
        trust_s: float = TRUST_S,
        forget_name: ForgetName = _forget_name,
    ) -> None:
        self.root = inodes.add(RootDirectory(inodes.allocate(), self, {}))
        self._inodes = inodes
        self._prefix = prefix
        self._active = active
        self._patterns = patterns or Patterns()
        self._trust_s = trust_s
        self._forget_name = forget_name
        self._known: dict[str, Entry] = {}
        self._gone: set[Entry] = set()  # no longer in the store, and still referenced
        self._absent: dict[str, float] = {}
        self._asking: dict[str, trio.Event] = {}
        self._ahead = LookupsAhead(self.find)
        self._failing = ""

    def __len__(self) -> int:
        return len(self._known)

    @property
    def prefix(self) -> Prefix:
        """What the store has."""
        return self._prefix

    async def run(self) -> None:
        """Look names up ahead of walkers, and forget unused ones, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ahead.run)
            while True:
                await trio.sleep(TIDY_S)
                self.tidy()

    # --- names ---------------------------------------------------------------------------------------

    async def find(self, path: str) -> Entry | None:
        """Return the entry at a path; None if the store has nothing there, or if it is not to be shown.

        Raises `StorageError` if the store does not answer and the path is not known.
        """
        self._ahead.note(path)
        while True:
            known = self._known.get(path)
            now = trio.current_time()
            if known is not None and now - known.seen_at < self._trust_s:
                known.used_at = now
                return known
            if now - self._absent.get(path, -math.inf) < ABSENT_S or not self._patterns.may_show(path):
                return None
            if path not in self._asking:
                return await self._ask(path)
            await self._asking[path].wait()

    async def database(self, path: str) -> PrefixDatabase | None:
        """Return the database at a path, as a client that walks there from the root finds it; None if there is none.

        What the kernel was told before is no answer: a name that was absent is asked of the store again.
        Raises `StorageError`.
        """
        found: Entry | None = self.root
        for name in path.split("/"):
            parts = prefix_names.parse(name.encode(errors="replace"))
            if not isinstance(found, PrefixDirectory) or parts is None or parts.suffix or parts.name != name:
                return None
            place = join(found.path, name)
            if place in self._asking:  # maybe since before the database was published
                await self._asking[place].wait()
            self._absent.pop(place, None)
            found = await self.find(place)
        return found if isinstance(found, PrefixDatabase) else None

    async def _ask(self, path: str) -> Entry | None:
        asked = self._asking[path] = trio.Event()
        known = self._known.get(path)
        kind = None
        try:
            with trio.move_on_after(math.inf if known is None else KNOWN_PATIENCE_S) as patience:
                kind = await self._prefix.find(path)
        except StorageError:
            if known is None:
                raise
            patience.cancel()
        finally:
            del self._asking[path]
            asked.set()
        if known is not None and patience.cancel_called:  # no answer is no evidence that it has gone
            known.seen_at = max(known.seen_at, trio.current_time() - self._trust_s + AGAIN_S)
            return known
        if kind is Kind.DATABASE and not self._patterns.includes(path):
            kind = None
        return self._reconcile(path, kind)

    def _reconcile(self, path: str, kind: Kind | None) -> Entry | None:
        """Make the entry what the store has."""
        known = self._known.get(path)
        is_directory = isinstance(known, PrefixDirectory)
        if known is not None and (kind is None or is_directory != (kind is Kind.DIRECTORY)):
            self._take_away(path)
            known = None
        if kind is None:
            if len(self._absent) >= MAX_ABSENT:
                self._absent.clear()
            self._absent[path] = trio.current_time()
            return None
        if known is None:
            known = self._known[path] = self._made(path, kind)
        known.seen_at = known.used_at = trio.current_time()
        self._absent.pop(path, None)
        return known

    def _made(self, path: str, kind: Kind) -> Entry:
        if kind is Kind.DATABASE:
            return PrefixDatabase(path, self._inodes, self._active)
        parent = self._known.get(path.rpartition("/")[0])
        parent_inode = parent.inode if isinstance(parent, PrefixDirectory) else self.root.inode
        return self._inodes.add(PrefixDirectory(self._inodes.allocate(), self, path, parent_inode=parent_inode))

    def _take_away(self, path: str) -> None:
        """Remove a name, and all below it, from the tree and from the kernel. What is open stays open."""
        for each in [each for each in self._known if each == path or each.startswith(f"{path}/")]:
            entry = self._known.pop(each)
            self._gone.add(entry)
            if isinstance(entry, PrefixDatabase):
                entry.leave_tree()
        self._forget(path)

    # --- listings ------------------------------------------------------------------------------------

    async def entries(self, directory: PrefixDirectory) -> Entries:
        """Return what a listing of a directory shows: unknown names without a node."""
        listed = await self._prefix.names(directory.path)
        paths = {join(directory.path, name): name for name in listed if self._is_shown(directory.path, name)}
        self._doubt_others(directory.path, set(paths))
        self._ahead.listed(directory.path, list(paths))
        found: list[tuple[bytes, Node | None]] = []
        for path, name in paths.items():
            self._absent.pop(path, None)
            entry = self._known.get(path)
            if isinstance(entry, PrefixDatabase):
                suffixes = ("", *prefix_names.OWN_SUFFIXES) if entry.is_active else ("",)
                found += [(f"{name}{suffix}".encode(), entry.node(suffix)) for suffix in suffixes]
            else:
                found.append((name.encode(), entry))
        return found

    def _is_shown(self, directory: str, name: str) -> bool:
        reason = prefix_names.refusal(name)
        if reason is not None:
            self._active.warn(f"{join(directory, name)!a} in {self._active.options.url} is not shown: {reason}")
        return reason is None and self._patterns.may_show(join(directory, name))

    def _doubt_others(self, directory: str, paths: set[str]) -> None:
        """Ask the store for known names of a directory that a listing lacks when they are next looked up."""
        for path, entry in self._known.items():
            if path.rpartition("/")[0] == directory and path not in paths:
                entry.seen_at = -math.inf
                self._forget(path)

    # --- tidying -------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Drop what nobody references, and ask the kernel to forget names that were not used for long."""
        now = trio.current_time()
        for path, entry in list(self._known.items()):
            if not self._is_referenced(entry) and now - max(entry.seen_at, entry.used_at) > TIDY_S:
                self._discard(entry)
                del self._known[path]
        for entry in [each for each in self._gone if not self._is_referenced(each)]:
            self._discard(entry)
            self._gone.remove(entry)
        unused = [each for each in self._known.values() if isinstance(each, PrefixDatabase) and not each.is_used]
        for each in sorted(unused, key=lambda each: each.used_at)[: max(0, len(unused) - MAX_UNUSED)]:
            self._forget(each.path)

    def _is_referenced(self, entry: Entry) -> bool:
        return entry.is_referenced if isinstance(entry, PrefixDatabase) else entry.references > 0

    def _discard(self, entry: Entry) -> None:
        if isinstance(entry, PrefixDatabase):
            entry.discard()
        else:
            self._inodes.remove(entry)

    def _forget(self, path: str) -> None:
        """Ask the kernel to forget the names of what is at a path."""
        directory, _, name = path.rpartition("/")
        parent = self._known.get(directory)
        inode = parent.inode if isinstance(parent, PrefixDirectory) else self.root.inode
        for suffix in ("", *prefix_names.OWN_SUFFIXES):
            self._forget_name(inode, f"{name}{suffix}".encode())


def join(directory: str, name: str) -> str:
    """Return the path of a name in a directory."""
    return f"{directory}/{name}" if directory else name
