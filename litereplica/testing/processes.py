"""Modules of ours that run in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

END_DEADLINE_S = 30.0


class Child:
    """A module that printed `ready`, and talks in lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._stdin: IO[str] = process.stdin
        self._stdout: IO[str] = process.stdout

    def say(self, line: str) -> None:
        """Send a line to the process."""
        print(line, file=self._stdin, flush=True)

    def hear(self) -> str:
        """The next line; empty when the process has ended."""
        return self._stdout.readline()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()


@contextmanager
def running_module(*arguments: str) -> Iterator[Child]:
    """`python -m ARGUMENTS`, once it has said that it is ready; its stdin is closed and its end awaited on leaving."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        child = Child(process)
        try:
            assert child.hear() == "ready\n"
            yield child
        except BaseException:
            process.kill()
            raise
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
