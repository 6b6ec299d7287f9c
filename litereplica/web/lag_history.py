"""The lag of each database in the last hour, sampled at intervals; and the last lines of the log that warn.

A lag of 0 is not stored, so the memory follows the trouble, not the number of databases.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from litereplica.times import format_time

INTERVAL_S = 10.0
"""Between samples: two pixels of a chart that shows an hour."""
SAMPLES = 360
"""An hour."""
MAX_LINES = 200
MAX_LINE = 1000
"""Lines of the log that are kept, and characters of one."""


class LagHistory:
    """Lag by `db_path`, and the worst of all. Call `sample` once in `INTERVAL_S`."""

    def __init__(self) -> None:
        self._taken = 0
        self._by_path: dict[str, deque[tuple[int, int]]] = {}
        self._worst: deque[int] = deque(maxlen=SAMPLES)

    def sample(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Record the lag of this moment."""
        lags = {record["db_path"]: record.get("lag_ms", 0) for record in records}
        self._taken += 1
        self._worst.append(max(lags.values(), default=0))
        for path, lag_ms in lags.items():
            if lag_ms:
                self._by_path.setdefault(path, deque(maxlen=SAMPLES)).append((self._taken, lag_ms))
        for path, lags_of_one in list(self._by_path.items()):
            while lags_of_one and lags_of_one[0][0] <= self._taken - SAMPLES:
                lags_of_one.popleft()
            if not lags_of_one:
                del self._by_path[path]

    @property
    def worst_ms(self) -> list[int]:
        """The largest lag of all databases in each sample, the newest last."""
        return list(self._worst)

    def of(self, path: str) -> list[list[int]]:
        """Return the samples of a database in which it lagged: how many samples ago, and milliseconds."""
        return [[self._taken - at, lag_ms] for at, lag_ms in self._by_path.get(path, ())]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log."""

    time_ms: int
    level: str
    text: str

    def record(self) -> dict[str, str]:
        """Return its JSON object."""
        return {"timestamp": format_time(self.time_ms), "level": self.level, "text": self.text}


class LastLines(logging.Handler):
    """Keeps the last lines of the log at level WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[Line] = deque(maxlen=MAX_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        try:
            text = record.getMessage()[:MAX_LINE]
        except Exception:  # as logging itself does with arguments that do not fit
            self.handleError(record)
            return
        self.lines.append(Line(int(record.created * 1000), record.levelname, text))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the lines of this package during the block."""
        logger = logging.getLogger("litereplica")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
