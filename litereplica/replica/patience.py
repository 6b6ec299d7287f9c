"""Default times that options of the mount replace. Imports nothing, so that the command line may."""

from __future__ import annotations

MAX_INTERVAL_S = 30.0
"""Longest pause between polls: at S3's list prices 3.5 cents a month."""

READ_TIMEOUT_S = 30.0
"""How long one read waits at most. The kernel asks once more for what its own read-ahead did not get, but by then the
outage is declared."""
