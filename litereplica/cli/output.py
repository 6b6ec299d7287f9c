"""Output of commands: data on stdout, as a table or as JSON; notes and progress bars on stderr.

`table.py`, which lays tables out for a terminal, and rich, for progress bars, are imported only when they draw.
`logging_setup` sets up logging.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from litereplica.printable import printable, printable_json

MAX_DRAWN_ROWS = 1000
"""Rows of a table that is fitted to the terminal; longer ones are printed as for a program."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
"""The `--json` option of every command that prints data; the command's parameter is `as_json`."""


def print_json(value: object) -> None:
    """Print `value`, which the `json` module must be able to encode, to stdout, indented."""
    click.echo(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print a table to stdout. Columns named in `right` are aligned to the right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    aligned = [name in right for name in columns]
    if not sys.stdout.isatty() or len(rows) > MAX_DRAWN_ROWS:
        _print_plain([[*columns], *cells], aligned)
        return
    from litereplica.cli.table import layout, terminal_width

    for line in layout(columns, cells, aligned, width=terminal_width()):
        click.echo(line)


def _print_plain(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    """Print rows in columns that are as wide as their longest cell. Nothing is cut or wrapped."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def note(message: str) -> None:
    """Print one line to stderr: information that is neither data nor an error."""
    click.echo(f"litereplica: {printable(message)}", err=True)


@contextmanager
def progress(description: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr during the block, if stderr is a terminal.

    Yields a function to be called with the number of bytes done since the last call.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns: list[Any] = [
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    ]
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total_bytes)
        yield lambda done: bar.advance(task, done)
