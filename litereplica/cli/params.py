"""Click types for durations, sizes, log levels and replica URLs, and functions that parse and format sizes.

A unit is required: a bare number is refused, because it could be seconds or milliseconds. Durations are parsed and
formatted by `litereplica.times`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import click

from litereplica.errors import UsageError
from litereplica.log_levels import LOG_LEVELS
from litereplica.times import ABOVE_ZERO_HINT, DURATION_HINT, parse_duration_ms

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"

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


def parse_duration_s(text: str) -> float:
    """Parse a duration in the syntax of `parse_duration_ms`, and return it in seconds.

    Raises:
        UsageError: `text` is not a duration, or is zero.
    """
    found = parse_duration_ms(text)
    if found is None:
        hint = f"write {text.strip()}s or {text.strip()}ms" if _is_number(text) else DURATION_HINT
        raise UsageError(f"{text!r} is not a duration", hint=hint)
    if found == 0:
        raise UsageError(f"{text!r} is zero", hint=ABOVE_ZERO_HINT)
    return found / 1000


def parse_size(text: str) -> int:
    """Parse a size, and return it in bytes: `64MiB` is 64 × 2²⁰, `64MB` is 64 × 10⁶. Case does not matter.

    Raises:
        UsageError: `text` is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    per_unit = _UNIT_BY_LOWER_CASE.get(match[2].lower()) if match else None
    if match is None or per_unit is None:
        hint = f"write {text.strip()}B or {text.strip()}MiB" if _is_number(text) else "write 64MiB, 1GiB or 500KB"
        raise UsageError(f"{text!r} is not a size", hint=hint)
    return int(Fraction(match[1]) * per_unit)


def format_size(size: int) -> str:
    """A size in binary units, with at most one decimal: `4KiB`, `1.5GiB`, `100B`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        count = size / _BYTES_PER_UNIT[unit]
        if count >= 1:
            return f"{count:.1f}".removesuffix(".0") + unit
    return f"{size}B"


def _is_number(text: str) -> bool:
    return re.fullmatch(_NUMBER, text.strip()) is not None


class Duration(click.ParamType[float]):
    """A click type: a duration, as seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the value of an option or argument."""
        if isinstance(value, float):
            return value
        try:
            return parse_duration_s(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """A click type: a size, as bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the value of an option or argument."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class ReplicaURLType(click.ParamType[str]):
    """A click type: a replica URL, validated and returned unchanged, for `storage.open.open_storage`."""

    name = "url"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the value of an option or argument. Raises `UsageError`."""
        from litereplica.storage.url import parse_url

        parse_url(str(value))
        return str(value)


class DatabasePath(click.ParamType[Path]):
    """A click type: the path of a database, possibly with `sqlite://` before it."""

    name = "path"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path. It need not exist."""
        from litereplica.cli.config_file import without_tilde
        from litereplica.storage.url import without_sqlite_scheme

        return value if isinstance(value, Path) else without_tilde(Path(without_sqlite_scheme(str(value))))


DATABASE = DatabasePath()
DURATION = Duration()
SIZE = Size()
REPLICA_URL = ReplicaURLType()
LOG_LEVEL = click.Choice(list(LOG_LEVELS), case_sensitive=False)
LOG_LEVEL_HELP = "One of error, warn, info, debug, trace.  [default: LOG_LEVEL, else the file's, else info]"


def _set_log_level(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.find_root().params["log_level"] = value


log_level_option = click.option(
    "--log-level", type=LOG_LEVEL, metavar="LEVEL", expose_value=False, callback=_set_log_level, help=LOG_LEVEL_HELP
)
"""The same as the option of this name before the command, which it overrides."""
