"""Before replication begins: databases that are not there are restored from their replicas, where that is wanted.

A standby restores when its turn has come, not before: it waits for the lease first, and holds it meanwhile, so that
what it restores is what it goes on with. A replica without a file is no error: the database is yet to be made.
"""

from __future__ import annotations

import logging
import stat
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import trio

from litereplica.errors import EnvironmentProblem, NoReplica, UsageError
from litereplica.format.sqlite import HEADER_SIZE
from litereplica.ltxstore.store import open_ltx_store
from litereplica.restore.output_file import SIDECARS
from litereplica.restore.restore import restore
from litereplica.writer.database.state_directory import StateDirectory
from litereplica.writer.fleet.replica_root import ReplicaRoot
from litereplica.writer.settings import DatabaseTarget, DirectoryTarget, Target

log = logging.getLogger(__name__)

APPEARANCE_INTERVAL_S = 0.2
"""Between looks for a database that is yet to be made."""


async def restore_missing(target: Target, stop: trio.Event, limiter: trio.CapacityLimiter) -> None:
    """Restore what is not there of a target: the database, or those of a directory that its replica has.

    Returns early when `stop` is set. `limiter` is for what restores at the same time. The lease of a single database
    stays ours: the writer that follows knows it. Raises what `restore` and taking the lease raise.
    """
    if isinstance(target, DatabaseTarget) and target.path.exists():
        log.info("%s exists, and is not restored", target.path)
        return
    _make_directory(target.path if isinstance(target, DirectoryTarget) else target.path.parent)
    root = ReplicaRoot(target, lambda url, credentials: open_ltx_store(url, credentials=credentials))
    try:
        root.lock()
        if isinstance(target, DatabaseTarget):
            await _restore_below(root, target.path, "", stop, limiter)
        else:
            await root.lease_keeper(StateDirectory(target.path)).stand_by(stop)  # so that the listing is the last state
            for relative in await root.store("").list_replicas():
                if not stop.is_set() and _belongs(target, relative) and not (target.path / relative).exists():
                    _make_directory((target.path / relative).parent)
                    await _restore_below(root, target.path / relative, relative, stop, limiter)
    finally:
        await root.aclose()


async def wait_for_database(path: Path) -> None:
    """Return once there is something at `path` that can be opened as a database."""
    log.info("%s does not exist yet: waiting for it", path)
    while not is_there(path):  # noqa: ASYNC110 - another program makes it
        await trio.sleep(APPEARANCE_INTERVAL_S)


def is_there(path: Path) -> bool:
    """Is there a file that has a database's header, as far as its size tells, or something else to complain about?

    The file is not opened: this process may have it open, and closing it would end the locks on it.
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
                result = await restore(store, path)
        except NoReplica:
            log.info("%s has nothing to restore: %s is yet to be made", store.url, path)
            return
    log.info("restored TXID %016x to %s, %d bytes", result.txid, path, result.size)


def _refuse_left_over(path: Path) -> None:
    for left_over in (path.with_name(path.name + suffix) for suffix in SIDECARS):
        if left_over.exists():
            raise UsageError(
                f"{path} does not exist, but {left_over} is left of one that did", hint="move it away, or delete it"
            )


def _belongs(target: DirectoryTarget, relative: str) -> bool:
    path = PurePosixPath(relative)  # empty for a replica at the root, which is none of a directory's databases
    return relative != "" and (target.recursive or len(path.parts) == 1) and fnmatchcase(path.name, target.pattern)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise EnvironmentProblem(f"cannot make {path}: {exc.strerror}", hint="name another place") from exc
