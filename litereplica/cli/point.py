"""Points of a replica's history as a user writes them: a TXID, a time, or `latest`.

A TXID is 16 hexadecimal digits. A time is RFC 3339 or an English phrase: `5 minutes ago`, `yesterday 14:00`,
`2026-03-01 09:30`; without an offset it is local time. Ambiguous input is refused: `01/02/2026` (day and month),
`March 2026` (no day), and an hour that a change to or from summer time skips or repeats.

A time means the newest point *before* it, as with Litestream. A time in the future is no error, and means the latest
point: the writer's clock may be ahead of this machine's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import click

from litereplica.errors import LTXError, UsageError
from litereplica.format import names
from litereplica.times import has_time_form, milliseconds, parse_time_ms
from litereplica.types import TXID as TransactionID

LATEST_NAMES = ("latest", "now")

_TXID = re.compile(r"[0-9a-f]{16}", re.ASCII | re.IGNORECASE)
_RELATIVE = re.compile(r"(in\b.*)|(.*\bago)", re.IGNORECASE)
_BARE_NUMBER = re.compile(r"[\d.\s]*")
_DATE_ORDERS = ("DMY", "MDY", "YMD")
_DAYS_OF_MONTH = ("first", "last")
_TIME_HINT = "write 2026-03-01T09:30:00Z, '2026-03-01 09:30' or '5 minutes ago'"


@dataclass(frozen=True, slots=True)
class Point:
    """The point at `txid`; or the newest one before `before_ms` (milliseconds since the epoch); or the latest one.

    Raises:
        UsageError: both are given.
    """

    txid: TransactionID | None = None
    before_ms: int | None = None

    def __post_init__(self) -> None:
        if self.txid is not None and self.before_ms is not None:
            raise UsageError("both a TXID and a time are given", hint="give one of them")

    @property
    def is_latest(self) -> bool:
        """True if this is the latest point."""
        return self.txid is None and self.before_ms is None


LATEST = Point()


def parse_point(text: str, *, now: datetime | None = None) -> Point:
    """Parse a TXID, a time, or `latest`. `now` is as in `parse_timestamp`. Raises `UsageError`."""
    text = text.strip()
    if text.lower() in LATEST_NAMES:
        return LATEST
    if _TXID.fullmatch(text):
        return Point(txid=parse_txid(text))
    return Point(before_ms=parse_timestamp(text, now=now))


def parse_txid(text: str) -> TransactionID:
    """Parse a TXID: 16 hexadecimal digits, not all zero. Raises `UsageError`."""
    try:
        txid = names.parse_txid(text.strip().lower())
    except LTXError:
        hint = "write 16 hexadecimal digits, as 'litereplica ltx' does"
        raise UsageError(f"{text!r} is not a TXID", hint=hint) from None
    if not txid:
        raise UsageError("TXIDs begin at 0000000000000001", hint="see 'litereplica ltx --level all'")
    return txid


def parse_timestamp(text: str, *, now: datetime | None = None) -> int:
    """Parse a time, and return it in milliseconds since the epoch.

    It is rounded up, so that every point before the time is before the result. `now` (aware) is the reference of
    relative times. Raises `UsageError`.
    """
    text = text.strip()
    if not has_time_form(text):
        # 999 µs: rounds up
        return milliseconds(_spoken(text, now or datetime.now(UTC)) + timedelta(microseconds=999))
    try:
        return parse_time_ms(text, round_up=True)
    except ValueError as exc:
        raise UsageError(f"{text!r} is not a time: {exc}", hint=_TIME_HINT) from None


def _spoken(text: str, now: datetime) -> datetime:
    """The time of an English phrase, if all readings of day and month agree. Raises `UsageError`."""
    import dateparser

    if _BARE_NUMBER.fullmatch(text):
        raise UsageError(f"{text!r} is not a time", hint=_TIME_HINT)
    relative = _RELATIVE.fullmatch(text) is not None
    # relative times are computed in UTC, so that a change to or from summer time does not shift them
    base = now.astimezone(UTC if relative else None).replace(tzinfo=None)
    readings = {
        dateparser.parse(
            text,
            languages=["en"],
            settings={
                "DATE_ORDER": order,
                "PREFER_DAY_OF_MONTH": day,
                "PREFER_DATES_FROM": "past",
                "RELATIVE_BASE": base,
            },
        )
        for order in _DATE_ORDERS
        for day in _DAYS_OF_MONTH
    }
    moment = readings.pop()
    if readings:
        raise UsageError(f"{text!r} can be more than one time", hint=_TIME_HINT)
    if moment is None:
        raise UsageError(f"{text!r} is not a time", hint=_TIME_HINT)
    if moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=UTC) if relative else _local(moment, text)


def _local(moment: datetime, text: str) -> datetime:
    """A time in this machine's zone. Raises `UsageError` if a change to or from summer time skips or repeats it."""
    first, second = (moment.replace(fold=fold).astimezone() for fold in (0, 1))
    if first != second:
        raise UsageError(
            f"{text!r} does not exist or exists twice, because of summer time",
            hint="add the offset, as in 02:30:00+01:00",
        )
    return first


class Timestamp(click.ParamType[int]):
    """A click type: a time, as milliseconds since the epoch."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the value of an option or argument."""
        if isinstance(value, int):
            return value
        try:
            return parse_timestamp(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class TXIDType(click.ParamType[int]):
    """A click type: a TXID."""

    name = "txid"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the value of an option or argument."""
        if isinstance(value, int):
            return value
        try:
            return parse_txid(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class PointType(click.ParamType[Point]):
    """A click type: a TXID, a time, or `latest`."""

    name = "point"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Point:
        """Parse the value of an option or argument."""
        if isinstance(value, Point):
            return value
        try:
            return parse_point(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


TIMESTAMP = Timestamp()
TXID = TXIDType()
POINT = PointType()
