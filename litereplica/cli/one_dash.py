"""Accepts options written as Litestream's: with one dash, as `-name`, `-name=value` and `-flag=false`.

They are rewritten with two dashes before click parses them. An unknown option with one dash is reported under its own
name: click would read it as a bundle of one-letter options, `-force` as `-f -o rce`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

_ONE_DASH = re.compile(r"-(?P<name>[A-Za-z][A-Za-z0-9-]+)(?:=(?P<value>.*))?", re.DOTALL)
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")


def with_two_dashes(command: click.Command, arguments: Sequence[str], ctx: click.Context) -> list[str]:
    """Return the arguments of a command with each `-name` replaced by `--name`.

    Raises:
        click.NoSuchOption: the command has no option of this name.
        click.BadParameter: the value of a flag is neither true nor false.
    """
    options = {
        name: param for param in command.get_params(ctx) if isinstance(param, click.Option) for name in param.opts
    }
    names = {*options, *(name for option in options.values() for name in option.secondary_opts)}
    result: list[str] = []
    is_value = False
    for position, word in enumerate(arguments):
        if word == "--":
            return [*result, *arguments[position:]]
        match = None if is_value else _ONE_DASH.fullmatch(word)
        long = word if match is None else _long(match, options, names, ctx)
        if long is None:
            continue
        option = options.get(long)
        is_value = not is_value and option is not None and not option.is_flag and not option.count
        result.append(long)
    return result


def _long(match: re.Match[str], options: dict[str, click.Option], names: set[str], ctx: click.Context) -> str | None:
    """The option with two dashes; None for a flag that is set to false."""
    name, value = f"--{match['name']}", match["value"]
    if name not in names:
        raise click.NoSuchOption(f"-{match['name']}", possibilities=[each for each in names if name in each], ctx=ctx)
    option = options.get(name)
    if value is None or option is None or not option.is_flag:
        return name if value is None else f"{name}={value}"
    if value.lower() in _TRUE:
        return name
    if value.lower() in _FALSE:
        return None
    raise click.BadParameter(f"{value!r} is neither true nor false", ctx=ctx, param=option)
