"""The databases of a directory: which of its files are some, and when to look again.

A database is a regular file whose name fits the pattern and that begins as SQLite's files do. What belongs to a
database or to a writer (`-wal`, `-shm`, `-journal`, `.<file>-litereplica`, `.<file>-litestream`) is none. Directories
are not entered through symbolic links, so that there are no loops; a link to a database elsewhere is one under the
link's name.

What has appeared or vanished is known from the kernel within a second, if it tells, and from a look at the directory
now and then in any case. A file that this process has open is not opened to look at it (`source.looks_like_database`).
"""

from __future__ import annotations

import fnmatch
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from litereplica.writer.database.sqlite_database import looks_like_database
from litereplica.writer.fleet.replica_root import DIRECTORY_STATE
from litereplica.writer.settings import DirectoryTarget

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

log = logging.getLogger(__name__)

RESCAN_INTERVAL_S = 15.0
"""Between looks when the kernel tells nothing: 40,000 names take some 30 ms."""
DEBOUNCE_MS = 500
STEP_MS = 200
"""Changes are told together, so much later at most; the watching thread wakes up so often."""

_COMPANIONS = ("-wal", "-shm", "-journal")
_STATE_SUFFIXES = ("-litereplica", "-litestream")
_MODIFIED = 2
"""Of the kinds of change that `watchfiles` tells: 1 is added, 3 deleted."""


class Directory:
    """Follows the databases of `target`."""

    def __init__(self, target: DirectoryTarget) -> None:
        self.target = target
        self._others: dict[str, tuple[int, int, int]] = {}  # files that fit the pattern and were no databases
        self._limiter = trio.CapacityLimiter(1)
        self._watcher = trio.CapacityLimiter(1)
        self._notify: RustNotify | None = None
        self._told = ""

    async def scan(self, known: Collection[Path]) -> set[Path]:
        """The databases that are there now. Those `known` need only exist. Raises `OSError`."""
        return await trio.to_thread.run_sync(self._scan, frozenset(map(str, known)), limiter=self._limiter)

    async def until_changed(self) -> None:
        """Return when something may have appeared or vanished, at the latest after `RESCAN_INTERVAL_S`."""
        stop = threading.Event()
        try:
            await trio.to_thread.run_sync(self._watch, stop, limiter=self._watcher, abandon_on_cancel=True)
            return
        except Exception as exc:  # of any class: the watcher's own are not public
            self._notify = None
            if str(exc) != self._told:
                self._told = str(exc)
                log.warning("cannot watch %s, and look every %.0f s: %s", self.target.path, RESCAN_INTERVAL_S, exc)
        finally:
            stop.set()
        await trio.sleep(RESCAN_INTERVAL_S)

    def _scan(self, known: frozenset[str]) -> set[Path]:
        found, others = set(), dict[str, tuple[int, int, int]]()
        for path in self._candidates(str(self.target.path)):
            if path in known or self._is_database(path, others):
                found.add(Path(path))
        self._others = others
        return found

    def _candidates(self, directory: str) -> Iterator[str]:
        with os.scandir(directory) as entries:
            for entry in entries:
                if _is_own(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if self.target.recursive:
                        try:
                            yield from self._candidates(entry.path)
                        except OSError as exc:
                            log.debug("cannot look into %s: %s", entry.path, exc)
                elif fnmatch.fnmatchcase(entry.name, self.target.pattern) and not self._is_double(entry):
                    yield entry.path

    def _is_double(self, entry: os.DirEntry[str]) -> bool:
        """A link to what has another name in the directory, or that leads nowhere."""
        if not entry.is_symlink():
            return False
        try:
            return Path(entry.path).resolve(strict=True).is_relative_to(self.target.path.resolve())
        except (OSError, RuntimeError):
            return True

    def _is_database(self, path: str, others: dict[str, tuple[int, int, int]]) -> bool:
        try:
            status = os.stat(path)  # noqa: PTH116 - thousands of them
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._others.get(path) != identity and looks_like_database(Path(path)):
                return True
        except FileNotFoundError:
            return False
        except OSError:  # let whoever opens it say what is wrong with it
            return True
        others[path] = identity
        return False

    def _watch(self, stop: threading.Event) -> None:
        """Wait for a change that matters, for `stop`, or until it is time for a look. Blocks."""
        from watchfiles._rust_notify import RustNotify  # late: not every writer follows a directory

        if self._notify is None:  # what has changed until now is to be looked for
            self._notify = RustNotify([str(self.target.path)], False, False, 0, self.target.recursive, True)
            return
        until_s = time.monotonic() + RESCAN_INTERVAL_S
        while not stop.is_set() and (left_s := until_s - time.monotonic()) > 0:
            changes = self._notify.watch(DEBOUNCE_MS, STEP_MS, max(1, round(left_s * 1000)), stop)
            if not isinstance(changes, str) and any(self._matters(kind, path) for kind, path in changes):
                return
        if stop.is_set():
            self._notify.close()
            self._notify = None

    def _matters(self, kind: int, path: str) -> bool:
        if any(_is_own(part) for part in Path(path).parts[len(self.target.path.parts) :]):
            return False
        return path in self._others if kind == _MODIFIED else True


def printable(path: Path) -> str:
    """A path fit for a log, whatever the bytes of its name."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _is_own(name: str) -> bool:
    """Is this a companion of a database, or a writer's directory beside it?"""
    if name == DIRECTORY_STATE or name.endswith(_COMPANIONS):
        return True
    return name.startswith(".") and name.endswith(_STATE_SUFFIXES)
