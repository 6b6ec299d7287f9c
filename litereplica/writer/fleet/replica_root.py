"""The root of a target's replicas: its store, its lease, and the lock of a replicated directory.

Each target has one root. The replica of a single database is at the root itself; the databases of a directory have
their relative paths as prefixes below it. The lease of a directory's root, `lock.json`, is held by the identity in
`.litereplica/` of that directory, which is locked while the directory is replicated, whether its databases are open or
not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import trio

from litereplica.errors import UsageError
from litereplica.file_access import FileAccess
from litereplica.ltxstore.lease_record import LOCK_KEY, Lease
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.credentials import Credentials
from litereplica.storage.keys import is_key
from litereplica.storage.url import parse_url
from litereplica.storage.wrappers import MeteredStorage, StorageStatistics
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
"""Subdirectory of a replicated directory: contains its lock and its identity."""


def join_url(root: str, prefix: str) -> str:
    """The canonical URL of the replica at `prefix` below a root. Raises `UsageError` for an invalid URL."""
    return str(parse_url(root).below(prefix))


class ReplicaRoot:
    """The root of one target's replicas. Call `lock` before use, and `aclose` afterwards."""

    def __init__(self, target: Target, open_store: Callable[[str, Credentials | None], LTXStore]) -> None:
        self._target = target
        store = open_store(target.url, target.credentials)
        self._meter = MeteredStorage(store.storage)
        self._store = LTXStore(self._meter, store.layout)
        self._directory: LockedDirectory | None = None
        self._shared: RootLease | None = None
        self._open: NoLease | None = None

    @property
    def path(self) -> Path:
        """The path of the target."""
        return self._target.path

    def requests(self) -> StorageStatistics:
        """The requests to the store that were made for the databases of this root."""
        return self._meter.statistics()

    def lock(self) -> None:
        """Lock the directory of the target, if it is one. Raises `AlreadyReplicated`, `EnvironmentProblem`. Blocks."""
        if isinstance(self._target, DirectoryTarget):
            path = self._target.path
            self._directory = LockedDirectory(path / DIRECTORY_STATE, path).__enter__()
            limit = FileAccess.of(path.stat())
            self._store.storage.set_access(self._target.settings.access.instead_of(limit))

    def store(self, prefix: str) -> LTXStore:
        """The store of the replica at `prefix`; that of the root if it is empty.

        Raises:
            UsageError: `prefix` cannot be part of an object key.
        """
        if not prefix:
            return self._store
        path = PurePosixPath(prefix)
        if not is_key(prefix) or path.parts[0] in (LOCK_KEY, DIRECTORY_STATE):
            raise UsageError(f"no replica can have the name {prefix!a}", hint="rename the database")
        return self._store.below(prefix, url=join_url(self._target.url, prefix))

    def lease_keeper(self, state: StateDirectory) -> LeaseKeeper:
        """The lease keeper of one database, whose state directory must be locked."""
        mode = self._target.settings.lease
        if self._directory is None:
            return open_lease_keeper(self._store.storage, mode, writer_id=state.writer_id)
        if mode is LeaseMode.OFF:
            self._open = self._open or NoLease(self._store.storage)
            return self._open
        return DatabaseLease(self._share(self._directory), owns=False)

    async def stand_by(self, stop: trio.Event) -> None:
        """Wait while another writer holds the lease, if this is a standby for a directory; called before opening."""
        if self._directory is not None and self.waits:
            await self._share(self._directory).stand_by(stop)

    @property
    def waits(self) -> bool:
        """True if this is a standby, which waits while another writer holds the lease."""
        return self._target.settings.lease is LeaseMode.WAIT

    def lease(self) -> Lease | None:
        """The lease of a directory's root, while it is held."""
        return None if self._shared is None else self._shared.held()

    def _share(self, directory: LockedDirectory) -> RootLease:
        if self._shared is None:
            self._shared = open_root_lease(self._store.storage, writer_id=directory.writer_id(), waits=self.waits)
        return self._shared

    async def aclose(self) -> None:
        """Release the lease, close the store and unlock the directory. Nothing may be published afterwards."""
        with trio.CancelScope(shield=True):
            if self._shared is not None and self._shared.held() is not None:
                await self._shared.end()
            await self._store.aclose()
        if self._directory is not None:
            self._directory.__exit__(None, None, None)
            self._directory = None
