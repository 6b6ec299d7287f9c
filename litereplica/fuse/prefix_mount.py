"""A mount of every database below a prefix: the tree, the activations, and the session around them.

Start: mount → ready. Nothing is asked of the store before somebody looks. End: park everything → unmount.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from litereplica.control.protocol import WaitFor
from litereplica.errors import DatabaseNotFound, UsageError
from litereplica.fuse.active_databases import (
    INODES_NAME,
    PARK_AFTER_S,
    ActiveDatabases,
    Database,
    OpenReplica,
)
from litereplica.fuse.mountpoint import Owner
from litereplica.fuse.names import AT_NAME, STATUS_NAME
from litereplica.fuse.nodes import GeneratedFile, InodeTable
from litereplica.fuse.operations import Operations
from litereplica.fuse.options import MountOptions
from litereplica.fuse.prefix_database import PrefixDatabase
from litereplica.fuse.prefix_mirrors import EachDirectory, InodeDirectory, Mirrors, TimesDirectory
from litereplica.fuse.prefix_names import Patterns
from litereplica.fuse.prefix_tree import PrefixTree
from litereplica.fuse.session import FuseSession
from litereplica.fuse.shielded import ShieldedBlocks
from litereplica.fuse.state import PREFIX, MountState
from litereplica.fuse.status import public_status, status
from litereplica.fuse.status_database import Row, at_paths
from litereplica.replica.prefix import Prefix

log = logging.getLogger(__name__)

EACH_NAME = ".each"

DESCRIPTORS_EACH = 4
"""Descriptors of an active database: three of its own files, and one for a request."""

SPARE_DESCRIPTORS = 256
MAX_ACTIVE = 4096

LISTED = 256
"""Active databases that the status of the mount lists."""

TIDY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixOptions:
    """What a mount of a prefix has besides the options of any mount."""

    patterns: Patterns
    park_after_s: float = PARK_AFTER_S


class PrefixSession(FuseSession):
    """The session of a mount of a prefix. `open_replica` opens the database at a path."""

    def __init__(
        self, options: MountOptions, prefix: Prefix, open_replica: OpenReplica, *, prefix_options: PrefixOptions
    ) -> None:
        shielded = ShieldedBlocks()
        inodes = InodeTable()
        self.active = ActiveDatabases(
            options,
            open_replica,
            inodes=inodes,
            shielded=shielded,
            park_after_s=prefix_options.park_after_s,
            max_active=max_active(),
        )
        self.tree = PrefixTree(inodes, prefix, self.active, patterns=prefix_options.patterns)
        self._mirrors = Mirrors(inodes, self.tree, self._status_of)
        hidden = (
            (STATUS_NAME, GeneratedFile(inodes.allocate(), self._status, public=_public, waits_until_ready=False)),
            (AT_NAME, TimesDirectory(inodes.allocate(), self._mirrors)),
            (EACH_NAME, EachDirectory(inodes.allocate(), self._mirrors, "")),
            (INODES_NAME, InodeDirectory(inodes.allocate(), inodes)),
        )
        for name, node in hidden:
            self.tree.root.hidden[name.encode()] = inodes.add(node)
        owner = Owner(os.getuid(), os.getgid())
        operations = Operations(inodes, owner, total_size=lambda: 0, limit_s=options.request_limit_s)
        super().__init__(options, operations, shielded=shielded)

    def records(self) -> list[dict[str, Any]]:
        """Return the mount as a whole, and some of the active databases."""
        listed = self._some_active()
        with self.active.processes.one_look():
            states = [state.record() for each in listed if (state := each.state()) is not None]
        return [self._whole(listed), *states]

    def _whole(self, listed: Sequence[Database]) -> dict[str, Any]:
        figures = self.active.statistics()
        return {
            "name": None,
            "db_path": str(self._options.path),
            "mountpoint": str(self._options.path),
            "url": self._options.url,
            "state": PREFIX,
            "error": None,
            "active": figures.active,
            "max_active": figures.max_active,
            "activations": figures.activations,
            "parked": figures.parked,
            "failed": figures.failed,
            "known_names": len(self.tree),
            "in_use": [each.path for each in listed if each.handles],
        }

    async def points(self, path: str) -> Sequence[Row]:
        """Return the newest points of an active database, each with its path below `.each`."""
        for database in self.active.databases.values():
            if str(self._options.path / database.path) == path:
                directory = self._options.path / EACH_NAME / database.path
                return at_paths(await database.points(), directory, directory.name)
        return ()

    def state_of(self, path: Path) -> MountState | None:
        """Return the state of the database at a path in the mount; None unless it is active."""
        active = self.active.databases.values()
        return next((each.state() for each in active if self._options.path / each.path == path), None)

    async def reach(self, path: Path, wanted: WaitFor) -> MountState:
        """Activate the database at a path in the mount, and return its state when it shows what is wanted.

        Raises `DatabaseNotFound` if there is none, `UsageError` if the path names the whole mount.
        """
        place = self._options.path
        if path == place:
            raise UsageError(f"{place} has many databases", hint=f"name one: litereplica wait {place}/DATABASE")
        database = await self.tree.database(str(path.relative_to(place))) if path.is_relative_to(place) else None
        if database is None:
            raise DatabaseNotFound(f"there is no live database at {path}", hint=f"see what there is: ls {place}")
        return await database.reach(wanted)

    def _status_line(self) -> str:
        figures = self.active.statistics()
        return f"{figures.active} databases open" + (f", {figures.failed} failed" if figures.failed else "")

    def _some_active(self) -> list[Database]:
        return sorted(self.active.databases.values(), key=lambda each: each.path)[:LISTED]

    async def _serve(self, ready: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(self._flush_once)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tree.run)
            nursery.start_soon(self._tidy)

            def started() -> None:
                self._operations.open_to_others()
                log.info("mounted all databases of %s at %s", self._options.url, self._options.path)
                ready()

            await self.active.run(self._mount.device if self._mount is not None else None, started)

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(TIDY_S)
            self._mirrors.tidy()

    def _status(self) -> bytes:
        return status(
            self._whole(self._some_active()),
            databases=self.active.statistics(),
            names={"known": len(self.tree), "requests": self.tree.prefix.statistics().requests},
            active=[{"path": each.path, "handles": each.handles} for each in self._some_active()],
        )

    def _status_of(self, database: PrefixDatabase) -> bytes:
        state = database.state()
        record = {} if state is None else state.record()
        return status(record, path=database.path, active=database.is_active, **database.statistics())


def _public() -> bytes:
    return public_status(None)


def max_active() -> int:
    """Raise the limit of open files as far as this process may; return how many databases may be active at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SPARE_DESCRIPTORS + DESCRIPTORS_EACH * MAX_ACTIVE
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return max(1, min(MAX_ACTIVE, (soft - SPARE_DESCRIPTORS) // DESCRIPTORS_EACH))


async def serve_prefix(
    options: MountOptions,
    prefix: Prefix,
    open_replica: OpenReplica,
    *,
    prefix_options: PrefixOptions,
    ready: Callable[[], None],
) -> None:
    """Mount a prefix, call `ready`, and serve until the mount ends. Raises `EnvironmentProblem`."""
    await PrefixSession(options, prefix, open_replica, prefix_options=prefix_options).run(ready)
