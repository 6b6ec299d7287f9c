"""Reads the schema of a database: its settings, its SQL statements, its tables with their columns and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apsw

SETTINGS = ("page_size", "encoding", "auto_vacuum", "user_version", "application_id")
"""Fields of the database header that users can set."""

SCHEMA_TABLE = "sqlite_schema"
BUILT_IN_COLLATIONS = frozenset({"BINARY", "NOCASE", "RTRIM"})
ROWID_NAMES = ("rowid", "_rowid_", "oid")


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of a primary key, with what determines which keys are equal."""

    name: str
    type: str
    collation: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table of one database. `kind` is that of `PRAGMA table_list`: table, virtual or shadow.

    `columns` are those that are stored, not generated. `key` is the primary key; it is empty without one, or if its
    collation is unknown here. `nullable` are its columns that may be NULL, and then do not identify a row. `rowid` is a
    name of the rowid, None if there is none.
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    generated: tuple[str, ...]
    key: tuple[KeyColumn, ...]
    nullable: tuple[str, ...]
    rowid: str | None


@dataclass(frozen=True, slots=True)
class SchemaObject:
    """A row of `sqlite_schema` that has an SQL statement."""

    type: str
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class Schema:
    """The schema of one database. Tables are by name in lower case, since SQLite ignores case."""

    settings: dict[str, object]
    objects: dict[tuple[str, str], SchemaObject]
    tables: dict[str, Table]


def read_schema(connection: apsw.Connection) -> Schema:
    """Read the schema of the main database of a connection."""
    settings = {name: _one(connection, f"PRAGMA main.{name}") for name in SETTINGS}
    encoding = "utf-8" if settings["encoding"] == "UTF-8" else str(settings["encoding"])
    made = rows_of(connection, "SELECT type, name, CAST(sql AS BLOB) FROM main.sqlite_schema WHERE sql IS NOT NULL")
    objects = {(type, name): SchemaObject(type, name, sql.decode(encoding, "replace")) for type, name, sql in made}
    listed = rows_of(
        connection, "SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' AND type <> 'view'"
    )
    tables = {
        name.lower(): _table(connection, name, kind, bool(without_rowid))
        for name, kind, without_rowid in listed
        if name != SCHEMA_TABLE
    }
    return Schema(settings, objects, tables)


def rows_of(connection: apsw.Connection, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return connection.execute(sql, arguments).fetchall()


def quoted(name: str) -> str:
    """A name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def _table(connection: apsw.Connection, name: str, kind: str, without_rowid: bool) -> Table:
    if kind == "virtual":
        return Table(name, kind, (), (), (), (), None)
    columns = rows_of(connection, 'SELECT name, type, "notnull", pk, hidden FROM pragma_table_xinfo(?)', name)
    stored = tuple(column for column, _, _, _, hidden in columns if hidden == 0)
    generated = tuple(column for column, _, _, _, hidden in columns if hidden in (2, 3))
    taken = {column.lower() for column, *_ in columns}
    rowid = None if without_rowid else next((each for each in ROWID_NAMES if each not in taken), None)
    types = {column: type.upper() for column, type, *_ in columns}
    in_key = [column for column, _, _, pk, _ in sorted(columns, key=lambda row: row[3]) if pk]
    index = _one(connection, "SELECT name FROM pragma_index_list(?) WHERE origin = 'pk'", name)
    key: tuple[KeyColumn, ...] = ()
    if in_key and index is None:  # INTEGER PRIMARY KEY: the rowid itself
        key = tuple(KeyColumn(column, "INTEGER", "BINARY") for column in in_key)
    elif in_key:
        parts = rows_of(connection, "SELECT name, upper(coll) FROM pragma_index_xinfo(?) WHERE key", index)
        key = tuple(KeyColumn(column, types[column], collation) for column, collation in parts)
    if any(column.collation not in BUILT_IN_COLLATIONS for column in key):
        key = ()
    never_null = {column for column, _, notnull, _, _ in columns if notnull} | ({*in_key} if index is None else set())
    nullable = () if without_rowid else tuple(column.name for column in key if column.name not in never_null)
    return Table(name, kind, stored, generated, key, nullable, rowid)


def _one(connection: apsw.Connection, sql: str, *arguments: Any) -> Any:
    rows = rows_of(connection, sql, *arguments)
    return rows[0][0] if rows else None
