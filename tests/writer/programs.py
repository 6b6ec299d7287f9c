"""`litereplica replicate` as processes, with limits of their own, for tests that suspend and kill them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

from litereplica.ltxstore.lease import TERM_MS
from tests.helpers.waiting import wait_until

DEADLINE_S = 20.0

RUN = (
    "import litereplica.ltxstore.lease as l, litereplica.writer.publish.lease_keeper as t, sys; "
    "l.TERM_MS, l.RENEW_BEFORE_MS, t.STAND_BY_INTERVAL_S = {}; "
    "from litereplica.cli.main import run; sys.exit(run(sys.argv[1:]))"
)
SHORT_TERM_S = 3.0
SHORT = RUN.format((round(SHORT_TERM_S * 1000), 2000, 0.2))
"""The program, with a standby that need not wait for half a minute."""
USUAL = RUN.format((TERM_MS, 20_000, 5.0))


class Process:
    """`litereplica replicate` with `program`'s limits; its stderr goes to a file."""

    def __init__(
        self,
        database: Path,
        url: str,
        *options: str,
        program: str = USUAL,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = database.parent.resolve() / f"{database.name}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", program),
                    *("replicate", str(database), url, "--sync-interval", "10ms", *options),
                ],
                stderr=log,
                env=environment,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def error(self) -> str:
        """The last line that it has written."""
        return self.log.read_text().splitlines()[-1]

    def has_said(self, text: str) -> bool:
        return text in self.log.read_text()

    async def until_said(self, text: str) -> None:
        """Raises `AssertionError` with its log when it ends before it has said that, or takes too long."""
        with trio.move_on_after(DEADLINE_S):
            await wait_until(lambda: self.has_said(text) or not self.runs, within_s=2 * DEADLINE_S)
        assert self.has_said(text), self.log.read_text()

    async def ended(self) -> int:
        """Its exit code, when it ends by itself."""
        await wait_until(lambda: not self.runs, within_s=DEADLINE_S)
        return self._process.returncode

    async def stop(self) -> int:
        self._process.terminate()
        return await self.ended()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def processes() -> Iterator[list[Process]]:
    """Those added to the list are killed at the end."""
    started: list[Process] = []
    try:
        yield started
    finally:
        for process in started:
            process.kill()
