"""Runs a function in a background process, and waits until it reports that it is ready.

The child leaves the session and the terminal, so it outlives both. Errors before it is ready are raised in the parent;
later ones go to its log.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from litereplica.control.manager_environment import VARIABLES
from litereplica.errors import ExitCode, LiteReplicaError

log = logging.getLogger(__name__)

Ready = Callable[[str], None]
"""Says that a process is ready, with a line for the user."""

END_LIMIT_S = 3.0
"""Time that a process that is not ready has to end after Ctrl-C."""

_CTRL_C = {signal.SIGINT}
_PR_SET_PDEATHSIG = 1


class BackgroundError(LiteReplicaError):
    """The error that ended a child before it was ready."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = ExitCode(exit_code)


def run_in_background(work: Callable[[Ready], None]) -> str:
    """Run `work` in a new process, and return what it has called its argument with.

    Until then the new process ends when this one does, for whatever reason. Once it is ready, Ctrl-C is ignored, since
    this process is about to end. Must be called before any thread is started.

    Raises:
        BackgroundError: `work` failed before it was ready.
        KeyboardInterrupt: on Ctrl-C, after ending the new process; the caller cleans up after it.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _CTRL_C)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _child(work, write_end, parent)
    try:
        os.close(write_end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _CTRL_C)
        with open(read_end, "rb") as answer:  # noqa: PTH123 - a descriptor
            text = answer.read()
        signal.pthread_sigmask(signal.SIG_BLOCK, _CTRL_C)
    except KeyboardInterrupt:
        signal.pthread_sigmask(signal.SIG_BLOCK, _CTRL_C)
        _end(pid)  # it has its own session, so the terminal's Ctrl-C does not reach it
        raise
    if not text:
        _, status = os.waitpid(pid, 0)
        raise BackgroundError(f"the background process ended with status {status} before it was ready", ExitCode.BUG)
    code, line = json.loads(text)
    if code != ExitCode.OK:
        os.waitpid(pid, 0)
        raise BackgroundError(line, code)
    return str(line)


def _end(pid: int) -> None:
    """End the new process: in an orderly way if it does so soon, since a program that mounts for it may be running."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        if not select.select([pidfd], [], [], END_LIMIT_S)[0]:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


def _child(work: Callable[[Ready], None], write_end: int, parent: int) -> NoReturn:
    from litereplica.cli.main import outcome

    _end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        os._exit(ExitCode.BUG)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _CTRL_C)
    os.setsid()
    os.chdir("/")
    for name in VARIABLES:  # they were for the parent, which ends
        os.environ.pop(name, None)
    answered = False

    def answer(code: int, line: str) -> None:
        nonlocal answered
        if not answered:
            answered = True
            os.write(write_end, json.dumps([code, line]).encode())
            os.close(write_end)

    def ready(line: str) -> None:
        _leave_terminal()
        _end_with_parent(0)
        answer(ExitCode.OK, line)

    code = int(ExitCode.OK)
    try:
        work(ready)
    except BaseException as exc:
        code, line = outcome(exc)
        log.error("%s", line or f"ended by {type(exc).__name__}")
        answer(code, line)
    finally:
        logging.shutdown()
        os._exit(code)


def _end_with_parent(number: int) -> None:
    """Let the kernel send this process a signal when its parent ends; 0: none."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _leave_terminal() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
