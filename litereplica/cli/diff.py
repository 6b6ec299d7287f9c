"""`litereplica diff`: show the changes between two points of a replica's history.

Both points are restored to temporary files, compared (`litereplica.difference`), and printed as text or JSON.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import trio

from litereplica.cli import output
from litereplica.cli.find_point import resolve
from litereplica.cli.on_store import run_on_store
from litereplica.cli.params import format_size
from litereplica.cli.point import LATEST, POINT, Point
from litereplica.cli.replica_of import ReplicaOf, replica_argument
from litereplica.difference.databases import DatabaseDifference, ObjectChange, compare_databases
from litereplica.difference.pages import PageDifference, compare_pages
from litereplica.difference.rows import Change, RowChange, TableDifference
from litereplica.difference.values import Value, json_value, literal, printable
from litereplica.errors import EnvironmentProblem
from litereplica.format.names import format_txid
from litereplica.history.timeline import timestamps
from litereplica.ltxstore.store import LTXStore
from litereplica.restore.restore import RestoreResult, restore
from litereplica.times import format_time
from litereplica.types import TXID

ROWS = 100
"""Default number of rows printed for each table and kind of change: a few screens."""

SHOWN_RANGES = 12
"""Maximum number of page ranges printed as text, so that they fit on a line."""

_NOTHING = DatabaseDifference({}, (), (), ())


@dataclass(frozen=True, slots=True)
class _End:
    """One of the two points; `size` is the database's, in bytes."""

    txid: TXID
    timestamp_ms: int | None
    size: int


@dataclass(frozen=True, slots=True)
class _Difference:
    before: _End
    after: _End
    pages: PageDifference
    content: DatabaseDifference


@click.command()
@replica_argument
@click.option("--from", "before", type=POINT, required=True, help="A TXID, a time, or 'latest'.")
@click.option("--to", "after", type=POINT, default=LATEST, help="The other point.  [default: latest]")
@click.option("--name", "names", multiple=True, metavar="TABLE", help="Compare only this table; may be repeated.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=ROWS,
    show_default=True,
    help="Maximum number of rows of each kind to print for a table; all are counted.",
)
@output.json_option
def command(replica: ReplicaOf, before: Point, after: Point, names: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Show the changes between two points: pages, schema, and rows by table.

    Both databases are restored to a private temporary directory (in TMPDIR), which is removed afterwards. A time means
    the newest point before it. Rows are matched by their primary key; without one, whole rows are compared. Values of
    different types differ, such as 1 and 1.0. Generated columns are left out, and so are SQLite's internal tables
    unless they are named. For a virtual table, only the fact that it changed is shown.

    With --json: from and to (txid, timestamp, size_bytes), pages, settings, schema, tables (name, inserted, updated,
    deleted, note, rows), virtual_tables, note. A blob is {"blob": base64}.

    \b
    Example:
      litereplica diff file:///srv/replica --from '1 hour ago'
      litereplica diff file:///srv/replica --from 2026-03-01T09:00:00Z --to 2026-03-01T10:00:00Z --name orders --json
    """
    found = run_on_store(replica, partial(_diff, before=before, after=after, names=names, limit=limit))
    if as_json:
        output.print_json(_record(found))
    else:
        for line in _text(found):
            click.echo(line)


async def _diff(store: LTXStore, *, before: Point, after: Point, names: Sequence[str], limit: int) -> _Difference:
    targets = [await resolve(store, point) for point in (before, after)]
    with tempfile.TemporaryDirectory(prefix="litereplica-diff-") as directory:  # mode 0700
        paths = [Path(directory, name) for name in ("before.db", "after.db")]
        results = [
            await _restored(store, path, target, what)
            for path, target, what in zip(paths, targets, ("first", "second"), strict=True)
        ]
        pages, content = await trio.to_thread.run_sync(_compare, paths[0], paths[1], names, limit)
    times = await timestamps(store, {result.files[-1] for result in results})
    ends = [_End(result.txid, times.get(result.files[-1]), result.size) for result in results]
    return _Difference(ends[0], ends[1], pages, content)


async def _restored(store: LTXStore, path: Path, target: TXID | None, what: str) -> RestoreResult:
    try:
        return await restore(
            store, path, target=target, progress=partial(output.progress, f"Restoring the {what} point")
        )
    except EnvironmentProblem as exc:
        raise EnvironmentProblem(exc.message, hint="free some space, or set TMPDIR to another directory") from exc


def _compare(before: Path, after: Path, names: Sequence[str], limit: int) -> tuple[PageDifference, DatabaseDifference]:
    """Compare two database files. Runs in a worker thread."""
    check = trio.from_thread.check_cancelled
    pages = compare_pages(before, after, check=check)
    if pages.is_empty and not names:
        return pages, _NOTHING
    return pages, compare_databases(before, after, names=names, limit=limit, check=check)


# --- JSON ------------------------------------------------------------------------------------


def _record(found: _Difference) -> dict[str, object]:
    return {
        "from": _end_record(found.before),
        "to": _end_record(found.after),
        "pages": {
            "page_size_bytes": list(found.pages.page_sizes),
            "count": list(found.pages.counts),
            "changed": len(found.pages.changed),
            "changed_ranges": [list(pages) for pages in found.pages.ranges()],
        },
        "settings": {name: list(values) for name, values in found.content.settings.items()},
        "schema": [_object_record(change) for change in found.content.objects],
        "tables": [_table_record(table) for table in found.content.tables],
        "virtual_tables": list(found.content.virtual),
        "note": found.content.note,
    }


def _end_record(end: _End) -> dict[str, object]:
    time = None if end.timestamp_ms is None else format_time(end.timestamp_ms)
    return {"txid": format_txid(end.txid), "timestamp": time, "size_bytes": end.size}


def _object_record(change: ObjectChange) -> dict[str, object]:
    kind, name = _object_name(change)
    return {
        "type": kind,
        "name": name,
        "before": change.before.sql if change.before else None,
        "after": change.after.sql if change.after else None,
    }


def _table_record(table: TableDifference) -> dict[str, object]:
    return {
        "name": table.name,
        "inserted": table.inserted,
        "updated": table.updated,
        "deleted": table.deleted,
        "note": table.note,
        "rows": [_row_record(row) for row in table.rows],
    }


def _row_record(row: RowChange) -> dict[str, object]:
    record: dict[str, object] = {"change": row.change.value}
    for name, values in (("key", row.key), ("before", row.before), ("after", row.after)):
        if values:
            record[name] = {column: json_value(value) for column, value in values.items()}
    return record if row.count == 1 else record | {"count": row.count}


# --- text ------------------------------------------------------------------------------------


def _text(found: _Difference) -> list[str]:
    """The difference as lines of text. Names and values come from the database, so control characters are escaped."""
    content = found.content
    lines = [
        f"from   {_end_text(found.before)}",
        f"to     {_end_text(found.after)}",
        f"pages  {_pages_text(found.pages)}",
    ]
    lines += [f"{name}  {before} -> {after}" for name, (before, after) in content.settings.items()]
    for change in content.objects:
        lines += _object_text(change)
    for table in content.tables:
        lines += _table_text(table)
    lines += [f"virtual table {printable(name)}: changed" for name in content.virtual]
    lines += [content.note] if content.note else []
    return lines


def _end_text(end: _End) -> str:
    time = "" if end.timestamp_ms is None else f"  {format_time(end.timestamp_ms)}"
    return f"{format_txid(end.txid)}{time}  {format_size(end.size)}"


def _pages_text(pages: PageDifference) -> str:
    if pages.page_sizes[0] != pages.page_sizes[1]:
        return f"all: the page size changed from {pages.page_sizes[0]} to {pages.page_sizes[1]} bytes"
    ranges = pages.ranges()
    which = [str(low) if low == high else f"{low}-{high}" for low, high in ranges[:SHOWN_RANGES]]
    more = [f"and {len(ranges) - SHOWN_RANGES} more ranges"] if len(ranges) > SHOWN_RANGES else []
    text = f"{len(pages.changed):,} of {pages.counts[0]:,} changed"
    if pages.counts[1] > pages.counts[0]:
        text += f", {pages.counts[1] - pages.counts[0]:,} added"
    if pages.counts[1] < pages.counts[0]:
        text += f", {pages.counts[0] - pages.counts[1]:,} removed"
    written = len(pages.changed) + max(0, pages.counts[1] - pages.counts[0])
    size = f" ({format_size(written * pages.page_sizes[1])})" if written else ""
    return text + size + (f": {', '.join([*which, *more])}" if which else "")


def _object_text(change: ObjectChange) -> list[str]:
    kind, name = _object_name(change)
    what = "created" if change.before is None else "dropped" if change.after is None else "altered"
    lines = [f"{kind} {printable(name)}: {what}"]
    lines += [f"  - {_one_line(change.before.sql)}"] if change.before else []
    lines += [f"  + {_one_line(change.after.sql)}"] if change.after else []
    return lines


def _table_text(table: TableDifference) -> list[str]:
    counts = f"{table.inserted:,} inserted, {table.updated:,} updated, {table.deleted:,} deleted"
    lines = [f"table {printable(table.name)}: {counts}{f' ({printable(table.note)})' if table.note else ''}"]
    lines += [f"  {_row_text(row)}" for row in table.rows]
    omitted = table.inserted + table.updated + table.deleted - sum(row.count for row in table.rows)
    return lines + ([f"  … and {omitted:,} more; see --limit"] if omitted else [])


def _row_text(row: RowChange) -> str:
    times = f" ({row.count} times)" if row.count > 1 else ""
    match row.change:
        case Change.INSERT:
            return f"+ {_values_text(row.after)}{times}"
        case Change.DELETE:
            return f"- {_values_text(row.before)}{times}"
        case Change.UPDATE:
            changed = [
                f"{printable(column)}: {literal(value)} -> {literal(row.after[column])}"
                for column, value in row.before.items()
            ]
            return f"~ {_values_text(row.key)}: {', '.join(changed)}"


def _values_text(values: dict[str, Value]) -> str:
    return ", ".join(f"{printable(column)}={literal(value)}" for column, value in values.items())


def _object_name(change: ObjectChange) -> tuple[str, str]:
    either = change.after or change.before
    assert either is not None
    return either.type, either.name


def _one_line(sql: str) -> str:
    return printable(" ".join(sql.split()))
