"""Restores databases that do not exist from their replicas, before replication begins, where configured.

A standby waits for the lease before it restores, and holds the lease meanwhile: so the restored state is the latest,
and publishing continues from it. A replica without files is no error: the application will create the database.
"""

from __future__ import annotations

import logging
import stat
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import trio

from litereplica.errors import EnvironmentProblem, NoReplica, UsageError
from litereplica.file_access import make_directories
from litereplica.format.sqlite import HEADER_SIZE
from litereplica.ltxstore.store import open_ltx_store
from litereplica.restore.any_format import restore_any
from litereplica.restore.generations import BackupResult
from litereplica.restore.output_file import SIDECARS
from litereplica.restore.restore import require_database
from litereplica.writer.database.state_directory import StateDirectory
from litereplica.writer.fleet.replica_root import ReplicaRoot
from litereplica.writer.settings import DatabaseTarget, DirectoryTarget, Target

log = logging.getLogger(__name__)

APPEARANCE_INTERVAL_S = 0.2
"""Between checks for a database that does not exist yet."""


async def restore_missing(target: Target, stop: trio.Event, limiter: trio.CapacityLimiter) -> None:
    """Restore the missing databases of a target: a single database, or all that the replicas of a directory have.

    Returns early when `stop` is set. `limiter` bounds the concurrent restores. The lease of a single database is not
    released: the writer that follows has the same identity. Raises the errors of `restore` and of acquiring the lease.
    """
    if isinstance(target, DatabaseTarget) and target.path.exists():
        log.info("%s exists: not restoring it", target.path)
        return
    _make_directory(target.path if isinstance(target, DirectoryTarget) else target.path.parent)
    root = ReplicaRoot(target, lambda url, credentials: open_ltx_store(url, credentials=credentials))
    try:
        root.lock()
        if isinstance(target, DatabaseTarget):
            await _restore_below(root, target.path, "", stop, limiter)
        else:
            await root.lease_keeper(StateDirectory(target.path)).stand_by(stop)  # so that the listing is final
            for relative in await root.store("").list_replicas():
                if not stop.is_set() and _belongs(target, relative) and not (target.path / relative).exists():
                    _make_directory((target.path / relative).parent)
                    await _restore_below(root, target.path / relative, relative, stop, limiter)
    finally:
        await root.aclose()


async def wait_for_database(path: Path) -> None:
    """Return once `is_there(path)`."""
    log.info("%s does not exist yet: waiting for it", path)
    while not is_there(path):  # noqa: ASYNC110 - another program makes it
        await trio.sleep(APPEARANCE_INTERVAL_S)


def is_there(path: Path) -> bool:
    """True if there is a file that may be a database by its size, or anything whose opening will raise an error.

    The file is not opened: this process may have it open, and closing it would drop the locks on it.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return not stat.S_ISREG(found.st_mode) or found.st_size >= HEADER_SIZE


async def _restore_below(
    root: ReplicaRoot, path: Path, prefix: str, stop: trio.Event, limiter: trio.CapacityLimiter
) -> None:
    store = root.store(prefix)
    with StateDirectory(path) as state:
        lease = root.lease_keeper(state)
        await lease.stand_by(stop)
        if stop.is_set() or await trio.Path(path).exists():
            return
        _refuse_left_over(path)
        log.info("%s does not exist: restoring it from %s", path, store.url)
        try:
            async with limiter, lease.kept():
                result = await restore_any(store, path, prepare=require_database)
        except NoReplica:
            log.info("%s is empty: not restoring %s", store.url, path)
            return
    what = f"generation {result.generation}" if isinstance(result, BackupResult) else f"TXID {result.txid:016x}"
    log.info("restored %s to %s, %d bytes", what, path, result.size)


def _refuse_left_over(path: Path) -> None:
    for left_over in (path.with_name(path.name + suffix) for suffix in SIDECARS):
        if left_over.exists():
            raise UsageError(
                f"{path} does not exist, but {left_over} of an earlier database does", hint="move it away, or delete it"
            )


def _belongs(target: DirectoryTarget, relative: str) -> bool:
    path = PurePosixPath(relative)  # empty for a replica at the root, which belongs to no database of a directory
    return relative != "" and (target.recursive or len(path.parts) == 1) and fnmatchcase(path.name, target.pattern)


def _make_directory(path: Path) -> None:
    try:
        make_directories(path)
    except OSError as exc:
        raise EnvironmentProblem(f"cannot create {path}: {exc.strerror}", hint="choose another directory") from exc
