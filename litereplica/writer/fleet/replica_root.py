"""The roots below which a process publishes: one connection to the store and one lease for each.

A root belongs to a target: to a single database, whose replica lies at the root itself, or to a directory, whose
databases have the prefixes of their relative paths below it. The lease of a directory's root, `lock.json`, is held
by the identity in the directory's own `.litereplica/`, which is locked for as long as it is replicated, whether its
databases are open or not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

import trio

from litereplica.errors import UsageError
from litereplica.ltxstore.lease import LOCK_KEY, Lease
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.credentials import Credentials
from litereplica.storage.keys import is_key
from litereplica.storage.url import parse_url
from litereplica.writer.database.state_directory import LockedDirectory, StateDirectory
from litereplica.writer.publish.lease_keeper import (
    DatabaseLease,
    LeaseKeeper,
    LeaseMode,
    NoLease,
    RootLease,
    open_lease_keeper,
    open_root_lease,
)
from litereplica.writer.settings import DirectoryTarget, Target

DIRECTORY_STATE = ".litereplica"
"""In a directory whose databases are replicated: its lock and its identity."""


def join_url(root: str, prefix: str) -> str:
    """The URL of what lies at `prefix` below a root, in its canonical form. Raises `UsageError`."""
    return str(parse_url(root).below(prefix))


class ReplicaRoot:
    """The root of one target's replicas. Use as a context manager for the directory's lock."""

    def __init__(self, target: Target, open_store: Callable[[str, Credentials | None], LTXStore]) -> None:
        self._target = target
        self._store = open_store(target.url, target.credentials)
        self._directory: LockedDirectory | None = None
        self._shared: RootLease | None = None
        self._open: NoLease | None = None

    def lock(self) -> None:
        """Of a directory. Raises `AlreadyReplicated` and `EnvironmentProblem`. Blocks."""
        if isinstance(self._target, DirectoryTarget):
            path = self._target.path
            self._directory = LockedDirectory(path / DIRECTORY_STATE, path).__enter__()

    def store(self, prefix: str) -> LTXStore:
        """The replica at `prefix`; the root itself if that is empty. Raises `UsageError` for a name that no key has."""
        if not prefix:
            return self._store
        path = PurePosixPath(prefix)
        if not is_key(prefix) or path.parts[0] in (LOCK_KEY, DIRECTORY_STATE):
            raise UsageError(f"no replica can have the name {prefix!a}", hint="rename the database")
        return self._store.below(prefix, url=join_url(self._target.url, prefix))

    def lease_keeper(self, state: StateDirectory) -> LeaseKeeper:
        """The right to publish one database, whose state directory is locked."""
        mode = self._target.settings.lease
        if self._directory is None:
            return open_lease_keeper(self._store.storage, mode, writer_id=state.writer_id)
        if mode is LeaseMode.OFF:
            self._open = self._open or NoLease(self._store.storage)
            return self._open
        return DatabaseLease(self._share(self._directory), owns=False)

    async def stand_by(self, stop: trio.Event) -> None:
        """Before a database is opened: wait while another has the lease of a directory, if that is what to do."""
        if self._directory is not None and self.waits:
            await self._share(self._directory).stand_by(stop)

    @property
    def waits(self) -> bool:
        """Is this a standby?"""
        return self._target.settings.lease is LeaseMode.WAIT

    def lease(self) -> Lease | None:
        """The lease of a directory while it is held."""
        return None if self._shared is None else self._shared.held()

    def _share(self, directory: LockedDirectory) -> RootLease:
        if self._shared is None:
            self._shared = open_root_lease(self._store.storage, writer_id=directory.writer_id(), waits=self.waits)
        return self._shared

    async def aclose(self) -> None:
        """Give the lease back, and let go of the directory. Nothing is published any more."""
        with trio.CancelScope(shield=True):
            if self._shared is not None and self._shared.held() is not None:
                await self._shared.end()
            await self._store.aclose()
        if self._directory is not None:
            self._directory.__exit__(None, None, None)
            self._directory = None
