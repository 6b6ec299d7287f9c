"""Output of commands: data on stdout, as a table or as JSON; notes and progress bars on stderr.

rich is imported only when a table or a progress bar is drawn. Logging is set up in `logging_setup`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from litereplica.cli.printable import printable, printable_json

UNLIMITED_WIDTH = 10_000
"""Width of a table if stdout is not a terminal: nothing is cut or wrapped."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
"""The `--json` option of every command that prints data; the command's parameter is `as_json`."""


def print_json(value: object) -> None:
    """Print `value`, which the `json` module must be able to encode, to stdout, indented."""
    click.echo(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print a table to stdout. Columns named in `right` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else UNLIMITED_WIDTH, highlight=False)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=not console.is_terminal)
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    console.print(table, soft_wrap=not console.is_terminal)


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
