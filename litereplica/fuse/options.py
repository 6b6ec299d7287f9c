"""What the user wants of a mount. Imports nothing heavy: the command that starts a daemon only passes it on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from litereplica.control.address import Listen
from litereplica.replica.patience import MAX_INTERVAL_S, READ_TIMEOUT_S

REQUEST_MARGIN_S = 0.1
"""A read that gets no page fails by itself, and says why, before its request does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What is mounted, where and how."""

    url: str
    path: Path
    name: str
    poll_interval_s: float
    poll_interval_max_s: float = MAX_INTERVAL_S  # while nobody has a file open
    allow_other: bool = False
    hydrate: bool = False
    hydrate_limit: float = math.inf  # bytes of a database that is hydrated
    hydrate_rate: float | None = None  # bytes per second
    max_staleness_s: float | None = None
    read_timeout_s: float = READ_TIMEOUT_S  # of one request of the kernel
    cache_dir: Path | None = None
    log_file: Path | None = None
    listen: Listen | None = None  # where metrics are served

    @property
    def request_limit_s(self) -> float:
        """How long a request of the kernel takes at most. What a read waits for comes to an end before."""
        return self.read_timeout_s + REQUEST_MARGIN_S
