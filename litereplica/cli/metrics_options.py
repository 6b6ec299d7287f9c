"""The options that say where a daemon serves metrics and the status page."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from litereplica.control.address import TOKEN_VARIABLE, Address, Listen, parse_address, read_token
from litereplica.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


class _Address(click.ParamType[Address]):
    """An address to listen on."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """Return the address."""
        try:
            return value if isinstance(value, Address) else parse_address(str(value))
        except UsageError as exc:
            self.fail(str(exc), param, ctx)


def metrics_options(function: F) -> F:
    """Add --metrics-addr and --metrics-token-file to a command."""
    token_file = click.option(
        "--metrics-token-file",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"File with a token that requests to --metrics-addr need.  [default: that in {TOKEN_VARIABLE}, if any]",
    )
    address = click.option(
        "--metrics-addr",
        metavar="[HOST]:PORT",
        type=_Address(),
        help="Serve metrics for Prometheus, health and a status page there, such as 9090 (this machine only) or :9090.",
    )
    return address(token_file(function))


def listening_at(address: Address | None, token_file: Path | None) -> Listen | None:
    """Return where metrics are served, with the token; None for nowhere. Raises `UsageError`."""
    return None if address is None else Listen(address, read_token(token_file, os.environ))
