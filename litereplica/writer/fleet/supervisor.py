"""Replicates many databases in one process (a fleet): single databases, and all databases of directories.

Each database is a `ManagedDatabase`. A fleet of a single `DatabaseTarget` is strict: the database stays open, and its
errors end the fleet, except for a full disk. In any other fleet a database that fails is logged once, tried again with
back-off and shown in the statistics, and one that is idle is parked, so that thousands cost little.

The tasks of a fleet: one for each open database; one for each directory, which adds and removes databases; and one for
the parked databases of each directory and of all single ones (`parking.py`), since file systems may hang.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from litereplica.errors import DatabaseNotFound, LiteReplicaError, UsageError
from litereplica.ltxstore.store import open_ltx_store
from litereplica.times import wall_clock_ms
from litereplica.writer.fleet.directory_scan import Directory, printable
from litereplica.writer.fleet.ending import finish
from litereplica.writer.fleet.groups import FleetError, Group, GroupOpener, OpenStore, checked_targets
from litereplica.writer.fleet.limits import ErrorPolicy, FleetContext, raise_descriptor_limit
from litereplica.writer.fleet.managed_database import ManagedDatabase
from litereplica.writer.fleet.parking import watch_parked
from litereplica.writer.fleet.statistics import DatabaseStatistics, FleetStatistics, State
from litereplica.writer.settings import DirectoryTarget, Target

log = logging.getLogger(__name__)

OVERDUE_INTERVAL_S = 1.0
"""Between checks for overdue turns and for settled maintenance."""
GONE_KEPT = 100
"""Number of databases that stay in the statistics after they are gone."""


class Supervisor:
    """Replicates the databases of one process. Obtain one from `open_fleet`."""

    def __init__(self, context: FleetContext, open_store: OpenStore) -> None:
        self._context = context
        self._opener = GroupOpener(context, open_store)
        self._groups: list[Group] = []
        self._gone: list[DatabaseStatistics] = []
        self._registered: dict[Path, Target] = {}
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
                await finish(members, self.wake)
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
        unchanged targets are not interrupted. Registered targets stay.

        Raises:
            UsageError, EnvironmentProblem, ConflictError: a new target cannot be opened; the old targets are kept.
        """
        targets = checked_targets(targets)
        for target in targets:
            self._registered.pop(target.path, None)
        targets = checked_targets([*targets, *self._registered.values()])
        async with self._changing:
            kept = [group for group in self._groups if group.target in targets]
            ended = [group for group in self._groups if group.target not in targets]
            replaced = list(ended)
            opened: list[Group] = []
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

    async def _reopen(self, groups: Iterable[Group]) -> list[Group]:
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
        databases += [record for group in self._groups for record in group.stopped.values()]
        leases = {each.url: each.lease for each in databases if each.lease is not None}
        for group in self._groups:
            if group.directory is not None:
                for path in group.members:
                    leases.pop(group.members[path].url, None)
                if (lease := group.root.lease()) is not None:
                    leases[group.target.url] = lease
        here = {each.path for each in databases}
        gone = (each for each in self._gone if each.path not in here)
        requests = {group.target.url: group.root.requests() for group in self._groups}
        return FleetStatistics((*sorted(databases, key=lambda each: each.path), *gone), leases, requests)

    # --- what an operator asks for

    def find(self, path: Path) -> ManagedDatabase | None:
        """Return the database at a path; None if it is stopped. Raises `DatabaseNotFound`."""
        return self._group_of(path).members.get(path)

    async def stop_database(self, path: Path) -> DatabaseStatistics:
        """Publish the rest of a database, and close it until `start_database`. Raises as `find`, and `Unpublished`."""
        async with self._changing:
            group = self._group_of(path)
            member = group.members.pop(path, None)
            if member is not None:
                group.stopped[path] = member.last_statistics(State.STOPPED)
                await finish([member], self.wake)
                group.stopped[path] = member.last_statistics(State.STOPPED)
                log.info("%s is stopped", printable(path))
                if member.unpublished is not None:
                    raise member.unpublished
            return group.stopped[path]

    async def start_database(self, path: Path) -> ManagedDatabase:
        """Replicate a stopped database again. Raises as `find`."""
        async with self._changing:
            group = self._group_of(path)
            if (before := group.stopped.pop(path, None)) is not None:
                for member in await self._add(group, [path]):
                    member.continue_from(before)
                    log.info("%s is started", printable(path))
                    if self._nursery is not None:
                        self._start(member, self._nursery)
            return group.members[path]

    async def register(self, target: Target) -> bool:
        """Replicate a target that no configuration names. False if its path is one already. Raises as `reconfigure`."""
        path = target.path
        if any(path == group.target.path or path in group.members for group in self._groups):
            return False
        raise_descriptor_limit()
        before, self._registered = self._registered, {**self._registered, path: target}
        try:
            await self.reconfigure(self._configured())
        except BaseException:
            self._registered = before
            raise
        return True

    async def unregister(self, path: Path) -> DatabaseStatistics | None:
        """End the replication of a target, until the configuration is read again if it is in there; None if it is none.

        Raises `UsageError` for a database of a directory, and `Unpublished`.
        """
        group = next((each for each in self._groups if each.has(path)), None)
        if group is None:
            return None
        if group.directory is not None:
            raise UsageError(f"{path} is in a directory that is replicated", hint=f"stop it: litereplica stop {path}")
        member = group.members.get(path)
        last = group.stopped.get(path)
        self._registered.pop(path, None)
        await self.reconfigure([target for target in self._configured() if target.path != path])
        if member is None:
            return last
        if member.unpublished is not None:
            raise member.unpublished
        return member.last_statistics()

    def _configured(self) -> list[Target]:
        return [group.target for group in self._groups if group.target.path not in self._registered]

    def _group_of(self, path: Path) -> Group:
        for group in self._groups:
            if group.has(path):
                return group
        raise DatabaseNotFound(f"database not found: {path}")

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
        targets = checked_targets(targets)
        self._context.errors.set_targets(targets)
        for target in targets:
            self._groups.append(await self._open(target))

    async def _open(self, target: Target) -> Group:
        return await self._opener.open(target, named=self._named())

    async def _add(self, group: Group, paths: Iterable[Path]) -> list[ManagedDatabase]:
        return await self._opener.add(group, paths, named=self._named())

    def _named(self) -> set[Path]:
        return {group.target.path for group in self._groups if group.directory is None}

    def _begin(self, group: Group, nursery: trio.Nursery) -> None:
        for member in group.members.values():
            self._start(member, nursery)
        if group.directory is not None:
            nursery.start_soon(self._guard, self._follow, group)

    def _start(self, member: ManagedDatabase, nursery: trio.Nursery) -> None:
        if member.parked is None:
            nursery.start_soon(self._guard, member.run, nursery)

    async def _end_all(self, groups: list[Group]) -> None:
        """Publish and close the databases of groups. Empties `groups`."""
        for group in groups:
            group.tasks.cancel()
        members = [member for group in groups for member in group.members.values()]
        await finish(members, self.wake if self._nursery is not None else None)
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

    async def _follow(self, group: Group) -> None:
        """Follow a directory: add and remove databases, and reopen parked ones that have changed."""
        assert group.directory is not None
        with group.tasks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_parked, lambda: list(group.members.values()), self.wake)
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

    async def _rescan(self, group: Group, directory: Directory) -> None:
        found = await directory.scan(group.members.keys() | group.stopped.keys())
        async with self._changing:
            assert self._nursery is not None
            for path in group.stopped.keys() - found:
                del group.stopped[path]
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
        await finish([member], self.wake)
        if member.unpublished is not None:
            log.error("%s", member.unpublished)
        log.info("%s has gone", printable(member.path))

    async def _watch_named(self) -> None:
        await watch_parked(lambda: [each for each in self._members() if not each.prefix], self.wake)

    def wake(self, member: ManagedDatabase) -> None:
        """Open a parked database again."""
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
