"""A database is replicated by one program: what tells that Litestream is at work on it.

Both programs hold a read transaction to keep the WAL. Each would block the other's checkpoints, and the WAL would
grow without bound. Litestream's state directory stays behind when it stops, so the directory alone proves
nothing; a running Litestream shows by its open files (Linux: `/proc`).
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from litereplica.errors import UsageError

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
