"""Finds the databases of a directory, and waits for changes of the directory.

A database is a regular file that begins with SQLite's header and whose name matches the pattern. Files that belong to a
database or to a writer (`-wal`, `-shm`, `-journal`, `.<file>-litereplica`, `.<file>-litestream`) are skipped. So are
symbolic links: there are no loops and no doubles, and nothing outside the directory is replicated. A link to a database
elsewhere is reported once.

Changes are noticed within a second through inotify, and by scanning the directory at intervals in any case. A file that
this process has open is not opened for the check (`looks_like_database`).
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from litereplica.writer.database.open_files import looks_like_database
from litereplica.writer.fleet.replica_root import DIRECTORY_STATE
from litereplica.writer.settings import DirectoryTarget

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

log = logging.getLogger(__name__)

RESCAN_INTERVAL_S = 15.0
"""Maximum interval between scans; one of 40,000 names takes some 30 ms."""
DEBOUNCE_MS = 500
"""Changes are reported together, at most this much later."""
STEP_MS = 200
"""The watching thread wakes up this often."""

_COMPANIONS = ("-wal", "-shm", "-journal")
_STATE_SUFFIXES = ("-litereplica", "-litestream")
_MODIFIED = 2
"""A kind of change of `watchfiles`; the others are 1 (added) and 3 (deleted)."""


class Directory:
    """The databases of `target`."""

    def __init__(self, target: DirectoryTarget) -> None:
        self.target = target
        self._others: dict[str, tuple[int, int, int]] = {}  # files that match the pattern but are not databases
        self._links: set[str] = set()  # reported ones
        self._limiter = trio.CapacityLimiter(1)
        self._watcher = trio.CapacityLimiter(1)
        self._notify: RustNotify | None = None
        self._logged = ""

    async def scan(self, known: Collection[Path]) -> set[Path]:
        """Return the paths of the present databases. Files in `known` are not opened. Raises `OSError`."""
        return await trio.to_thread.run_sync(self._scan, frozenset(map(str, known)), limiter=self._limiter)

    async def until_changed(self) -> None:
        """Return when a database may have appeared or vanished, at the latest after `RESCAN_INTERVAL_S`."""
        stop = threading.Event()
        try:
            await trio.to_thread.run_sync(self._watch, stop, limiter=self._watcher, abandon_on_cancel=True)
            return
        except Exception as exc:  # the watcher's error classes are not public
            self._notify = None
            if str(exc) != self._logged:
                self._logged = str(exc)
                log.warning("cannot watch %s: %s; scanning it every %.0f s", self.target.path, exc, RESCAN_INTERVAL_S)
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
                            log.debug("cannot read the directory %s: %s", entry.path, exc)
                elif fnmatch.fnmatchcase(entry.name, self.target.pattern):
                    if entry.is_symlink():
                        self._report_link(entry)
                    else:
                        yield entry.path

    def _report_link(self, entry: os.DirEntry[str]) -> None:
        """Log once that a link leads to a database outside the directory."""
        with contextlib.suppress(OSError, RuntimeError):
            real = Path(entry.path).resolve(strict=True)
            if entry.path in self._links or real.is_relative_to(self.target.path.resolve()):
                return
            if looks_like_database(real):
                self._links.add(entry.path)
                log.warning(
                    "%s is a link to %s outside %s: it is not replicated; replicate it as a database of its own",
                    printable(Path(entry.path)), printable(real), printable(self.target.path),
                )  # fmt: skip

    def _is_database(self, path: str, others: dict[str, tuple[int, int, int]]) -> bool:
        try:
            status = os.stat(path)  # noqa: PTH116 - faster, for thousands of files
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._others.get(path) != identity and looks_like_database(Path(path)):
                return True
        except FileNotFoundError:
            return False
        except OSError:  # reported when the database is opened
            return True
        others[path] = identity
        return False

    def _watch(self, stop: threading.Event) -> None:
        """Wait for a relevant change, for `stop`, or until the next scan is due. Blocks."""
        from watchfiles._rust_notify import RustNotify  # not every writer follows a directory

        if self._notify is None:  # scan at once: changes up to now are not reported
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
    """A path as text for a log, with undecodable bytes escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _is_own(name: str) -> bool:
    """True for the companion files of a database and for the state directory of a writer."""
    if name == DIRECTORY_STATE or name.endswith(_COMPANIONS):
        return True
    return name.startswith(".") and name.endswith(_STATE_SUFFIXES)
