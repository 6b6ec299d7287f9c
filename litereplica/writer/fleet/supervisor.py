"""Replicates many databases in one process (a fleet): single databases, and all databases of directories.

Each database is a `ManagedDatabase`. A fleet of a single `DatabaseTarget` is strict: the database stays open, and its
errors end the fleet, except for a full disk. In any other fleet a database that fails is logged once, tried again with
back-off and shown in the statistics while the others go on, and one that is idle is parked, so that thousands cost
little.

The tasks of a fleet: one for each open database; one for each directory, which adds and removes databases; and watchers
of parked databases (`parking.py`), one for each directory and one for the single databases, so that a file system that
hangs stops only the databases on it.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from litereplica.errors import ExitCode, LiteReplicaError, UsageError
from litereplica.ltxstore.store import LTXStore, open_ltx_store
from litereplica.storage.credentials import Credentials
from litereplica.times import wall_clock_ms
from litereplica.writer.database.parked import parked_by_mark
from litereplica.writer.fleet.directory_scan import Directory, printable
from litereplica.writer.fleet.limits import ErrorPolicy, FleetContext, raise_descriptor_limit
from litereplica.writer.fleet.managed_database import ManagedDatabase
from litereplica.writer.fleet.parking import watch_parked
from litereplica.writer.fleet.replica_root import ReplicaRoot, join_url
from litereplica.writer.fleet.statistics import DatabaseStatistics, FleetStatistics, State
from litereplica.writer.settings import DirectoryTarget, Target

log = logging.getLogger(__name__)

OVERDUE_INTERVAL_S = 1.0
"""Between checks for overdue turns and for settled maintenance."""
GONE_KEPT = 100
"""Number of databases that stay in the statistics after they are gone."""

OpenStore = Callable[[str, Credentials | None], LTXStore]


class FleetError(LiteReplicaError):
    """Some databases could not be published: `errors` by path. The exit code is that of the first."""

    def __init__(self, errors: Mapping[Path, Exception]) -> None:
        each = "; ".join(f"{path}: {error}" for path, error in errors.items())
        super().__init__(f"{len(errors)} database(s) could not be published: {each}")
        self.errors = errors
        self.exit_code = next(
            (error.exit_code for error in errors.values() if isinstance(error, LiteReplicaError)), ExitCode.BUG
        )


class _Group:
    """The databases of one target. `directory` is set if the target is a directory."""

    def __init__(self, target: Target, root: ReplicaRoot) -> None:
        self.target = target
        self.root = root
        self.directory = Directory(target) if isinstance(target, DirectoryTarget) else None
        self.members: dict[Path, ManagedDatabase] = {}
        self.tasks = trio.CancelScope()


class Supervisor:
    """Replicates the databases of one process. Obtain one from `open_fleet`."""

    def __init__(self, context: FleetContext, open_store: OpenStore) -> None:
        self._context = context
        self._open_store = open_store
        self._groups: list[_Group] = []
        self._gone: list[DatabaseStatistics] = []
        self._changing = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._error: Exception | None = None

    async def run(
        self, stop: trio.Event, *, task_status: trio.TaskStatus[FleetStatistics] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Replicate until `stop` is set, then publish the remaining transactions.

        Reports `started` once every database has been published or has failed. Raises the errors that end the fleet
        (`ErrorPolicy.ends_fleet`), and `Unpublished`, or a `FleetError` of several, if not everything was published.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._guard, self._watch_named)
            nursery.start_soon(self._guard, self._end_what_is_overdue)
            for group in self._groups:
                self._begin(group, nursery)
            await self._until_published_once(stop)
            task_status.started(self.statistics())
            await stop.wait()
            async with self._changing:
                members = self._members()  # a scan may remove those that have ended
                await _finish(members)
            nursery.cancel_scope.cancel()
        self._nursery = None
        if self._error is not None:
            raise self._error
        stopped = {each.path: each.unpublished for each in members if each.unpublished is not None}
        if stopped:
            raise FleetError(stopped) if len(stopped) > 1 else next(iter(stopped.values()))

    async def _until_published_once(self, stop: trio.Event) -> None:
        """Wait until each database has been published or has failed, or `stop` is set: the store may never answer."""
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await stop.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            for member in self._members():
                await member.done_once.wait()
            nursery.cancel_scope.cancel()

    async def publish_once(self) -> None:
        """Publish everything committed. Raises `FleetError` once all others are published, or the only one's error."""
        errors: dict[Path, Exception] = {}

        async def publish(member: ManagedDatabase) -> None:
            if member.state is State.DORMANT:
                return
            try:
                await member.publish_once()
            except Exception as exc:  # the failure of one database must not end the others
                errors[member.path] = exc

        async with trio.open_nursery() as nursery:
            for member in self._members():
                nursery.start_soon(publish, member)
        if errors and self._context.errors.is_strict:
            raise next(iter(errors.values()))
        if errors:
            raise FleetError(dict(sorted(errors.items())))

    async def reconfigure(self, targets: Sequence[Target]) -> None:
        """Replace the targets.

        The databases of removed targets are published and closed, those of new targets are opened, and those of
        unchanged targets are not interrupted.

        Raises:
            UsageError, EnvironmentProblem, ConflictError: a new target cannot be opened; the old targets are kept.
        """
        targets = _checked(targets)
        async with self._changing:
            kept = [group for group in self._groups if group.target in targets]
            ended = [group for group in self._groups if group.target not in targets]
            replaced = list(ended)
            opened: list[_Group] = []
            try:
                self._context.errors.set_targets(targets)
                # a directory whose settings changed must be unlocked before it is opened again
                locked = {group.target.path for group in ended}
                new = [target for target in targets if all(target != group.target for group in kept)]
                for target in sorted(new, key=lambda each: each.path in locked):
                    if target.path in locked:
                        await self._end_all(ended)
                    opened.append(await self._open(target))
            except BaseException:
                await self._end_all(opened)
                self._context.errors.set_targets([group.target for group in self._groups])
                if not ended:
                    self._groups = kept + await self._reopen(replaced)
                raise
            await self._end_all(ended)
            self._groups = kept + opened
            if self._nursery is not None:
                for group in opened:
                    self._begin(group, self._nursery)

    async def _reopen(self, groups: Iterable[_Group]) -> list[_Group]:
        """Open again the groups that were closed for a change that failed. Logs those that cannot be opened."""
        reopened = []
        for group in groups:
            try:
                reopened.append(await self._open(group.target))
            except (LiteReplicaError, OSError) as exc:
                log.error("%s is no longer replicated: %s", printable(group.target.path), exc)
        if self._nursery is not None:
            for group in reopened:
                self._begin(group, self._nursery)
        return reopened

    def statistics(self) -> FleetStatistics:
        """Return a record of the present state. Makes no request."""
        databases = [member.statistics() for member in self._members()]
        leases = {each.url: each.lease for each in databases if each.lease is not None}
        for group in self._groups:
            if group.directory is not None:
                for path in group.members:
                    leases.pop(group.members[path].url, None)
                if (lease := group.root.lease()) is not None:
                    leases[group.target.url] = lease
        here = {each.path for each in databases}
        gone = (each for each in self._gone if each.path not in here)
        return FleetStatistics((*sorted(databases, key=lambda each: each.path), *gone), leases)

    def tolerate_conflicts(self) -> None:
        """Let a conflict about one of several databases fail that database only, from now on."""
        self._context.errors.tolerate_conflicts()

    async def aclose(self) -> None:
        """Close all databases, release the leases and unlock the directories."""
        with trio.CancelScope(shield=True):
            await self._end_all(self._groups)

    # --- targets

    def _members(self) -> list[ManagedDatabase]:
        return [member for group in self._groups for member in group.members.values()]

    async def open(self, targets: Sequence[Target]) -> None:
        """Open the targets; called once, by `open_fleet`."""
        targets = _checked(targets)
        self._context.errors.set_targets(targets)
        for target in targets:
            self._groups.append(await self._open(target))

    async def _open(self, target: Target) -> _Group:
        root = ReplicaRoot(target, self._open_store)
        group = _Group(target, root)
        try:
            await trio.to_thread.run_sync(root.lock)
            paths = {target.path} if group.directory is None else await group.directory.scan(())
            await self._add(group, paths)
        except BaseException:
            await root.aclose()
            raise
        return group

    async def _add(self, group: _Group, paths: Iterable[Path]) -> list[ManagedDatabase]:
        """Add new databases to a group. Those that have not changed since the last run are parked."""
        named = {other.target.path for other in self._groups if other.directory is None}
        added = []
        for path in sorted(paths):
            if group.directory is not None and path in named:
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

    def _begin(self, group: _Group, nursery: trio.Nursery) -> None:
        for member in group.members.values():
            self._start(member, nursery)
        if group.directory is not None:
            nursery.start_soon(self._guard, self._follow, group)

    def _start(self, member: ManagedDatabase, nursery: trio.Nursery) -> None:
        if member.parked is None:
            nursery.start_soon(self._guard, member.run, nursery)

    async def _end_all(self, groups: list[_Group]) -> None:
        """Publish and close the databases of groups. Empties `groups`."""
        for group in groups:
            group.tasks.cancel()
        await _finish([member for group in groups for member in group.members.values()])
        while groups:
            await groups.pop().root.aclose()

    async def _guard(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run a task of the fleet. The first error of any task ends the fleet, and `run` raises it bare."""
        assert self._nursery is not None
        try:
            await task(*arguments)
        except Exception as exc:
            self._error = self._error or exc
            self._nursery.cancel_scope.cancel()

    # --- tasks

    async def _follow(self, group: _Group) -> None:
        """Follow a directory: add and remove databases, and reopen parked ones that have changed."""
        assert group.directory is not None
        with group.tasks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_parked, lambda: list(group.members.values()), self._wake)
                logged = ""
                while group.directory.target.watch:
                    await group.directory.until_changed()
                    try:
                        await self._rescan(group, group.directory)
                        logged = ""
                    except OSError as exc:
                        if str(exc) != logged:
                            log.warning("cannot read the directory %s: %s", group.target.path, exc)
                        logged = str(exc)
                await trio.sleep_forever()

    async def _rescan(self, group: _Group, directory: Directory) -> None:
        found = await directory.scan(group.members.keys())
        async with self._changing:
            assert self._nursery is not None
            vanished = [each for each in group.members.values() if each.path not in found or each.state is State.GONE]
            for member in vanished:
                del group.members[member.path]
                self._gone = [*self._gone, member.last_statistics()][-GONE_KEPT:]
                self._nursery.start_soon(self._guard, self._dismiss, member)
            for member in await self._add(group, found - group.members.keys()):
                log.info("%s has appeared", printable(member.path))
                self._start(member, self._nursery)

    async def _dismiss(self, member: ManagedDatabase) -> None:
        """Publish the remaining transactions of a database that has left its directory, and close it."""
        await _finish([member])
        if member.unpublished is not None:
            log.error("%s", member.unpublished)
        log.info("%s has gone", printable(member.path))

    async def _watch_named(self) -> None:
        await watch_parked(
            lambda: [each for group in self._groups if group.directory is None for each in group.members.values()],
            self._wake,
        )

    def _wake(self, member: ManagedDatabase) -> None:
        assert self._nursery is not None
        member.expect_task()
        self._nursery.start_soon(self._guard, member.run, self._nursery)

    async def _end_what_is_overdue(self) -> None:
        """End overdue turns, and the settled maintenance of parked databases."""
        while True:
            await trio.sleep(OVERDUE_INTERVAL_S)
            self._context.beginning.end_overdue()
            for member in self._members():
                member.end_settled_maintenance()


@asynccontextmanager
async def open_fleet(
    targets: Sequence[Target],
    *,
    now_ms: Callable[[], int] = wall_clock_ms,
    rng: random.Random | None = None,
    open_store: OpenStore = lambda url, credentials: open_ltx_store(url, credentials=credentials),
    conflicts_end: bool = False,
    follow: bool = False,
) -> AsyncIterator[Supervisor]:
    """Open a fleet of these targets: directories are locked and scanned; no database is opened or published yet.

    `conflicts_end` and `follow`: see `ErrorPolicy`.

    Raises `UsageError` for invalid targets, `EnvironmentProblem` or `ConflictError` if a directory cannot be locked.
    """
    if len(targets) > 1 or any(isinstance(target, DirectoryTarget) for target in targets):
        raise_descriptor_limit()
    errors = ErrorPolicy(conflicts_end=conflicts_end, follow=follow)
    fleet = Supervisor(FleetContext(now_ms, rng or random.Random(), errors), open_store)
    try:
        await fleet.open(targets)
        yield fleet
    finally:
        await fleet.aclose()


def _checked(targets: Sequence[Target]) -> list[Target]:
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


async def _finish(members: Sequence[ManagedDatabase]) -> None:
    """Stop the databases, and wait until each has published its remaining transactions and is closed."""
    for member in members:
        member.stop.set()
    for member in members:
        await member.closed.wait()
        await member.aclose()
