"""Compares two database files: settings, schema and tables. `rows.py` compares the rows of one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from litereplica.difference.rows import AFTER, TableDifference, compare_table, prepare
from litereplica.difference.schema import Schema, SchemaObject, Table, read_schema
from litereplica.errors import EnvironmentProblem, ExitCode, LiteReplicaError, UsageError
from litereplica.foreign_database import damage_of_structure, open_untrusted, uri

CHECK_STEPS = 200_000
"""Instructions of SQLite between two calls of `check`: some milliseconds."""

_HINT_DAMAGED = "restore it and run 'PRAGMA integrity_check'"

INTERNAL_PREFIX = "sqlite_"
"""The prefix of SQLite's internal tables, which are compared only if they are named."""


class UnreadableDatabase(LiteReplicaError):
    """SQLite cannot read a database, although its pages equal those of the primary."""

    exit_code = ExitCode.DAMAGED


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """A table, index, view or trigger that was created (`before` is None), dropped (`after`) or altered."""

    before: SchemaObject | None
    after: SchemaObject | None


@dataclass(frozen=True, slots=True)
class DatabaseDifference:
    """The differences of two databases.

    `settings` maps names to their two values; `virtual` are virtual tables whose content differs; `note` says why no
    rows were compared, if so.
    """

    settings: dict[str, tuple[object, object]]
    objects: tuple[ObjectChange, ...]
    tables: tuple[TableDifference, ...]
    virtual: tuple[str, ...]
    note: str | None = None


def compare_databases(
    before: Path, after: Path, *, names: Sequence[str] = (), limit: int, check: Callable[[], None]
) -> DatabaseDifference:
    """Compare two files that do not change meanwhile; if `names` are given, only these tables.

    At most `limit` rows of each kind are returned for a table, but all are counted. `check` is called every few
    milliseconds, and may raise to cancel. Blocks.

    Raises:
        UnreadableDatabase: SQLite cannot read one of the files.
        EnvironmentProblem: the disk is too full for SQLite to sort.
        UsageError: neither database has a table of one of the names.
    """
    with _translated():
        old, new = (_schema(path, check) for path in (before, after))
        _require_tables(names, old, new)
        settings = {
            name: (value, new.settings[name]) for name, value in old.settings.items() if value != new.settings[name]
        }
        objects = _object_changes(old, new, names)
        if "encoding" in settings:
            note = "the text encoding differs: rows are not compared"
            return DatabaseDifference(settings, objects, (), (), note)
        with _opened(before, after, check) as connection:
            connection.execute(f"ATTACH ? AS {AFTER}", (uri(after),))
            tables, virtual = _compare_tables(connection, old, new, names, limit)
    return DatabaseDifference(settings, objects, tables, virtual)


def _compare_tables(
    connection: apsw.Connection, old: Schema, new: Schema, names: Sequence[str], limit: int
) -> tuple[tuple[TableDifference, ...], tuple[str, ...]]:
    encoding = str(old.settings["encoding"])
    wanted = {name.lower() for name in names}
    virtual = {key for schema in (old, new) for key, table in schema.tables.items() if table.kind == "virtual"}
    changed_virtual, differences = set(), []
    for key in sorted(old.tables.keys() | new.tables.keys()):
        sides = [
            table if (table := schema.tables.get(key)) and table.kind != "virtual" else None for schema in (old, new)
        ]
        owner = _owner(key, virtual) if any(side and side.kind == "shadow" for side in sides) else None
        if key in virtual or not _is_wanted(key, owner, wanted):
            continue
        shown = limit if owner is None or key in wanted else 1
        difference = _compared(connection, encoding, *sides, limit=shown)
        if difference.is_empty:
            continue
        if owner is not None and key not in wanted:
            changed_virtual.add(owner)
        else:
            differences.append(difference)
    return tuple(differences), tuple(sorted(_name_of(key, old, new) for key in changed_virtual))


def _compared(
    connection: apsw.Connection, encoding: str, before: Table | None, after: Table | None, *, limit: int
) -> TableDifference:
    """The difference of a table; a note instead if SQLite cannot compute it, for example with too many columns."""
    try:
        return compare_table(connection, encoding, before, after, limit=limit)
    except apsw.SQLError as exc:
        table = after or before
        assert table is not None
        return TableDifference(table.name, 0, 0, 0, (), f"rows cannot be compared: {exc}")


def _is_wanted(key: str, owner: str | None, wanted: set[str]) -> bool:
    if wanted:
        return key in wanted or owner in wanted
    return not key.startswith(INTERNAL_PREFIX)


def _owner(key: str, virtual: set[str]) -> str | None:
    """The virtual table that a shadow table belongs to."""
    return max((name for name in virtual if key.startswith(name + "_")), key=len, default=None)


def _name_of(key: str, old: Schema, new: Schema) -> str:
    table: Table = new.tables.get(key) or old.tables[key]
    return table.name


def _object_changes(old: Schema, new: Schema, names: Sequence[str]) -> tuple[ObjectChange, ...]:
    wanted = {name.lower() for name in names}
    shadows = {key for schema in (old, new) for key, table in schema.tables.items() if table.kind == "shadow"}
    changes = []
    for key in sorted(old.objects.keys() | new.objects.keys()):
        name = key[1].lower()
        change = ObjectChange(old.objects.get(key), new.objects.get(key))
        if change.before != change.after and (name in wanted if wanted else name not in shadows):
            changes.append(change)
    return tuple(changes)


def _require_tables(names: Sequence[str], *schemas: Schema) -> None:
    for name in names:
        if not any(name.lower() in schema.tables for schema in schemas):
            raise UsageError(
                f"there is no table {name!r} at either point", hint="see '.tables' of sqlite3, or leave --name out"
            )


def _schema(path: Path, check: Callable[[], None]) -> Schema:
    with _opened(path, path, check) as connection:
        damage = damage_of_structure(connection)
        if damage is not None:
            raise UnreadableDatabase(f"the database is damaged: {damage}", hint=_HINT_DAMAGED)
        return read_schema(connection)


@contextmanager
def _opened(path: Path, other: Path, check: Callable[[], None]) -> Iterator[apsw.Connection]:
    """A read-only connection to a file, to which `other` may be attached. Neither changes, nor is trusted."""
    connection = open_untrusted(path, check, steps=CHECK_STEPS, size=other.stat().st_size)
    with closing(connection):
        connection.collation_needed(_any_order)
        prepare(connection)
        yield connection


def _any_order(connection: apsw.Connection, name: str) -> None:
    """Define a collation of the application, without which SQLite cannot open its tables. No comparison uses it."""
    connection.create_collation(name, lambda one, other: (one > other) - (one < other))


@contextmanager
def _translated() -> Iterator[None]:
    """Translate errors of SQLite in the block into `UnreadableDatabase` or `EnvironmentProblem`."""
    try:
        yield
    except (apsw.FullError, apsw.IOError, apsw.NoMemError) as exc:
        raise EnvironmentProblem(
            f"SQLite ran out of space while it compared rows: {exc}", hint="free some space, or set TMPDIR"
        ) from exc
    except (apsw.NotADBError, apsw.CorruptError, apsw.TooBigError) as exc:
        raise UnreadableDatabase(f"SQLite cannot read the database: {exc}", hint=_HINT_DAMAGED) from exc
