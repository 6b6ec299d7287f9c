"""Runs the program of `replicate --exec`: starts it, passes signals on to it, and waits for its exit code.

It shares the terminal, the standard streams and the process group of this process. Signals that a terminal sends to
the whole group are not passed on, because the program has received them already.

If credentials are withheld, it gets an environment without them, and the kernel shows it neither the environment nor
the memory of this process, although both may run as the same user. It can still read the files that this user can.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence

import trio

from litereplica.errors import UsageError

log = logging.getLogger(__name__)

END_LIMIT_S = 10.0
"""Time that a program gets to exit after SIGTERM if replication fails; service managers wait at least as long."""
SIGNALLED = 128
"""Added to a signal's number, this is the exit code of a program that the signal ended, as in shells."""

_PR_SET_DUMPABLE = 4
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


class Child:
    """A running program. Obtain one from `start_child`."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self._name = name
        self._process = process
        self._sent: set[int] = set()

    @property
    def runs(self) -> bool:
        """True until the program exits."""
        return self._process.poll() is None

    def pass_on(self, number: int) -> None:
        """Send a signal that this process received, unless the terminal has already sent it to the program."""
        self._sent.add(number)
        if self.runs and not (number in _FROM_TERMINAL and _in_foreground()):
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait until the program exits, and return the exit code for this process.

        This is the program's own exit code; 0 if a signal that was passed on ended it; 128 plus the signal's number if
        another signal ended it.
        """
        code = await self._process.wait()
        log.info("%s has ended %s", self._name, f"with exit code {code}" if code >= 0 else f"by {_signal_name(-code)}")
        if code >= 0:
            return code
        return 0 if -code in self._sent else SIGNALLED - code

    async def end(self) -> None:
        """End the program if it runs: send SIGTERM, and SIGKILL after `END_LIMIT_S`."""
        with trio.CancelScope(shield=True):
            if self.runs:
                log.warning("ending %s", self._name)
                self._process.terminate()
                with trio.move_on_after(END_LIMIT_S):
                    await self._process.wait()
            if self.runs:
                log.warning("%s did not exit within %.0f s: killing it", self._name, END_LIMIT_S)
                self._process.kill()
                await self._process.wait()


def check_program(command: Sequence[str]) -> None:
    """Raise `UsageError` unless the program exists."""
    if shutil.which(command[0]) is None:
        raise UsageError(
            f"cannot run {command[0]!r}: no such program", hint="give its path, or check PATH and its permissions"
        )


def hide_process() -> None:
    """Keep other processes of this user out of this process's memory and environment; it leaves no core dump then."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


async def start_child(command: Sequence[str], environment: Mapping[str, str]) -> Child:
    """Start a program. Raises `UsageError` if it cannot be started."""
    try:
        process = await trio.lowlevel.open_process(list(command), env=environment, restore_signals=True)
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise UsageError(f"cannot run {command[0]!r}: {reason}", hint="see --exec, or exec in the file") from exc
    log.info("started %s, process %d", command[0], process.pid)
    return Child(command[0], process)


def _in_foreground() -> bool:
    """True if the terminal sends its signals to this process group, to which the program belongs."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
