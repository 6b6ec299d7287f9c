"""Detects a Litestream that replicates the same database.

Both programs hold a read transaction to keep the WAL. Each would block the other's checkpoints, and the WAL would
grow without bound. Litestream's state directory stays behind when it stops, so the directory alone proves
nothing; a running Litestream shows by its open files (Linux: `/proc`) and by changes in that directory. It can be
started at any time and replaces our files, so it is watched for as long as we replicate.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from litereplica.errors import ConflictError, UsageError

log = logging.getLogger(__name__)

PROGRAM = "litestream"


def state_directory(database: Path) -> Path:
    """The directory that Litestream keeps beside a database."""
    return database.with_name(f".{database.name}-litestream")


def refuse_if_litestream_runs(database: Path, *, proc: Path = Path("/proc")) -> None:
    """Raises `UsageError` if a Litestream process has `database` open. Logs a warning if that is unknown."""
    if not state_directory(database).is_dir():
        return
    pid, complete = _find_litestream(database, proc)
    if pid is not None:
        raise UsageError(
            f"{database} is being replicated by Litestream (process {pid})",
            hint="stop it first: two programs that hold one WAL keep it from ever shrinking",
        )
    if not complete:
        log.warning("%s exists: make sure that Litestream is stopped", state_directory(database))


class LitestreamWatch:
    """Detects a Litestream that is started while we replicate `database`."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._directories = [state_directory(database) / part for part in (".", "ltx", "ltx/0")]
        self._seen = self._times()

    def check(self) -> None:
        """Raises `ConflictError` if a Litestream has the database open. Three stat() at most if nothing changed."""
        times = self._times()
        if times == self._seen:
            return
        pid, complete = _find_litestream(self._database, Path("/proc"))
        if pid is None and complete:  # the directory is being cleaned up
            self._seen = times
            return
        process = f" (process {pid})" if pid is not None else ""
        raise ConflictError(
            f"{self._database} is being replicated by Litestream{process} as well", hint="stop one of the two"
        )

    def _times(self) -> list[int]:
        """The mtime of each directory that exists."""
        times = []
        for directory in self._directories:
            try:
                times.append(directory.stat().st_mtime_ns)
            except OSError:
                break
        return times


def _find_litestream(database: Path, proc: Path) -> tuple[int | None, bool]:
    """(the pid of a Litestream that has the file open or None, True if all processes could be examined)."""
    target = str(database.resolve())
    complete = True
    for process in proc.glob("[0-9]*"):
        try:
            if PROGRAM not in (process / "comm").read_text():
                continue
            descriptors = list((process / "fd").iterdir())
        except FileNotFoundError:  # it has ended
            continue
        except OSError:
            complete = False
            continue
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) == target:
                    return int(process.name), True
    return None, complete
