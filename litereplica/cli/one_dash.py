"""Accepts options in the forms of Go's `flag` package, which are Litestream's.

An option may have one dash or two, and its value may follow `=`: `-config=x`, `--o x`, `-json=false`. They are
rewritten to click's forms before click parses them. An unknown option with one dash is reported under its own name:
click would read it as a bundle of one-letter options, `-force` as `-f -o rce`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

_OPTION = re.compile(r"(?P<dashes>--?)(?P<name>[A-Za-z][A-Za-z0-9-]*)(?:=(?P<value>.*))?", re.DOTALL)
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")


def with_two_dashes(
    command: click.Command, arguments: Sequence[str], ctx: click.Context, *, leading: bool = False
) -> list[str]:
    """Return the arguments of a command with each option in click's form.

    `leading`: only the options before the first other word are the command's; the rest is returned unchanged.

    Raises:
        click.NoSuchOption: the command has no option of this name.
        click.BadParameter: the value of a flag is neither true nor false.
    """
    params = [param for param in command.get_params(ctx) if isinstance(param, click.Option)]
    options = {name: param for param in params for name in (*param.opts, *param.secondary_opts)}
    result: list[str] = []
    is_value = False
    for position, word in enumerate(arguments):
        match = None if is_value else _OPTION.fullmatch(word)
        if word == "--" or (leading and match is None and not is_value):
            return [*result, *arguments[position:]]
        words = [word] if match is None else _clicks(match, options, ctx)
        option = options.get(words[0]) if match is not None and len(words) == 1 else None
        is_value = option is not None and not option.is_flag and not option.count
        result += words
    return result


def _clicks(match: re.Match[str], options: dict[str, click.Option], ctx: click.Context) -> list[str]:
    """The words for an option in click's form: none for a flag that is set to false."""
    name = next((each for each in (f"--{match['name']}", f"-{match['name']}") if each in options), None)
    if name is None:
        if match["dashes"] == "--":
            return [match[0]]  # click reports it
        raise click.NoSuchOption(f"-{match['name']}", possibilities=options, ctx=ctx)
    option, value = options[name], match["value"]
    if value is None:
        return [name]
    if not option.is_flag:
        return [f"{name}={value}"] if name.startswith("--") else [name, value]
    if value.lower() not in (*_TRUE, *_FALSE):
        raise click.BadParameter(f"{value!r} is neither true nor false", ctx=ctx, param=option)
    if (value.lower() in _TRUE) == (name in option.opts):
        return [name] if name in option.opts else option.opts[:1]
    return option.secondary_opts[:1] if name in option.opts else [name]
