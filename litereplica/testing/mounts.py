"""A replica mounted by the real command: its daemon, its directories, its log.

Owns what it starts: the mount is taken away and the daemon has ended when the `with` block is left, whatever happened
inside. Lines of the log at WARNING or above fail the test unless it declared them; when a test fails, the end of the
log is attached to the error.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from litereplica.format.names import parse_txid
from litereplica.fuse import mountpoint as mountpoints
from litereplica.fuse.names import STATUS_NAME
from litereplica.types import TXID, Pos

COMMAND_DEADLINE_S = 60.0
"""The first start of a busy machine imports for seconds."""
END_DEADLINE_S = 10.0
WAIT_S = 0.002
LOG_TAIL_LINES = 40

_PROBLEM = re.compile(r"^\S+ (WARNING|ERROR|CRITICAL) ")


class MountError(AssertionError):
    """The command failed, or something was not as it should be by its deadline."""


class MountedReplica:
    """`url` mounted below `directory`, with a mount point, a cache and a log of its own there.

    With an empty `name` it is a prefix, and `path` is the mount point. A second one in the same directory uses the same
    mount point, cache and log. `options` are passed to the command. `expected_problems` are regular expressions of log
    lines that the test provokes. `environment` replaces the daemon's environment. Processes of the test that have the
    database open must close it before the block is left.

    >>> with MountedReplica(f"file://{tmp_path}/replica", tmp_path / "mount") as mount:
    ...     mount.wait_for(txid)
    ...     sqlite3.connect(mount.path).execute("SELECT …")
    """

    def __init__(
        self,
        url: str,
        directory: Path,
        *,
        name: str = "app.db",
        poll_interval: str = "50ms",
        options: Sequence[str] = (),
        expected_problems: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        self.mountpoint = directory / "mnt"
        self.path = self.mountpoint / name
        self.cache = directory / "cache"
        self.log_file = directory / "mount.log"
        self._command = [litereplica_binary(), "mount", url, str(self.mountpoint)]
        self._command += ["--name", name] if name else []
        self._command += ["--poll-interval", poll_interval, "--cache-dir", str(self.cache)]
        self._command += ["--log-file", str(self.log_file), *options]
        self._expected = [re.compile(pattern) for pattern in expected_problems]
        self._environment = None if environment is None else dict(environment)
        self._log_start = 0
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The daemon, for tests that stop, continue or kill it."""
        assert self._pid is not None
        return self._pid

    @property
    def log(self) -> str:
        """What this mount has logged so far."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_file.read_bytes()[self._log_start :].decode(errors="replace")
        return ""

    def start(self) -> None:
        """Mount; returns when the database can be queried."""
        assert self._pid is None
        with contextlib.suppress(FileExistsError):  # and asks nothing of a mount whose daemon was killed
            self.mountpoint.mkdir(parents=True)
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        done = subprocess.run(
            self._command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
            env=self._environment,
            check=False,
        )
        if done.returncode != 0:
            raise MountError(f"mount: exit code {done.returncode}: {done.stderr}{self._log_tail()}")
        self._pid = self.status()["pid"]

    def status(self) -> dict[str, Any]:
        """The content of the daemon's status file, with what is in its `debug`, such as `replica`."""
        return status_in(self.mountpoint)

    def statistics(self) -> dict[str, Any]:
        """The part of `status` about the live database, such as `restarts` and `reads_database`."""
        statistics: dict[str, Any] = self.status()["mount"]
        return statistics

    def pos(self) -> Pos:
        """The position that a transaction which begins now sees, from the `-pos` file."""
        text = self.path.with_name(self.path.name + "-pos").read_text()
        txid, checksum = text.removesuffix("\n").split("/")
        return Pos(parse_txid(txid), int(checksum, 16))

    def wait_for(self, txid: TXID, *, within_s: float = 20.0) -> None:
        """Return once a transaction that begins now sees `txid` or later."""
        self.wait_until(lambda: self.pos().txid >= txid, within_s=within_s, what=f"TXID {txid}")

    def wait_until(self, condition: Callable[[], object], *, within_s: float = 20.0, what: str = "condition") -> None:
        """Return once `condition` holds; `MountError` when it does not in time."""
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise MountError(f"{what} not reached within {within_s} s: {json.dumps(self.status(), indent=1)}")
            time.sleep(WAIT_S)

    def umount(self, *, lazy: bool = False) -> None:
        """`litereplica umount`, which must succeed; without `lazy` the daemon has ended afterwards."""
        command = [litereplica_binary(), "umount", str(self.mountpoint), *(["--lazy"] if lazy else [])]
        deadline = time.monotonic() + END_DEADLINE_S
        while "is also mounted" in (done := _run(command)).stderr and time.monotonic() < deadline:
            time.sleep(WAIT_S)  # another program has just begun a mount namespace, with a copy of every mount
        if done.returncode != 0:
            raise MountError(f"umount: exit code {done.returncode}: {done.stderr}")
        if not lazy:
            self._pid = None

    def kill(self) -> None:
        """SIGKILL the daemon. The dead mount point stays, as a crash leaves it."""
        pid, self._pid = self.pid, None
        _kill(pid)

    def undeclared_problems(self) -> list[str]:
        """Lines of the log at WARNING or above that the test did not announce."""
        problems = [line for line in self.log.splitlines() if _PROBLEM.match(line)]
        return [line for line in problems if not any(pattern.search(line) for pattern in self._expected)]

    def __enter__(self) -> MountedReplica:
        try:
            self.start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        trouble = self._end_gently() if self._pid is not None else ""
        self._clean_up()
        if error is not None:
            error.add_note(f"{trouble}\n{self._log_tail()}")
            return
        if trouble:
            raise MountError(f"{trouble}\n{self._log_tail()}")
        problems = "\n".join(self.undeclared_problems())
        if problems:
            raise MountError(f"the mount logged:\n{problems}\n{self._log_tail()}")

    def _end_gently(self) -> str:
        """Unmount as a user does; what went wrong, or nothing."""
        try:
            self.umount()
        except (MountError, subprocess.TimeoutExpired) as exc:
            return str(exc)
        return ""

    def _clean_up(self) -> None:
        """Leave neither a mount nor a daemon behind."""
        if self._pid is not None:
            pid, self._pid = self._pid, None
            _kill(pid)
        while mountpoints.mount_at(mountpoints.absolute(self.mountpoint)) is not None:
            done = _run(["fusermount3", "-uz", str(self.mountpoint)])
            if done.returncode != 0:
                raise MountError(f"fusermount3: {done.stderr}")

    def _log_tail(self) -> str:
        lines = self.log.splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"--- the end of {self.log_file} ---", *lines])


def litereplica_binary() -> str:
    """The console script of this environment."""
    return str(Path(sys.executable).with_name("litereplica"))


def wait_for_end(pid: int, *, within_s: float = END_DEADLINE_S) -> None:
    """Return once a process that is not ours to reap has ended; `MountError` when it has not in time."""
    deadline = time.monotonic() + within_s
    while _runs(pid):
        if time.monotonic() > deadline:
            raise MountError(f"process {pid} has not ended within {within_s} s")
        time.sleep(WAIT_S)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def _runs(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, check=False
    )


def status_in(directory: Path) -> dict[str, Any]:
    """The content of the status file in a directory of a mount, with what is in its `debug` at the top."""
    read: dict[str, Any] = json.loads((directory / STATUS_NAME).read_bytes())
    return {**read, **read["debug"]}
