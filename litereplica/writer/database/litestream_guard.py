"""A database is replicated by one program: what tells that Litestream is at work on it.

Both programs hold a read transaction to keep the WAL. Each would block the other's checkpoints, and the WAL would
grow without bound. Litestream's state directory stays behind when it stops, so the directory alone proves
nothing; a running Litestream shows by its open files (Linux: `/proc`), and by what it writes to that directory. It asks
nobody when it starts, and puts its files in the place of ours: so it is watched for as long as we replicate.
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
    """Raise `UsageError` when a Litestream process has `database` open; warn when that cannot be told."""
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
    """Notices a Litestream that is started while we replicate `database`."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._directories = [state_directory(database) / part for part in (".", "ltx", "ltx/0")]
        self._seen = self._times()

    def check(self) -> None:
        """Raise `ConflictError` when a Litestream has the database open. One stat, or three, while it does nothing."""
        times = self._times()
        if times == self._seen:
            return
        pid, complete = _find_litestream(self._database, Path("/proc"))
        if pid is None and complete:  # somebody tidies up
            self._seen = times
            return
        process = f" (process {pid})" if pid is not None else ""
        raise ConflictError(
            f"{self._database} is being replicated by Litestream{process} as well", hint="stop one of the two"
        )

    def _times(self) -> list[int]:
        """When each directory has last gained or lost an entry."""
        times = []
        for directory in self._directories:
            try:
                times.append(directory.stat().st_mtime_ns)
            except OSError:
                break
        return times


def _find_litestream(database: Path, proc: Path) -> tuple[int | None, bool]:
    """(a Litestream process that has the file open or None, whether all could be looked at)."""
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
