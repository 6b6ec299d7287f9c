"""Points as users write them: what is understood, what is refused, and what a store makes of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import click
import pytest
from trio.testing import MockClock as Clock

from litereplica.cli.find_point import resolve
from litereplica.cli.point import (
    LATEST,
    POINT,
    TIMESTAMP,
    TXID,
    Point,
    parse_point,
    parse_timestamp,
    parse_txid,
)
from litereplica.errors import NoReplica, PointNotFound, UsageError
from litereplica.times import format_time
from tests.helpers.history import FIRST_TIMESTAMP_MS, History
from tests.ltxstore.replicas import memory_store

NOW = datetime(2026, 11, 22, 10, 50, 0, 250_000, tzinfo=UTC)


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One hour ahead of UTC in winter, two in summer; the clocks change on 2026-03-29 and 2026-10-25."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01T09:30:00Z", "2026-03-01T09:30:00.000Z"),
        ("2026-03-01t09:30:00z", "2026-03-01T09:30:00.000Z"),
        (" 2026-03-01 09:30:00.123+02:00 ", "2026-03-01T07:30:00.123Z"),
        ("2026-03-01T09:30:00.1230001Z", "2026-03-01T09:30:00.124Z"),
        ("2026-03-01T09:30:00.999999999-00:30", "2026-03-01T10:00:01.000Z"),
        ("2026-03-01 09:30", "2026-03-01T08:30:00.000Z"),
        ("2026-07-01", "2026-06-30T22:00:00.000Z"),
        ("5 minutes ago", "2026-11-22T10:45:00.250Z"),
        ("1h30m ago", "2026-11-22T09:20:00.250Z"),
        ("40 days ago", "2026-10-13T10:50:00.250Z"),
        ("an hour ago", "2026-11-22T09:50:00.250Z"),
        ("yesterday 14:00", "2026-11-21T13:00:00.000Z"),
        ("14:00", "2026-11-21T13:00:00.000Z"),
        ("11:00", "2026-11-22T10:00:00.000Z"),
        ("Nov 3 14:00", "2026-11-03T13:00:00.000Z"),
        ("13/02/2026 00:00", "2026-02-12T23:00:00.000Z"),
    ],
)
def test_time_is_understood(text: str, expected: str) -> None:
    assert format_time(parse_timestamp(text, now=NOW)) == expected


def test_hours_are_counted_through_a_change_of_the_clocks() -> None:
    after = datetime(2026, 10, 25, 3, 0, tzinfo=UTC)
    assert format_time(parse_timestamp("4 hours ago", now=after)) == "2026-10-24T23:00:00.000Z"


@pytest.mark.parametrize("text", ["01/02/2026", "March 2026", "may", "2026-03-29 02:30", "2026-10-25 02:30"])
def test_what_can_be_more_than_one_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"more than one time|summer time"):
        parse_timestamp(text, now=NOW)


@pytest.mark.parametrize(
    "text", ["", "5", "2026", "1700000000", "never", "2026-13-01T00:00:00Z", "2026-03-01T25:00:00Z", "0" * 15]
)
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a time.*write 2026"):
        parse_timestamp(text, now=NOW)


def test_txid_has_16_hexadecimal_digits_in_either_case() -> None:
    assert parse_txid("00000000000000fF") == 255
    for text in ("ff", "", "0" * 16, "0" * 17, "00000000000000g0"):
        with pytest.raises(UsageError):
            parse_txid(text)


def test_point_is_the_latest_a_txid_or_a_time() -> None:
    assert parse_point("latest") is parse_point(" Now ") is LATEST
    assert parse_point("2026112210000000") == Point(txid=0x2026112210000000)
    assert parse_point("5 minutes ago", now=NOW).before_ms == parse_timestamp("5 minutes ago", now=NOW)
    with pytest.raises(UsageError, match="both"):
        Point(txid=1, before_ms=1)


@pytest.mark.parametrize(("kind", "text"), [(TIMESTAMP, "5"), (TXID, "5"), (POINT, "5")])
def test_option_with_a_wrong_value_is_a_usage_error_that_says_how(kind: click.ParamType[object], text: str) -> None:
    with pytest.raises(click.BadParameter, match="write"):
        kind.convert(text, None, None)


def test_options_give_values() -> None:
    assert TIMESTAMP.convert("2026-03-01T09:30:00Z", None, None) == parse_timestamp("2026-03-01T09:30:00Z")
    assert TXID.convert("0000000000000007", None, None) == 7
    assert POINT.convert("0000000000000007", None, None) == Point(txid=7)


async def test_points_become_txids(autojump_clock: Clock) -> None:
    history = History()
    for number in range(6):
        await history.commit({1: b"%d" % number})
    await history.compact(1, 2, 4)
    await history.delete(0, 3)
    store = history.store
    assert await resolve(store, LATEST) is None
    assert await resolve(store, Point(txid=4)) == 4
    assert await resolve(store, Point(before_ms=FIRST_TIMESTAMP_MS + 6)) == 5
    assert await resolve(store, Point(before_ms=FIRST_TIMESTAMP_MS + 10**9)) == 6
    with pytest.raises(PointNotFound, match="0000000000000002 and 0000000000000004"):
        await resolve(store, Point(txid=3))
    with pytest.raises(PointNotFound, match=r"first point is TXID 0000000000000001 of 2023-11-14T22:13:20\.001Z"):
        await resolve(store, Point(before_ms=FIRST_TIMESTAMP_MS + 1))
    with pytest.raises(NoReplica):
        await resolve(memory_store(), Point(txid=1))


async def test_point_that_one_listing_misses_is_looked_for_in_another(autojump_clock: Clock) -> None:
    history = History()
    for number in range(4):
        await history.commit({1: b"%d" % number})
    store = history.store
    whole = store.list_levels
    listings = []

    async def list_levels(*, after: int = 0, in_order: bool = False) -> list[object]:
        listings.append(1)
        files = await whole(after=after, in_order=in_order)
        return [info for info in files if len(listings) > 1 or info.max_txid != 2]

    store.list_levels = list_levels  # type: ignore[method-assign,assignment] # as if compacted in between
    assert await resolve(store, Point(txid=3)) == 3
    assert len(listings) == 2
