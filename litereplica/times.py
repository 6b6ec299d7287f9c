"""Times, durations and clocks: the one reader and the one writer of each.

A time is an integer, milliseconds since the epoch (`…_ms`), and RFC 3339 as text. A duration is an integer number of
milliseconds, and Go's syntax plus days as text. Command line, configuration, `.at/` names, leases and object metadata
all read and write through here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fractions import Fraction

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

MAX_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, the last that `datetime` and RFC 3339 can express."""
MIN_TIME_MS = -62_135_596_800_000
"""The first millisecond of the year 1."""
MAX_DURATION_MS = 2**63 // 1_000_000
"""Some 292 years: the longest duration that Go can hold, in nanoseconds."""

DURATION_HINT = "write 500ms, 30s, 1h30m or 7d"
ABOVE_ZERO_HINT = "write a duration above zero, such as 100ms"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)
_MS_PER_UNIT = {
    "ns": Fraction(1, 1_000_000),
    "us": Fraction(1, 1000),
    "µs": Fraction(1, 1000),  # the micro sign
    "μs": Fraction(1, 1000),  # the Greek letter
    "ms": Fraction(1),
    "s": Fraction(SECOND_MS),
    "m": Fraction(MINUTE_MS),
    "h": Fraction(HOUR_MS),
    "d": Fraction(DAY_MS),
}
_WRITTEN_UNITS = {"h": HOUR_MS, "m": MINUTE_MS, "s": SECOND_MS, "ms": 1}
_PART = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d)"
_PARTS = re.compile(_PART, re.ASCII)
_DURATION = re.compile(rf"\+?(?:{_PART})+|\+?0", re.ASCII)


# --- times -----------------------------------------------------------------------------------------------------------


def has_time_form(text: str) -> bool:
    """True if `text` has the form of an RFC 3339 time, even of one that does not exist, such as 30 February."""
    return _TIME.fullmatch(text) is not None


def parse_time_ms(text: str, *, round_up: bool = False) -> int:
    """Milliseconds since the epoch of an RFC 3339 time with an offset and any number of fractional digits.

    Date and time are separated by `T` or a space; letters may be of either case. Fractions of a millisecond are
    dropped, or rounded up: then what is before the time is before the result, and the other way round.

    Raises:
        ValueError: `text` is not an RFC 3339 time, or one that does not exist.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 time")
    date, clock, fraction, offset = match.groups(default="")
    whole_ms = milliseconds(datetime.fromisoformat(f"{date}T{clock}{offset.upper().replace('Z', '+00:00')}"))
    remainder = fraction[3:].strip("0")
    return whole_ms + int(fraction[:3].ljust(3, "0")) + (1 if round_up and remainder else 0)


def format_time(time_ms: int, *, timespec: str = "milliseconds") -> str:
    """RFC 3339 in UTC, `2026-03-01T09:30:00.000Z`; a time outside the years 1 to 9999 becomes the nearest one in them.

    `timespec` is `datetime.isoformat`'s: `milliseconds` or `seconds`.
    """
    moment = _EPOCH + timedelta(milliseconds=min(max(time_ms, MIN_TIME_MS), MAX_TIME_MS))
    return moment.replace(tzinfo=None).isoformat(timespec=timespec) + "Z"


def format_time_nano(time_ms: int) -> str:
    """RFC 3339 in UTC as Go's `time.RFC3339Nano` writes it: without trailing zeros in the fraction."""
    return format_time(time_ms).removesuffix("Z").rstrip("0").removesuffix(".") + "Z"


def milliseconds(moment: datetime) -> int:
    """Milliseconds since the epoch, rounded down. `moment` is aware."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


# --- durations -------------------------------------------------------------------------------------------------------


def parse_duration_ms(text: str) -> int | None:
    """Milliseconds, rounded to the nearest; at least 1, unless the duration is zero. None if `text` is no duration.

    A duration is what Go's `time.ParseDuration` takes, `24h`, `1m30s`, `500ms`, `1.5h`, without a sign or with `+`,
    and days: `7d` is 168 hours. Every number but 0 needs a unit.
    """
    text = text.strip()
    if _DURATION.fullmatch(text) is None:
        return None
    exact = sum((Fraction(number) * _MS_PER_UNIT[unit] for number, unit in _PARTS.findall(text)), Fraction(0))
    if exact > MAX_DURATION_MS:
        return None
    return max(round(exact), 1) if exact else 0


def with_unit(text: str) -> str:
    """Return a duration with its unit: a whole number without one is of seconds, as in Litestream's commands."""
    text = text.strip()
    return f"{text}s" if text.isdecimal() else text


def format_duration(seconds: float) -> str:
    """A duration to the millisecond, as `parse_duration_ms` reads it: `1h30m`, `1s500ms`, `0ms`."""
    left = round(seconds * 1000)
    parts = []
    for unit, unit_ms in _WRITTEN_UNITS.items():
        count, left = divmod(left, unit_ms)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0ms"


# --- clocks ----------------------------------------------------------------------------------------------------------


def wall_clock_ms() -> int:
    """The machine's clock: milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def asleep_s() -> float:
    """Return the seconds that the machine has been suspended since it started. Trio's clock leaves them out."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def _boot_clock_ms() -> int:
    """Milliseconds since the machine started, those asleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class SteadyClock:
    """A clock for measuring ages, in milliseconds since the epoch, that never runs ahead.

    It reads `wall_ms` once when it is made, and adds what `elapsed_ms` counts. Setting the machine's clock forward
    changes nothing; setting it back makes ages smaller.
    """

    def __init__(
        self, wall_ms: Callable[[], int] = wall_clock_ms, elapsed_ms: Callable[[], int] = _boot_clock_ms
    ) -> None:
        self._wall_ms = wall_ms
        self._elapsed_ms = elapsed_ms
        self._offset_ms = wall_ms() - elapsed_ms()

    def steady_ms(self) -> int:
        """The time as if the machine's clock had not been set since this clock was made."""
        return self._offset_ms + self._elapsed_ms()

    def now_ms(self) -> int:
        """The time that ages are measured against: the earlier of the steady time and the machine's clock."""
        return min(self.steady_ms(), self._wall_ms())
