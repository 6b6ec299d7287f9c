"""Durations as Go writes them, `24h`, `1m30s`, `500ms`, `1.5h`, and days: `7d` is 168 hours."""

from __future__ import annotations

import re
from fractions import Fraction

_MS_PER_UNIT = {
    "ns": Fraction(1, 1_000_000),
    "us": Fraction(1, 1000),
    "µs": Fraction(1, 1000),  # the micro sign
    "μs": Fraction(1, 1000),  # the Greek letter
    "ms": Fraction(1),
    "s": Fraction(1000),
    "m": Fraction(60_000),
    "h": Fraction(3_600_000),
    "d": Fraction(86_400_000),
}
_PART = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d)"
_DURATION = re.compile(rf"\+?(?:{_PART})+", re.ASCII)
_PARTS = re.compile(_PART, re.ASCII)
MAX_MS = 2**63 // 1_000_000
"""Some 292 years: the longest that Go can hold, in nanoseconds."""


def parse_duration_ms(text: str) -> int | None:
    """Milliseconds, rounded to the nearest; one at least, unless it is `0`. None when `text` is no duration."""
    if text in ("0", "+0"):
        return 0
    if _DURATION.fullmatch(text) is None:
        return None
    exact = sum((Fraction(number) * _MS_PER_UNIT[unit] for number, unit in _PARTS.findall(text)), Fraction(0))
    if exact > MAX_MS:
        return None
    return max(round(exact), 1) if exact else 0
