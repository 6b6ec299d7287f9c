"""The parts of the protocol that the routes of writers and mounts share: fields of requests, times, and who answers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from litereplica import __version__
from litereplica.control.client import TIMEOUT_S
from litereplica.control.http import Refusal
from litereplica.times import format_time, parse_time_ms, wall_clock_ms

MAX_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class About:
    """A daemon: `kind` is `writer` or `mount`; the paths are those of its log file and its configuration, if any."""

    kind: str
    log_file: str | None = None
    config: str | None = None
    started_ms: int = field(default_factory=wall_clock_ms)

    def info(self, *, databases: int) -> dict[str, object]:
        """The answer to `GET /info`, with the number of databases."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_seconds": max(0, wall_clock_ms() - self.started_ms) // 1000,
            "started_at": format_time(self.started_ms),
            "database_count": databases,
        }

    def status(self, databases: list[dict[str, object]]) -> dict[str, object]:
        """The answer to `GET /status`, with the records of the databases."""
        return {
            "kind": self.kind,
            "pid": os.getpid(),
            "version": __version__,
            "started_at": format_time(self.started_ms),
            "log_file": self.log_file,
            "config": self.config,
            "databases": databases,
        }


@dataclass(frozen=True, slots=True)
class WaitFor:
    """What `POST /wait` waits for: a TXID, a time in milliseconds, or (neither) everything that is known now."""

    txid: int | None
    time_ms: int | None
    timeout_s: float


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """A text that must be there and not be empty. Raises `Refusal`."""
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"{name} required")
    return value


def timeout_field(fields: Mapping[str, Any]) -> float:
    """The time limit in seconds. Raises `Refusal`."""
    value = fields.get("timeout", TIMEOUT_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise Refusal(HTTPStatus.BAD_REQUEST, "timeout must be a number of seconds")
    return min(float(value) or TIMEOUT_S, MAX_TIMEOUT_S)


def wait_fields(fields: Mapping[str, Any]) -> WaitFor:
    """What to wait for. Raises `Refusal`."""
    txid, timestamp = fields.get("txid"), fields.get("timestamp")
    try:
        return WaitFor(
            txid=None if txid is None else int(str(txid), 16),
            time_ms=None if timestamp is None else parse_time_ms(str(timestamp), round_up=True),
            timeout_s=timeout_field(fields),
        )
    except ValueError as exc:
        raise Refusal(HTTPStatus.BAD_REQUEST, "txid or timestamp is invalid", details=str(exc)) from exc


def time_or_none(time_ms: int) -> str | None:
    """A time as RFC 3339; None for 0, which means unknown."""
    return format_time(time_ms) if time_ms else None
