"""Durations, sizes and replica URLs as a user writes them: parsing, and writing them back.

The click types here are what every command uses; the functions serve whatever else reads or prints
such values. Units are always written: a bare number is refused, because nobody remembers whether it meant
seconds or milliseconds.
"""

from __future__ import annotations

import re
from fractions import Fraction

import click

from litereplica.errors import UsageError

_MS_PER_UNIT = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = re.compile("".join(f"(?:({_NUMBER}){unit})?" for unit in _MS_PER_UNIT))

_BYTES_PER_UNIT = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SIZE = re.compile(rf"({_NUMBER}) ?([a-z]+)", re.IGNORECASE)
_UNIT_BY_LOWER_CASE = {unit.lower(): count for unit, count in _BYTES_PER_UNIT.items()}


def parse_duration(text: str) -> float:
    """Seconds. Units are h, m, s and ms, largest first: `1h30m`, `500ms`, `1.5s`. Raises `UsageError`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        hint = f"write {text.strip()}s or {text.strip()}ms" if _is_number(text) else "write 500ms, 1s, 5m or 1h30m"
        raise UsageError(f"{text!r} is not a duration", hint=hint)
    parts = zip(match.groups(), _MS_PER_UNIT.values(), strict=True)
    seconds = sum(Fraction(number) * ms for number, ms in parts if number) / 1000
    if not seconds:
        raise UsageError(f"{text!r} is no time at all", hint="write a duration above zero, such as 100ms")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """A duration to the millisecond, as `parse_duration` reads it: `1h30m`, `1s500ms`, `0ms`."""
    rest = round(seconds * 1000)
    parts = []
    for unit, ms in _MS_PER_UNIT.items():
        count, rest = divmod(rest, ms)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0ms"


def parse_size(text: str) -> int:
    """Bytes. `64MiB` is 64 × 2²⁰, `64MB` is 64 × 10⁶; case does not matter. Raises `UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    per_unit = _UNIT_BY_LOWER_CASE.get(match[2].lower()) if match else None
    if match is None or per_unit is None:
        hint = f"write {text.strip()}B or {text.strip()}MiB" if _is_number(text) else "write 64MiB, 1GiB or 500KB"
        raise UsageError(f"{text!r} is not a size", hint=hint)
    return int(Fraction(match[1]) * per_unit)


def format_size(size: int) -> str:
    """A size for people, in binary units with one decimal at most: `4KiB`, `1.5GiB`, `100B`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        count = size / _BYTES_PER_UNIT[unit]
        if count >= 1:
            return f"{count:.1f}".removesuffix(".0") + unit
    return f"{size}B"


def _is_number(text: str) -> bool:
    return re.fullmatch(_NUMBER, text.strip()) is not None


class Duration(click.ParamType[float]):
    """A duration, as seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """A number of bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class ReplicaURLType(click.ParamType[str]):
    """A replica URL, checked and returned as it was written: what `storage.url.open_storage` takes."""

    name = "url"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from litereplica.storage.url import parse_url

        parse_url(str(value))
        return str(value)


DURATION = Duration()
SIZE = Size()
REPLICA_URL = ReplicaURLType()
