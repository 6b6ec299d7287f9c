"""`litereplica history`: list the points that a replica can be restored to, as a table, JSON or a plot."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import click

from litereplica.cli import output
from litereplica.cli.on_store import run_on_store
from litereplica.cli.params import format_size
from litereplica.cli.point import TIMESTAMP
from litereplica.cli.replica_of import ReplicaOf, replica_argument
from litereplica.errors import UsageError
from litereplica.format.names import format_txid
from litereplica.history.points import Point, Selection, read_points, select_points
from litereplica.ltxstore.store import LTXStore
from litereplica.storage.url import redacted
from litereplica.times import format_time

SHOWN_POINTS = 100
"""Number of points printed by default, the newest ones: each costs a request on S3."""

DRAWN_POINTS = 10_000
"""Number of points drawn by default: on S3 a request of 100 bytes each, in total some seconds and less than a cent."""

TABLE_POINTS = 1000
"""Up to this many points are collected to align the columns; more are printed as they arrive."""

COLUMNS = ("txid", "time", "changed", "pages", "size", "published", "levels")
_RIGHT = ("changed", "pages", "size", "published")
_PLAIN = "{:16}  {:24}  {:>9}  {:>9}  {:>9}  {:>9}  {}"

PLOT_SUFFIXES = (".png", ".svg")


@click.command()
@replica_argument
@click.option("--since", "since_ms", type=TIMESTAMP, metavar="TIME", help="Only points of this time or later.")
@click.option("--until", "until_ms", type=TIMESTAMP, metavar="TIME", help="Only points of this time or earlier.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help=f"The newest N points.  [default: {SHOWN_POINTS}; with --plot {DRAWN_POINTS}]",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the history to a .png or .svg file instead.",
)
@output.json_option
def command(
    replica: ReplicaOf, since_ms: int | None, until_ms: int | None, limit: int | None, plot: Path | None, as_json: bool
) -> None:
    """List the points that a replica can be restored to.

    For each point: its TXID and time, the number of pages it changed (only if its file is small and not a snapshot),
    the database's size in pages and bytes, the size of the file that published it, and the levels that have a file
    ending there (9: a snapshot). Times are those of the writer, in UTC.

    --plot draws the database's size, the bytes published and the points retained over time; it needs matplotlib.

    \b
    Example:
      litereplica history file:///srv/replica
      litereplica history file:///srv/replica --since '2 hours ago' --json
      litereplica history 's3://bucket/app.db?region=eu-west-1' --plot history.svg
    """
    if plot is not None:
        _plot(replica, plot, since_ms, until_ms, limit or DRAWN_POINTS, as_json=as_json)
        return
    write = _write_json if as_json else _write_table
    select = partial(select_points, since_ms=since_ms, until_ms=until_ms, limit=limit or SHOWN_POINTS)

    async def work(store: LTXStore) -> Selection:
        selection = await select(store)
        await write(store, selection)
        return selection

    selection = run_on_store(replica, work)
    _note_omitted(selection)
    if not selection.total:
        output.note(f"{redacted(replica.url)} has no points in this time range")


def _note_omitted(selection: Selection) -> None:
    shown = len(selection.ending)
    if shown < selection.total:
        output.note(f"showing the newest {shown:,} of {selection.total:,} points; see --limit")


# --- a table, or JSON ------------------------------------------------------------------------


async def _write_table(store: LTXStore, selection: Selection) -> None:
    if sys.stdout.isatty() and len(selection.ending) <= TABLE_POINTS:
        rows: list[tuple[str, ...]] = []

        async def keep(point: Point) -> None:
            rows.append(_row(point))

        await read_points(store, selection, keep)
        output.print_table(COLUMNS, rows, right=_RIGHT)
        return

    async def write(point: Point) -> None:
        click.echo(_PLAIN.format(*_row(point)))

    click.echo(_PLAIN.format(*COLUMNS))
    await read_points(store, selection, write)


async def _write_json(store: LTXStore, selection: Selection) -> None:
    """Write an array, one point a line, as the points arrive."""
    separator = "[\n  "

    async def write(point: Point) -> None:
        nonlocal separator
        click.echo(separator + json.dumps(_record(point)), nl=False)
        separator = ",\n  "

    await read_points(store, selection, write)
    click.echo("[]" if separator.startswith("[") else "\n]")


def _row(point: Point) -> tuple[str, ...]:
    return (
        format_txid(point.txid),
        "?" if point.timestamp_ms is None else format_time(point.timestamp_ms),
        "-" if point.changed is None else str(point.changed),
        "?" if point.commit is None else str(point.commit),
        "?" if point.size is None else format_size(point.size),
        format_size(point.published),
        ",".join(map(str, point.levels)),
    )


def _record(point: Point) -> dict[str, object]:
    return {
        "txid": format_txid(point.txid),
        "timestamp": None if point.timestamp_ms is None else format_time(point.timestamp_ms),
        "changed": point.changed,
        "page_size_bytes": point.page_size,
        "pages": point.commit,
        "size_bytes": point.size,
        "published_bytes": point.published,
        "levels": list(point.levels),
    }


# --- a plot ----------------------------------------------------------------------------------


def _plot(
    replica: ReplicaOf, path: Path, since_ms: int | None, until_ms: int | None, limit: int, *, as_json: bool
) -> None:
    if as_json:
        raise UsageError("--json and --plot exclude each other", hint="run the command twice")
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"{path} is neither .png nor .svg", hint="name a file that ends in .png or .svg")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path.absolute().parent} is not a directory", hint="create it, or name another place")
    from litereplica.cli.plot import draw, require_matplotlib

    require_matplotlib()
    points: list[Point] = []

    async def work(store: LTXStore) -> Selection:
        async def keep(point: Point) -> None:
            points.append(point)

        selection = await select_points(store, since_ms=since_ms, until_ms=until_ms, limit=limit)
        await read_points(store, selection, keep, count_pages=False)
        return selection

    selection = run_on_store(replica, work)
    draw(points, path, title=redacted(replica.url))
    _note_omitted(selection)
    output.note(f"drew {len(points):,} points to {path}")
