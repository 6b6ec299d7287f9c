"""The active databases of a prefix mount: how many there may be, who begins, who is parked.

`ActiveDatabases` has what all activations share: the nursery in which each is one task, the turn that limits how many
are opened at a time, and the loop that parks those that nobody has used for a while.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import trio

from litereplica.fuse.at_tree import AtDirectory
from litereplica.fuse.client_locks import ClientLocks, ProcessFiles
from litereplica.fuse.kernel_cache import LiveFile
from litereplica.fuse.live_service import LiveService
from litereplica.fuse.nodes import InodeTable, Node
from litereplica.fuse.options import MountOptions
from litereplica.fuse.shielded import ShieldedBlocks
from litereplica.fuse.state import MountState
from litereplica.fuse.status_database import Row
from litereplica.replica.database import Replica
from litereplica.replica.malloc_tuning import give_back

log = logging.getLogger(__name__)

ACTIVATIONS = 8
"""Databases that are opened at a time: each lists ten levels at once, and the store's client has 16 connections."""

PARK_AFTER_S = 60.0
"""Time without an open file until a database is parked: programs that run now and then find it active."""

MIN_CHECK_S, MAX_CHECK_S = 0.02, 5.0
"""Limits of the pause between looks for idle databases, which is a quarter of the time until they are parked."""

MAX_WARNINGS = 1000
"""Different warnings that are remembered, so that each is logged once."""

GIVE_BACK_EVERY = 100
"""Activations that have ended until their memory is returned: some 0.3 MB each."""

INODES_NAME = ".inodes"
"""The hidden directory through which the daemon opens its own files."""

OpenReplica = Callable[[str], AbstractAsyncContextManager[Replica]]
"""Opens the replica of the database at a path below the prefix."""


class Database(Protocol):
    """A database as it is activated and parked."""

    path: str
    name: str
    used_at: float

    @property
    def handles(self) -> int:
        """Number of files that clients have open."""

    def state(self) -> MountState | None:
        """The state of this moment; None unless it is active."""

    async def points(self) -> Sequence[Row]:
        """The newest points; none unless it is active."""

    def is_idle(self, for_s: float) -> bool:
        """True if it is active and nobody has used it for this time."""

    def park(self) -> None:
        """Begin to park it."""


@dataclass(frozen=True, slots=True)
class ActivationStatistics:
    """`active` includes databases that are being opened or parked. The others count since the start."""

    active: int
    max_active: int
    activations: int
    parked: int
    failed: int


class ActiveDatabases:
    """The activations of one mount. `run` is the task that owns them all; `device` is that of the mount."""

    def __init__(
        self,
        options: MountOptions,
        open_replica: OpenReplica,
        *,
        inodes: InodeTable,
        shielded: ShieldedBlocks,
        park_after_s: float,
        max_active: int,
    ) -> None:
        self.options = options
        self.open_replica = open_replica
        self.turn = trio.CapacityLimiter(ACTIVATIONS)
        self.device: str | None = None
        self.processes = ProcessFiles()
        self.databases: dict[str, Database] = {}
        self._inodes = inodes
        self._shielded = shielded
        self._park_after_s = park_after_s
        self._max_active = max_active
        self._nursery: trio.Nursery | None = None
        self._warned: set[str] = set()
        self._activations = self._parked = self._failed = 0
        self._ended = self._ended_before = 0

    def statistics(self) -> ActivationStatistics:
        """Return the figures of this moment."""
        return ActivationStatistics(
            len(self.databases), self._max_active, self._activations, self._parked, self._failed
        )

    async def run(self, device: str | None, started: Callable[[], None]) -> None:
        """Run the activations, and park what is idle, until cancelled."""
        self.device = device
        pause_s = min(MAX_CHECK_S, max(MIN_CHECK_S, self._park_after_s / 4))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                started()
                while True:
                    await trio.sleep(pause_s)
                    for database in list(self.databases.values()):
                        if database.is_idle(self._park_after_s):
                            self._park(database)
                    self._give_back()
            finally:
                self._nursery = None  # no activation begins any more

    def start(self, database: Database, run: Callable[[], Awaitable[None]]) -> None:
        """Begin the task of an activation. Raises `OSError`: ENFILE if too many databases are in use."""
        if self._nursery is None:
            raise OSError(errno.ENOTCONN, "the mount ends")
        if len(self.databases) >= self._max_active:
            idle = [each for each in self.databases.values() if each.is_idle(0)]
            if not idle:
                raise OSError(errno.ENFILE, f"{len(self.databases)} databases are in use; close some")
            self._park(min(idle, key=lambda each: each.used_at))
        self._activations += 1
        self._nursery.start_soon(self._run, database, run)

    async def _run(self, database: Database, run: Callable[[], Awaitable[None]]) -> None:
        key = f"{database.path}\0{id(database)}"  # a name may have come back while its former database is still open
        self.databases[key] = database
        try:
            await run()
        finally:
            del self.databases[key]
            self._ended += 1

    def _park(self, database: Database) -> None:
        self._parked += 1
        database.park()

    def _give_back(self) -> None:
        """Return memory to the system after many databases have been parked, or all."""
        ended = self._ended - self._ended_before
        if ended >= GIVE_BACK_EVERY or (ended and not self.databases):
            self._ended_before = self._ended
            give_back()

    def service(
        self, database: Database, replica: Replica, *, files: Mapping[LiveFile, int], clients: ClientLocks
    ) -> LiveService:
        """Return the service of a database whose replica was opened."""
        options = replace(self.options, url=replica.url, name=database.path)
        past = replica.past_snapshots(patience_s=options.read_timeout_s)
        return LiveService(
            options,
            replica,
            files=files,
            clients=clients,
            past=self._inodes.add(AtDirectory(self._inodes, past, name=database.name)),
            in_use=lambda: database.handles > 0,
            shielded=self._shielded,
        )

    def path_of(self, node: Node) -> str:
        """Return the path by which the daemon opens a node of its own mount."""
        return str(Path(self.options.path, INODES_NAME, str(node.inode)))

    def warn(self, text: str) -> None:
        """Log a warning about a database, once."""
        self._failed += 1
        if text not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(text)
            log.warning("%s", text)
