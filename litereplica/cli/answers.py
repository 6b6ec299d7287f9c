"""Prints the answers of a daemon as Litestream prints them: lines of `name: value`, or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.daemons import absolute, request, writer_of
from litereplica.printable import printable


def print_answer(answer: Mapping[str, object], *, as_json: bool) -> None:
    """Print one answer."""
    if as_json:
        output.print_json(dict(answer))
        return
    for name, value in answer.items():
        click.echo(f"{name}: {printable(str(value))}")


def change_state(
    database: str, target: str, state: str, *, socket: Path | None, timeout_s: float, as_json: bool
) -> None:
    """Ask the writer of a database for `/start` or `/stop`, and print that it is in `state` now."""
    path = absolute(database)
    chosen = writer_of(path, socket)
    answer, _ = request(chosen, target, {"path": str(path)}, timeout_s=timeout_s)
    shown = {"status": answer.get("status"), "db_path": answer.get("path"), "state": state, "txid": answer.get("txid")}
    print_answer({**shown, "socket": str(chosen)}, as_json=as_json)
