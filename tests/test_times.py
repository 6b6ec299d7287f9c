"""Times and durations: one table of cases for every surface that reads them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.cli.params import DURATION
from litereplica.cli.point import TIMESTAMP
from litereplica.config import Surroundings, parse_config
from litereplica.errors import DamagedFile, UsageError
from litereplica.fuse.at_names import Wanted, parse
from litereplica.ltxstore.lease_record import Lease
from litereplica.storage.s3_client import given_time_ms
from litereplica.times import (
    ABOVE_ZERO_HINT,
    DAY_MS,
    DURATION_HINT,
    MAX_TIME_MS,
    MIN_TIME_MS,
    format_duration,
    format_time,
    format_time_nano,
    parse_duration_ms,
    parse_time_ms,
)

NOON_MS = 1_795_348_800_000  # 2026-11-22T12:00:00Z

TIMES = [  # text, milliseconds rounded down, rounded up
    ("2026-11-22T12:00:00Z", NOON_MS, NOON_MS),
    ("2026-11-22t12:00:00z", NOON_MS, NOON_MS),
    ("2026-11-22 12:00:00Z", NOON_MS, NOON_MS),
    ("2026-11-22T12:00:00+00:00", NOON_MS, NOON_MS),
    ("2026-11-22T13:30:00+01:30", NOON_MS, NOON_MS),
    ("2026-11-22T04:00:00-08:00", NOON_MS, NOON_MS),
    ("2026-11-22T12:00:00.5Z", NOON_MS + 500, NOON_MS + 500),
    ("2026-11-22T12:00:00.250+00:00", NOON_MS + 250, NOON_MS + 250),
    ("2026-11-22T12:00:00.2500000000000Z", NOON_MS + 250, NOON_MS + 250),
    ("2026-11-22T12:00:00.000000001Z", NOON_MS, NOON_MS + 1),
    ("2026-11-22T12:00:00.999999999Z", NOON_MS + 999, NOON_MS + 1000),
    ("2026-11-22T12:00:00." + "0" * 200 + "1Z", NOON_MS, NOON_MS + 1),
    ("1970-01-01T00:00:00Z", 0, 0),
    ("1970-01-01T00:00:00.0009Z", 0, 1),
]
BEFORE_THE_EPOCH = [
    ("1969-12-31T23:59:59.999Z", -1, -1),
    ("1969-12-31T23:59:59.9985Z", -2, -1),
    ("0001-01-01T00:00:00+23:59", MIN_TIME_MS - 86_340_000, MIN_TIME_MS - 86_340_000),
]

NO_TIMES = [
    "",
    "soon",
    "2026-11-22",
    "2026-11-22T12:00Z",
    "2026-11-22T12:00:00",
    "2026-11-22T12:00:00+01",
    "2026-11-22T12:00:00+0100",
    "20261122T120000Z",
    "2026-11-22T12:00:00.Z",
    "2026-11-22T12:00:00,5Z",
    "2026-11-22T12:00:60Z",
    "2026-11-22T25:00:00Z",
    "2026-02-30T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "2026-11-22T12:00:00+25:00",
    "2026-11-22  12:00:00Z",
    "٢٠٢٦-11-22T12:00:00Z",
]

DURATIONS = [  # text, milliseconds
    ("500ms", 500),
    ("1s", 1000),
    ("1.5s", 1500),
    ("0.25s", 250),
    (".5s", 500),
    ("1.s", 1000),
    ("+1s", 1000),
    (" 1s ", 1000),
    ("5m", 300_000),
    ("90m", 5_400_000),
    ("1m30s", 90_000),
    ("1m500ms", 60_500),
    ("1h", 3_600_000),
    ("1.5h", 5_400_000),
    ("1h1m1s1ms", 3_661_001),
    ("24h", DAY_MS),
    ("7d", 7 * DAY_MS),
    ("1d12h", DAY_MS * 3 // 2),
    ("30s1h", 3_630_000),
    ("1s1s", 2000),
    ("1us", 1),
    ("100µs", 1),
    ("100μs", 1),
    ("1ns", 1),
    ("1500us", 2),
]

NO_DURATIONS = [  # text, hint
    ("5", "write 5s or 5ms"),
    ("1.5", "write 1.5s or 1.5ms"),
    ("s", DURATION_HINT),
    ("fast", DURATION_HINT),
    ("1x", DURATION_HINT),
    ("-1s", DURATION_HINT),
    ("1 s", DURATION_HINT),
    ("1S", DURATION_HINT),
    ("1e3s", DURATION_HINT),
    ("1:30", DURATION_HINT),
    ("١s", DURATION_HINT),
    ("99999999999h", DURATION_HINT),
    ("0", ABOVE_ZERO_HINT),
    ("0s", ABOVE_ZERO_HINT),
]


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "down_ms", "up_ms"), TIMES + BEFORE_THE_EPOCH)
def test_time_means_the_same_on_every_surface(text: str, down_ms: int, up_ms: int) -> None:
    assert parse_time_ms(text) == down_ms
    assert parse_time_ms(text, round_up=True) == up_ms
    assert TIMESTAMP.convert(text, None, None) == up_ms
    assert parse(text.encode()) == Wanted(before_ms=up_ms)
    assert given_time_ms(text) == down_ms
    assert lease_that_expires(text).expires_ms == max(down_ms, 0)


@pytest.mark.parametrize("text", NO_TIMES)
def test_what_is_not_rfc_3339_is_refused_where_only_that_is_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time_ms(text)
    assert parse(text.encode()) is None
    assert given_time_ms(text) is None
    with pytest.raises(DamagedFile):
        lease_that_expires(text)


def lease_that_expires(text: str) -> Lease:
    return Lease.decode(json.dumps({"generation": 1, "expires_at": text}).encode())


@given(st.integers(MIN_TIME_MS, MAX_TIME_MS))
def test_written_time_reads_back(time_ms: int) -> None:
    for text in (format_time(time_ms), format_time_nano(time_ms)):
        assert parse_time_ms(text) == parse_time_ms(text, round_up=True) == time_ms
    assert parse_time_ms(format_time(time_ms, timespec="seconds")) == time_ms // 1000 * 1000


@pytest.mark.parametrize(
    ("time_ms", "text", "nano"),
    [
        (NOON_MS, "2026-11-22T12:00:00.000Z", "2026-11-22T12:00:00Z"),
        (NOON_MS + 10, "2026-11-22T12:00:00.010Z", "2026-11-22T12:00:00.01Z"),
        (NOON_MS + 250, "2026-11-22T12:00:00.250Z", "2026-11-22T12:00:00.25Z"),
        (-1, "1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999Z"),
        (10**18, "9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
        (-(10**18), "0001-01-01T00:00:00.000Z", "0001-01-01T00:00:00Z"),
    ],
)
def test_time_is_written_in_utc(time_ms: int, text: str, nano: str) -> None:
    assert (format_time(time_ms), format_time_nano(time_ms)) == (text, nano)
    if MIN_TIME_MS <= time_ms <= MAX_TIME_MS:
        assert datetime.fromisoformat(text) == datetime.fromtimestamp(time_ms / 1000, UTC)


# --- durations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "duration_ms"), DURATIONS)
def test_duration_means_the_same_on_every_surface(text: str, duration_ms: int) -> None:
    assert parse_duration_ms(text) == duration_ms
    assert DURATION.convert(text, None, None) == duration_ms / 1000
    assert configured_s(text) == duration_ms / 1000


@pytest.mark.parametrize(("text", "hint"), NO_DURATIONS)
def test_what_is_not_a_duration_is_refused_on_every_surface_with_a_hint(text: str, hint: str) -> None:
    assert not parse_duration_ms(text)
    with pytest.raises(click.BadParameter, match=hint):
        DURATION.convert(text, None, None)
    with pytest.raises(UsageError) as unread:
        configured_s(text)
    assert unread.value.hint in (DURATION_HINT, ABOVE_ZERO_HINT)


def test_an_empty_text_is_not_a_duration() -> None:
    assert parse_duration_ms("") is None


def configured_s(text: str) -> float:
    """The synchronisation interval that a configuration file with this duration asks for."""
    document = f"dbs: [{{path: /a, replica: {{path: /r, sync-interval: '{text}'}}}}]"
    config = parse_config(document, file="f", surroundings=Surroundings({}, pid=1, directory=Path("/")))
    return config.targets[0].settings.sync_interval_s


@given(st.integers(min_value=1, max_value=10**12))
def test_written_duration_reads_back_to_the_millisecond(ms: int) -> None:
    assert parse_duration_ms(format_duration(ms / 1000)) == ms


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.0004, "0ms"), (0.5, "500ms"), (1.5, "1s500ms"), (5400.0, "1h30m"), (90_000.0, "25h")],
)
def test_duration_is_written_with_its_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
