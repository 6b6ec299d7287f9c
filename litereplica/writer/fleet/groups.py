"""The databases of one target, as the supervisor manages them, and how they are opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import trio

from litereplica.errors import ExitCode, LiteReplicaError, UsageError
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.credentials import Credentials
from litereplica.writer.database.parked import parked_by_mark
from litereplica.writer.fleet.directory_scan import Directory
from litereplica.writer.fleet.limits import FleetContext
from litereplica.writer.fleet.managed_database import ManagedDatabase
from litereplica.writer.fleet.replica_root import ReplicaRoot, join_url
from litereplica.writer.fleet.statistics import DatabaseStatistics
from litereplica.writer.settings import DirectoryTarget, Target

OpenStore = Callable[[str, Credentials | None], LTXStore]


class FleetError(LiteReplicaError):
    """Some databases could not be published: `errors` by path. The exit code is that of the first."""

    def __init__(self, errors: Mapping[Path, Exception]) -> None:
        each = "; ".join(f"{path}: {error}" for path, error in errors.items())
        count = "1 database" if len(errors) == 1 else f"{len(errors)} databases"
        super().__init__(f"{count} could not be published: {each}")
        self.errors = errors
        self.exit_code = next(
            (error.exit_code for error in errors.values() if isinstance(error, LiteReplicaError)), ExitCode.BUG
        )


class Group:
    """The databases of one target. `directory` is set if the target is a directory.

    `stopped` has the last records of databases that were stopped: they are no members until they are started again.
    """

    def __init__(self, target: Target, root: ReplicaRoot) -> None:
        self.target = target
        self.root = root
        self.directory = Directory(target) if isinstance(target, DirectoryTarget) else None
        self.members: dict[Path, ManagedDatabase] = {}
        self.stopped: dict[Path, DatabaseStatistics] = {}
        self.tasks = trio.CancelScope()

    def has(self, path: Path) -> bool:
        """True if there is a database with this path, replicated or stopped."""
        return path in self.members or path in self.stopped


class GroupOpener:
    """Opens the databases of targets. `open_store` opens the store of a URL."""

    def __init__(self, context: FleetContext, open_store: OpenStore) -> None:
        self._context = context
        self._open_store = open_store

    async def open(self, target: Target, *, named: Collection[Path]) -> Group:
        """Lock a target, and enter its databases, but those of a directory that are `named` as targets themselves.

        Raises `EnvironmentProblem`, `ConflictError`.
        """
        root = ReplicaRoot(target, self._open_store)
        group = Group(target, root)
        try:
            await trio.to_thread.run_sync(root.lock)
            paths = {target.path} if group.directory is None else await group.directory.scan(())
            await self.add(group, paths, named=named)
        except BaseException:
            await root.aclose()
            raise
        return group

    async def add(self, group: Group, paths: Iterable[Path], *, named: Collection[Path]) -> list[ManagedDatabase]:
        """Add new databases to a group, and return them. Those that have not changed since the last run are parked."""
        added = []
        for path in sorted(paths):
            if path in group.stopped or (group.directory is not None and path in named):
                continue
            prefix = "" if group.directory is None else path.relative_to(group.target.path).as_posix()
            url = join_url(group.target.url, prefix)
            member = ManagedDatabase(
                path, group.root, prefix, url=url, settings=group.target.settings, fleet=self._context
            )
            group.members[path] = member
            added.append(member)
        if not (self._context.errors.is_strict or group.target.settings.opens_all):
            parked = await trio.to_thread.run_sync(lambda: [parked_by_mark(each.path, each.url) for each in added])
            for member, each in zip(added, parked, strict=True):
                if each is not None:
                    member.park(each)
        return added


def checked_targets(targets: Sequence[Target]) -> list[Target]:
    """The targets with absolute paths. Raises `UsageError` if two of them exclude each other."""
    paths, urls = set[Path](), set[str]()
    result: list[Target] = []
    for target in targets:
        absolute = replace(target, path=Path(os.path.abspath(target.path)))  # noqa: PTH100 - links stay
        url = join_url(target.url, "")
        if absolute.path in paths:
            raise UsageError(f"{target.path} is named twice", hint="name it once")
        if url in urls:
            raise UsageError(f"two targets have the URL {url}", hint="give each its own URL")
        if isinstance(target, DirectoryTarget) and not absolute.path.is_dir():
            raise UsageError(f"{target.path} is not a directory", hint="name an existing one")
        paths.add(absolute.path)
        urls.add(url)
        result.append(absolute)
    return result
