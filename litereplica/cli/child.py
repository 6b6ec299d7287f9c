"""The program that `replicate --exec` runs: started, sent the signals that we get, and waited for.

It shares our terminal, our standard streams and our process group. Signals that a terminal sends to the whole group
reach it without us, and are not sent twice.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence

import trio

from litereplica.errors import UsageError

log = logging.getLogger(__name__)

END_LIMIT_S = 10.0
"""For a program that is ended because replication cannot go on; service managers wait for as long and more."""
SIGNALLED = 128
"""What a shell adds to the number of the signal that ended a program."""

_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


class Child:
    """A program that runs. Obtain one from `start_child`."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self._name = name
        self._process = process
        self._sent: set[int] = set()

    @property
    def runs(self) -> bool:
        """Has it not ended?"""
        return self._process.poll() is None

    def pass_on(self, number: int) -> None:
        """Send a signal that we got, unless the terminal has sent it already."""
        self._sent.add(number)
        if self.runs and not (number in _FROM_TERMINAL and _in_foreground()):
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end, and return the exit code that is to be ours.

        That is its own; 0 when it was ended by a signal that we passed on, as ours is when we get one; and else, as
        in shells, 128 and the number of the signal.
        """
        code = await self._process.wait()
        log.info("%s has ended %s", self._name, f"with exit code {code}" if code >= 0 else f"by {_signal_name(-code)}")
        if code >= 0:
            return code
        return 0 if -code in self._sent else SIGNALLED - code

    async def end(self) -> None:
        """End it: asked first, then forced."""
        with trio.CancelScope(shield=True):
            if self.runs:
                log.warning("ending %s", self._name)
                self._process.terminate()
                with trio.move_on_after(END_LIMIT_S):
                    await self._process.wait()
            if self.runs:
                log.warning("%s did not end in %.0f s: it is killed", self._name, END_LIMIT_S)
                self._process.kill()
                await self._process.wait()


def check_program(command: Sequence[str]) -> None:
    """Raise `UsageError` unless there is such a program."""
    if shutil.which(command[0]) is None:
        raise UsageError(
            f"cannot run {command[0]!r}: there is no such program", hint="name its path, or see PATH and its rights"
        )


async def start_child(command: Sequence[str]) -> Child:
    """Start a program. Raises `UsageError`."""
    try:
        process = await trio.lowlevel.open_process(list(command), restore_signals=True)
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise UsageError(f"cannot run {command[0]!r}: {reason}", hint="see --exec, or exec in the file") from exc
    log.info("started %s, process %d", command[0], process.pid)
    return Child(command[0], process)


def _in_foreground() -> bool:
    """Does the terminal send its signals to our process group, and so to the program's?"""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
