"""What happens to the daemons and the store of a soak test, at random, each trouble in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from litereplica.testing.s3_proxy import Exchange, Misbehaviour, S3Proxy, Trouble

CUT_EVERY_S = (15.0, 45.0)
SHORT_CUT_S = (0.3, 10.0)
LONG_CUT_S = (35.0, 50.0)
"""Longer than the read timeout of a mount, which is 30 s."""
LONG_CUTS = 1 / 10
KILL_EVERY_S = (45.0, 150.0)
DOWN_S = (0.0, 3.0)
DROP_EVERY_S = (0.5, 3.0)
FAILING_REQUESTS = 1 / 200
"""Between the cuts, so many requests fail."""


@dataclass(frozen=True, slots=True)
class Window:
    """A time of trouble, in Unix time; `what` is `cut`, or the name of the daemon that was killed."""

    what: str
    begin: float
    end: float


class Chaos:
    """Troubles from `start` to `stop`. `windows` has those that are over."""

    def __init__(self, proxy: S3Proxy, seed: int) -> None:
        self.windows: list[Window] = []
        self.drops = 0
        self._proxy = proxy
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, kills: Mapping[str, Callable[[float], None]], databases: Sequence[Path]) -> None:
        """`kills` kill a daemon by its name and start it again after so many seconds; `databases` are on the mounts."""
        self._proxy.plan = self._now_and_then
        self._every(CUT_EVERY_S, self._cut)
        self._every(DROP_EVERY_S, lambda: self._drop(databases))
        for name, kill in kills.items():
            self._every(KILL_EVERY_S, lambda name=name, kill=kill: self._kill(name, kill))  # type: ignore[misc]

    def stop(self) -> None:
        """Return when all is as it should be again."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._proxy.plan = lambda exchange: None

    def _every(self, pause_s: tuple[float, float], trouble: Callable[[], None]) -> None:
        def run() -> None:
            while not self._stop.wait(self._random.uniform(*pause_s)):
                trouble()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _now_and_then(self, exchange: Exchange) -> Misbehaviour | None:
        if self._random.random() > FAILING_REQUESTS:
            return None
        trouble = self._random.choice((Trouble.RESET, Trouble.STATUS))
        return Misbehaviour(trouble, effect=self._random.random() < 0.5)

    def _cut(self) -> None:
        begin = time.time()
        length_s = self._random.uniform(*(LONG_CUT_S if self._random.random() < LONG_CUTS else SHORT_CUT_S))
        trouble = self._random.choice((Trouble.SILENCE, Trouble.SILENCE, Trouble.RESET, Trouble.STATUS))
        end = begin + length_s
        self._proxy.plan = lambda exchange: Misbehaviour(trouble, seconds=max(0.0, end - time.time()))
        self._stop.wait(length_s)
        self._proxy.plan = self._now_and_then
        self.windows.append(Window("cut", begin, time.time()))

    def _kill(self, name: str, kill: Callable[[float], None]) -> None:
        begin = time.time()
        kill(self._random.uniform(*DOWN_S))
        self.windows.append(Window(name, begin, time.time()))

    def _drop(self, databases: Sequence[Path]) -> None:
        """The kernel forgets what it has of a mount's files; a mount that is down has none."""
        database = self._random.choice(databases)
        for path in (database, database.with_name(database.name + "-wal")):
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    self.drops += 1
                finally:
                    os.close(descriptor)
