"""The processes of a soak test that are watched, killed and started again: the writer, the mounts and the readers."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from litereplica.testing.mounts import MountedReplica, MountError, litereplica_binary
from litereplica.testing.processes import Child, running_module
from soaking.reader import Seen

END_S = 120.0
RESTART_S = 180.0
DEATH_NOTICED_S = 2.0


@dataclass(frozen=True, slots=True)
class Requests:
    """GETs with a body that a mount made, by purpose, and the TXIDs that it applied."""

    gets: Counter[str] = field(default_factory=Counter)
    applied: int = 0

    def __add__(self, other: Requests) -> Requests:
        return Requests(self.gets + other.gets, self.applied + other.applied)

    @property
    def to_follow(self) -> float:
        """GETs in order to start and to follow, for each file applied."""
        return (self.gets["open"] + self.gets["poll"]) / max(1, self.applied)


class Writer:
    """`litereplica replicate` with a configuration, which can be killed and started again."""

    def __init__(self, configuration: Path, environment: dict[str, str], log: Path) -> None:
        self._command = [litereplica_binary(), "replicate", "--config", str(configuration)]
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start; returns at once."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def kill_and_restart(self, down_s: float) -> None:
        """SIGKILL, and start again after a while."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        time.sleep(down_s)
        self.start()

    def end(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return -signal.SIGKILL

    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process is not None and self._process.poll() is not None


class Mount:
    """A mount, and what its lives have asked of the store."""

    def __init__(self, mounted: MountedReplica) -> None:
        self.mounted = mounted
        self.requests = Requests()
        self._first_txid = 0

    def begun(self) -> None:
        """A life begins."""
        self._first_txid = self.mounted.pos().txid

    def note_requests(self) -> None:
        """Before a life ends: what it asked for counts."""
        with contextlib.suppress(OSError, ValueError):
            ledger = self.mounted.status()["replica"]["ledger"]
            gets = {purpose: costs["by_operation"].get("get") for purpose, costs in ledger.items()}
            bodies = {name: each["requests"] - sum(each["errors"].values()) for name, each in gets.items() if each}
            self.requests += Requests(Counter(bodies), self.mounted.pos().txid - self._first_txid)

    def kill_and_restart(self, down_s: float) -> None:
        """SIGKILL, and mount again after a while, although the store may fail meanwhile."""
        self.note_requests()
        self.mounted.kill()
        time.sleep(down_s)
        deadline = time.monotonic() + RESTART_S
        while True:
            try:
                self.mounted.start()
            except (MountError, subprocess.TimeoutExpired, OSError):
                if time.monotonic() > deadline:
                    raise
            else:
                self.begun()
                return


class Client:
    """A reader, started on entering; one that a signal has killed can be started again."""

    def __init__(self, kind: str, mount: str, database: Path, notes: Path, seed: int) -> None:
        self._seen = Seen(kind, mount)
        self._notes = notes
        self._arguments = ("soaking.reader", kind, str(database), str(notes), str(seed))
        self._deaths: list[tuple[float, str]] = []
        self._running = contextlib.ExitStack()
        self._child: Child

    def __enter__(self) -> Client:
        self._child = self._running.enter_context(running_module(*self._arguments))
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def restart_if_killed(self) -> None:
        """Note the signal that killed it, if one has, and start it again."""
        code = self._child.process.poll()
        if code is not None:
            self._deaths.append(
                (time.time(), f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}")
            )
            self._running.close()
            self.__enter__()

    def end(self) -> Seen:
        """What it saw. It ends with its transaction, which can take as long as a read of a silent store."""
        self.restart_if_killed()
        assert self._child.process.stdin is not None
        self._child.process.stdin.close()
        self._child.process.wait(END_S)
        self._seen.read(self._notes)
        self._seen.failures += [(at - DEATH_NOTICED_S, at, what) for at, what in self._deaths]
        return self._seen
