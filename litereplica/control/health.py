"""The rule of health: what makes a record of a database unhealthy. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NOT_RUNNING = "not running"
"""The state of a configured database that no writer replicates."""
SICK_STATES = frozenset({NOT_RUNNING, "failed", "stopped"})
ENDED_STATES = frozenset({"gone"})

MAX_LAG_S = 30.0
"""How far behind is too far, if nobody says."""


def alive(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of databases that are to be replicated or followed."""
    return [record for record in records if record["state"] not in ENDED_STATES]


def sickness(record: Mapping[str, Any], max_lag_s: float) -> str:
    """What is wrong with a database, in words; empty if nothing is."""
    if record["state"] in SICK_STATES:
        error = record.get("error")
        return f"{record['db_path']} is {record['state']}" + (f" ({error})" if error else "")
    lag_s = record.get("lag_ms", 0) / 1000
    return f"{record['db_path']} is {lag_s:.1f} s behind" if lag_s > max_lag_s else ""
