"""Log lines about lag, at a bounded rate.

A database for which the store is behind by `FIRST_S` is logged, and logged again each time the lag has doubled. When
the store has caught up, one line says so. With several databases the line names the worst and counts the others. One
of which nothing is known, since it could not be opened, is left out: the log has why.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from litereplica.writer.fleet.statistics import DatabaseStatistics, State

FIRST_S = 30.0
"""By then a retry, a slow upload or a large transaction is over."""
LOOK_INTERVAL_S = 5.0
"""Between checks, which make no request."""
ENDED = frozenset({State.GONE, State.STOPPED})


class LagLog:
    """Decides which lag is logged. Call `line` once in `LOOK_INTERVAL_S`."""

    def __init__(self) -> None:
        self._next_s = FIRST_S
        self._said: frozenset[Path] = frozenset()

    def line(self, databases: Sequence[DatabaseStatistics]) -> tuple[int, str] | None:
        """Return the log level and the line to log now, or None."""
        behind = [each for each in databases if each.behind_s >= FIRST_S and (each.txid or each.unpublished_bytes)]
        if not behind:
            self._next_s = FIRST_S
            left = [each for each in databases if each.path in self._said and each.state not in ENDED]
            if any(each.behind_s for each in left):
                return None
            self._said = frozenset()
            return (logging.INFO, "the store is up to date again") if left else None
        worst = max(behind, key=lambda each: each.behind_s)
        if worst.behind_s < self._next_s:
            return None
        self._next_s = 2 * worst.behind_s
        self._said |= {each.path for each in behind}
        what = f"the store is {worst.behind_s:.0f} s behind {worst.path}"
        what += f", by {worst.unpublished_bytes} bytes of its WAL" if worst.unpublished_bytes else ""
        if len(behind) > 1:
            what += "; another one lags, too" if len(behind) == 2 else f"; {len(behind) - 1} others lag, too"
        return logging.WARNING, what
