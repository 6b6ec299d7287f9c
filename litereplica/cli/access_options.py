"""The options --mode and --group: who may access the files that a command makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click

from litereplica.errors import UsageError
from litereplica.file_access import MODE_HINT, parse_mode

P = ParamSpec("P")
T = TypeVar("T")


class FileMode(click.ParamType[int]):
    """A click type: an octal mode of files, as permission bits."""

    name = "mode"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the value of an option."""
        mode = parse_mode(str(value))
        if mode is None:
            raise UsageError(f"{value!r} is not a mode of files", hint=MODE_HINT)
        return mode


FILE_MODE = FileMode()


def access_options(what: str, default: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that adds --mode and --group, for `what`, to a command; `default` says what they replace."""

    def add(command: Callable[P, T]) -> Callable[P, T]:
        group = click.option(
            "--group", help=f"The group of {what}, by name or number; without --mode, the mode is 0640 then."
        )
        mode = click.option(
            "--mode",
            type=FILE_MODE,
            help=f"The permission bits of {what}, such as 0640; directories that are made can be entered by those who "
            f"may read.  [default: {default}]",
        )
        return mode(group(command))

    return add
