"""Finds clients that do not take part in the WAL protocol, and keeps them from reading.

The base moves as far as the read marks allow that clients hold with locks. A client whose locks are not here, or that
reads the marks from a copy of `-shm`, would see it move within a transaction. Three guards keep such clients out:

- A client that cannot see the daemon's lock on the DMS byte of `-shm`, because a stacked file system (overlayfs,
  bindfs) keeps locks to itself, does not trust the wal-index. It recovers the WAL instead, and the virtual WAL's
  header refuses that (`format/wal.py`, `refused_header`): it cannot open the database at all.
- A client that trusts the wal-index holds a lock on the DMS byte, and has `-shm` mapped. A process that has for
  `GRACE_S` had the database open together with `-wal` or `-shm`, or locked, but without the one or the other, gets
  ENOLCK from opens and reads of the database and of `-wal`. It has lost its locks (it closed another descriptor of
  `-shm`, or is a child of the process that locked), passes on the requests of others (bindfs with lock forwarding),
  sees only the database file (a bind mount of that file), or is an engine that does not lock at all. Once it has lock
  and mapping, or has closed the files, it may read.
- File systems that are mounted over ours are named in the log and in the status (`mountpoint.stacked_on`).

Locks and mappings are in /proc. Processes outside of our pid namespace are not there, and their requests carry no pid:
of them nothing is known, and they are left alone. Pages that the kernel has cached are read without us.

https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from litereplica.format import walindex
from litereplica.fuse import mountpoint
from litereplica.fuse.kernel_cache import LiveFile
from litereplica.times import format_time, wall_clock_ms
from litereplica.types import TXID

log = logging.getLogger(__name__)

GRACE_S = 2.0
"""How long a process may have the files open before its locks are looked at: a client locks and maps at once."""

CHECK_INTERVAL_S = 1.0
"""How often the locks of processes that have the files open are read. One that lacks them twice in a row is refused."""

HELP = "docs/CLIENTS.md"

_LOCKS = Path("/proc/locks")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Reader:
    """A read transaction: its process, the read mark that it holds, the TXID it sees, and its least age in seconds."""

    client: mountpoint.Client
    mark: int
    txid: TXID
    age_s: float

    def record(self) -> dict[str, object]:
        """Return its JSON object."""
        since = format_time(wall_clock_ms() - round(self.age_s * 1000))
        return {"pid": self.client.pid, "command": self.client.command, "txid": f"{self.txid:016x}", "since": since}


@dataclass(frozen=True, slots=True)
class _Open:
    """A file that a process has open since a time of `clock`."""

    file: LiveFile
    process: int
    since: float


@dataclass(frozen=True, slots=True)
class _Lock:
    """A lock of a process on some bytes."""

    process: int
    bytes: range


class ProcessFiles:
    """Locks and mappings of all processes, as /proc has them. Many databases may share one reading of it."""

    def __init__(self) -> None:
        self._locks: dict[str, list[_Lock]] | None = None
        self._locks_at = -math.inf
        self._mapped: dict[int, tuple[float, frozenset[str]]] = {}
        self._is_blind = False  # and it was said
        self._is_one_look = False

    @contextmanager
    def one_look(self) -> Iterator[None]:
        """Read the locks once, for all who want them during the block, which does not wait."""
        self.locks(max_age_s=0.0)
        self._is_one_look = True
        try:
            yield
        finally:
            self._is_one_look = False

    def locks(self, *, max_age_s: float) -> Mapping[str, Sequence[_Lock]] | None:
        """Return the POSIX locks by `device:inode`. Those of clients are, the daemon's own are not. None: not known."""
        now = trio.current_time()
        if now - self._locks_at > max_age_s and not self._is_one_look:
            self._locks, self._locks_at = self._read_locks(), now
        return self._locks

    def mapped(self, process: int, *, max_age_s: float) -> frozenset[str] | None:
        """Return the files, as `device inode`, that a process has mapped; None if that cannot be known."""
        now = trio.current_time()
        found = self._mapped.get(process)
        if found is None or now - found[0] > max_age_s:
            try:
                lines = (_PROC / str(process) / "maps").read_text(errors="replace").splitlines()
            except OSError:
                return None
            found = (now, frozenset(" ".join(line.split(None, 5)[3:5]) for line in lines))
            self._mapped = {each: read for each, read in self._mapped.items() if now - read[0] <= CHECK_INTERVAL_S}
            self._mapped[process] = found
        return found[1]

    def _read_locks(self) -> dict[str, list[_Lock]] | None:
        try:
            lines = _LOCKS.read_text().splitlines()
        except OSError as exc:
            if not self._is_blind:
                log.warning("clients without SQLite's locks cannot be found: %s: %s", _LOCKS, exc.strerror)
            self._is_blind = True
            return None
        found: dict[str, list[_Lock]] = {}
        for line in lines:
            fields = line.split()  # "1: POSIX ADVISORY READ 4711 00:27:4 123 128"; of a process that waits, one more
            if len(fields) == 8 and fields[1] == "POSIX":
                last = sys.maxsize if fields[7] == "EOF" else int(fields[7])
                found.setdefault(fields[5], []).append(_Lock(int(fields[4]), range(int(fields[6]), last + 1)))
        return found


class ClientLocks:
    """The clients of one live database, by their open files. `inodes` are those of its files."""

    def __init__(self, inodes: Mapping[LiveFile, int], processes: ProcessFiles | None = None) -> None:
        self._inodes = inodes
        self._processes_files = processes or ProcessFiles()
        self._device = ""  # as /proc has it
        self._opens: dict[int, _Open] = {}
        self._without: dict[int, float] = {}  # processes without lock or mapping, since when
        self._mapped: set[int] = set()  # processes that have `-shm` mapped
        self._refused: dict[int, str] = {}  # and those that may not read
        self._reading: dict[tuple[int, int], float] = {}  # processes and the read marks that they hold, since when

    def statistics(self) -> list[str]:
        """Return the processes that may not read, as `command (pid …)`."""
        return list(self._refused.values())

    def readers(self, txid_of: Callable[[int], TXID]) -> list[Reader]:
        """Return the read transactions that are open, by `txid_of` each read mark."""
        locks = self._processes_files.locks(max_age_s=0.0)
        if locks is not None:
            self._note_readers(self._locks_on(LiveFile.SHM, locks))
        now = trio.current_time()
        return [
            Reader(mountpoint.client(process), mark, txid_of(mark), now - since)
            for (process, mark), since in self._reading.items()
        ]

    def _note_readers(self, locks: Sequence[_Lock]) -> None:
        now, marks = trio.current_time(), range(walindex.READ_MARKS)
        held = {(lock.process, mark) for lock in locks for mark in marks if walindex.LOCK_READ + mark in lock.bytes}
        self._reading = {each: self._reading.get(each, now) for each in sorted(held)}

    async def run(self, device: str) -> None:
        """Check the clients of the file system `device` (`major:minor`) until cancelled."""
        major, _, minor = device.partition(":")
        self._device = f"{int(major):02x}:{int(minor):02x}"
        while True:
            await trio.sleep(CHECK_INTERVAL_S)
            self.check(max_age_s=CHECK_INTERVAL_S / 2)

    def opened(self, handle: int, file: LiveFile, thread_id: int) -> None:
        """Note that a thread has opened a file."""
        self._opens[handle] = _Open(file, _process_of(thread_id), trio.current_time())

    def closed(self, handle: int) -> None:
        """Note that a handle was closed."""
        self._opens.pop(handle, None)

    def may_open(self, thread_id: int) -> bool:
        """True unless this thread's process does not take part in the locking."""
        return not self._refused or self._may_read(_process_of(thread_id))

    def may_read(self, handle: int) -> bool:
        """True unless the process that opened the handle does not take part in the locking."""
        if not self._refused:
            return True
        opened = self._opens.get(handle)
        return opened is None or self._may_read(opened.process)

    def _may_read(self, process: int) -> bool:
        if process in self._refused:
            self.check()  # it may have locked meanwhile
        return process not in self._refused

    def check(self, *, max_age_s: float = 0.0) -> None:
        """Compare the open files with the locks, which were read no longer ago than this."""
        now = trio.current_time()
        database = self._processes(LiveFile.DATABASE, now=now)
        self._mapped &= database
        lacking = set[int]()
        locks = self._processes_files.locks(max_age_s=max_age_s) if database else None
        if locks is not None:
            shm = self._locks_on(LiveFile.SHM, locks)
            self._note_readers(shm)
            holders = _holders(self._locks_on(LiveFile.DATABASE, locks))
            using = self._processes(LiveFile.WAL, LiveFile.SHM, now=now) | holders
            linked = _holders(shm, byte=walindex.LOCK_DMS)
            lacking = {
                each for each in database & using if each not in linked or not self._maps_shm(each, max_age_s=max_age_s)
            }
        self._without = {process: self._without.get(process, now) for process in lacking}
        refused = {process for process, since in self._without.items() if now - since >= CHECK_INTERVAL_S}
        for process in refused - self._refused.keys():
            client = mountpoint.client(process)
            self._refused[process] = str(client)
            log.warning(
                "reads of %s fail: it has the database open without SQLite's locks or shared memory, so it could see"
                " a mixture of transactions; see %s",
                client,
                HELP,
            )
        for process in self._refused.keys() - refused:
            log.info("%s takes part in SQLite's locking now or has closed the database", self._refused.pop(process))

    def _processes(self, *files: LiveFile, now: float) -> set[int]:
        """Return the known processes that have had any of these files open for a while."""
        opens = self._opens.values()
        return {each.process for each in opens if each.file in files and now - each.since >= GRACE_S} - {0}

    def _locks_on(self, file: LiveFile, locks: Mapping[str, Sequence[_Lock]]) -> Sequence[_Lock]:
        return locks.get(f"{self._device}:{self._inodes[file]}", ())

    def _maps_shm(self, process: int, *, max_age_s: float) -> bool:
        """True if a process has `-shm` mapped, or if that cannot be known."""
        if process not in self._mapped:
            mapped = self._processes_files.mapped(process, max_age_s=max_age_s)
            if mapped is None:
                return True
            if f"{self._device} {self._inodes[LiveFile.SHM]}" not in mapped:
                return False
            self._mapped.add(process)
        return True


def _holders(locks: Sequence[_Lock], *, byte: int | None = None) -> set[int]:
    """Return the processes that have a lock, on this byte if given."""
    return {lock.process for lock in locks if byte is None or byte in lock.bytes}


def _process_of(thread_id: int) -> int:
    """Return the process of a thread, 0 if that is unknown."""
    try:
        status = (_PROC / str(thread_id) / "status").read_text(errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("Tgid:")), 0)
