"""Restores every database below a prefix, for `litereplica restore --all`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from litereplica.cli.restored import Result
from litereplica.errors import LiteReplicaError, ReplicaError, UsageError
from litereplica.file_access import FileAccess, make_directories
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.url import basename, parse_url

PARALLEL_DATABASES = 3
"""Concurrent restores. Each has fewer requests in flight than a single restore, so that together they need no more
memory."""
PARALLELISM_EACH = 4
"""Concurrent requests of each restore."""

SIDECAR_SUFFIXES = ("-journal", "-wal", "-shm", "-txid", "-litereplica", "-litestream")
"""Suffixes of the files that SQLite and litereplica keep beside a database."""

UNNAMED = "database.db"
"""Name of the database file if the replica is at the root of a bucket."""

RestoreOne = Callable[[LTXStore, Path, int], Awaitable[Result]]
"""Restores a replica to a file, with the given number of concurrent requests."""


class SomeFailed(LiteReplicaError):
    """Some databases could not be restored; the exit code is that of the first error."""

    def __init__(self, failed: dict[str, LiteReplicaError], total: int) -> None:
        names = ", ".join(failed)
        super().__init__(f"{len(failed)} of {total} databases were not restored: {names}", hint="see the errors above")
        self.exit_code = next(iter(failed.values())).exit_code


@dataclass(frozen=True, slots=True)
class Restored:
    """The outcome of one database. `prefix` is empty for a replica at the root."""

    prefix: str
    path: Path
    outcome: Result | LiteReplicaError


def require_safe_name(prefix: str) -> None:
    """Raise `ReplicaError` if it is unsafe to create a file of this name.

    Names in a bucket are untrusted: SQLite would roll `x.db` back to the content of a planted `x.db-journal`.
    """
    if not prefix.isprintable():
        raise ReplicaError(f"{prefix!r} has control characters", hint="restore it on its own, with -o")
    if prefix.endswith(SIDECAR_SUFFIXES):
        raise ReplicaError(
            f"{prefix!r} has the name of a file that SQLite or litereplica keeps beside a database",
            hint="restore it on its own, with -o and another name",
        )


def require_no_links(path: Path, directory: Path) -> None:
    """Raise `UsageError` if a symbolic link below `directory` leads away from where a file is to be restored."""
    below = [path, *path.parents]
    for each in below[: below.index(directory)]:
        if each.is_symlink():
            raise UsageError(f"{each} is a symbolic link", hint="remove it, or restore to another directory")


async def restore_all(
    store: LTXStore,
    directory: Path,
    restore_one: RestoreOne,
    *,
    leave: bool,
    done: Callable[[Restored], None],
    access: FileAccess | None = None,
) -> list[Restored] | None:
    """Restore every database below the root of `store`, each to the file in `directory` that its prefix names.

    Returns the outcomes by prefix; None if the store has no replica. With `leave`, existing files are left alone, and
    are not in the result. `access` is that of directories that are made. A failure does not stop the others; `done` is
    called for each database. Raises the errors of the listing.
    """
    prefixes = await store.list_replicas()
    if not prefixes:
        return None
    results: list[Restored] = []
    limiter = trio.CapacityLimiter(PARALLEL_DATABASES)

    async def one(prefix: str) -> None:
        path = directory / (prefix or basename(store.url) or UNNAMED)
        if leave and await trio.to_thread.run_sync(path.exists):
            return
        below = store
        if prefix:
            below = store.below(prefix, url=str(parse_url(store.url).below(prefix)))
        async with limiter:
            outcome: Result | LiteReplicaError
            try:
                require_safe_name(prefix)
                await trio.to_thread.run_sync(require_no_links, path, directory)
                await trio.to_thread.run_sync(make_directories, path.parent, access)
                outcome = await restore_one(below, path, PARALLELISM_EACH)
            except LiteReplicaError as exc:
                outcome = exc
        results.append(Restored(prefix, path, outcome))
        done(results[-1])

    async with trio.open_nursery() as nursery:
        for prefix in prefixes:
            nursery.start_soon(one, prefix)
    return sorted(results, key=lambda each: each.prefix)
