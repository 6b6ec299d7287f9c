"""Compares the rows of a table in two databases, by SQL in a connection to which both are attached.

Rows are matched by their primary key with its collation, as in the database itself; then each column must have the same
bytes and the same type. Without a usable key, or if a part of a key is NULL, the tables are compared as multisets of
whole rows. Generated columns are not compared.

SQLite streams the rows, and sorts on disk; only the rows that are shown are kept in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import apsw

from litereplica.difference.schema import Table, quoted, rows_of
from litereplica.difference.values import Value, text_value

BEFORE, AFTER = "main", "after"
"""The names of the two databases in the connection."""

_ZERO_SIGN = "litereplica_zero_sign"


class Change(Enum):
    """What happened to a row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row that differs; columns are by name.

    For an update, `key` identifies the row, and `before` and `after` have the columns that differ. Otherwise one of
    them has the whole row, and `count` is the number of equal rows. `key` is empty without a primary key.
    """

    change: Change
    key: dict[str, Value]
    before: dict[str, Value]
    after: dict[str, Value]
    count: int = 1


@dataclass(frozen=True, slots=True)
class TableDifference:
    """The difference of a table: the numbers of rows, and the first of them. `note` says what was not compared."""

    name: str
    inserted: int
    updated: int
    deleted: int
    rows: tuple[RowChange, ...]
    note: str | None = None

    @property
    def is_empty(self) -> bool:
        """True if nothing differs."""
        return not (self.inserted or self.updated or self.deleted or self.note)


def prepare(connection: apsw.Connection) -> None:
    """Register the functions that the statements of this module use."""
    connection.create_scalar_function(_ZERO_SIGN, _zero_sign, 1, deterministic=True)


def compare_table(
    connection: apsw.Connection, encoding: str, before: Table | None, after: Table | None, *, limit: int
) -> TableDifference:
    """Return the rows of a table that differ, at most `limit` of each kind. None stands for a table that is missing.

    `encoding` is the text encoding of the databases. Raises `apsw.Error`.
    """
    comparison = _Comparison(connection, encoding, limit)
    if before is None or after is None:
        return comparison.one_side(before, after)
    return comparison.both(before, after)


class _Comparison:
    """The statements for one table."""

    def __init__(self, connection: apsw.Connection, encoding: str, limit: int) -> None:
        self._connection = connection
        self._encoding = encoding
        self._limit = limit

    def one_side(self, before: Table | None, after: Table | None) -> TableDifference:
        """Compare a table that only one of the databases has: all its rows differ."""
        table = before or after
        assert table is not None
        change, schema = (Change.INSERT, AFTER) if before is None else (Change.DELETE, BEFORE)
        count, rows = self._whole_rows(change, table, f"FROM {schema}.{quoted(table.name)} AS t")
        inserted, deleted = (count, 0) if before is None else (0, count)
        return TableDifference(table.name, inserted, 0, deleted, rows)

    def both(self, before: Table, after: Table) -> TableDifference:
        common = [column for column in before.columns if column in after.columns]
        note = _columns_note(before, after, common)
        if not common:
            return TableDifference(after.name, 0, 0, 0, (), note)
        if before.key and before.key == after.key and not self._has_null_keys(before, after):
            return self._by_key(before, after, common, note)
        return self._by_whole_rows(before, after, common, note)

    def _has_null_keys(self, *tables: Table) -> bool:
        for schema, table in zip((BEFORE, AFTER), tables, strict=True):
            for column in table.nullable:
                sql = f"SELECT 1 FROM {schema}.{quoted(table.name)} WHERE {quoted(column)} IS NULL LIMIT 1"
                if rows_of(self._connection, sql):
                    return True
        return False

    def _by_key(self, before: Table, after: Table, common: Sequence[str], note: str | None) -> TableDifference:
        old, new = f"{BEFORE}.{quoted(before.name)}", f"{AFTER}.{quoted(after.name)}"
        match = " AND ".join(f"t.{quoted(each.name)} = u.{quoted(each.name)}" for each in before.key)
        missing = f"FROM {{}} AS t WHERE NOT EXISTS (SELECT 1 FROM {{}} AS u WHERE {match})"
        deleted, deletes = self._whole_rows(Change.DELETE, before, missing.format(old, new))
        inserted, inserts = self._whole_rows(Change.INSERT, after, missing.format(new, old))
        updated, updates = self._updates(before, common, f"FROM {old} AS t CROSS JOIN {new} AS u WHERE {match}")
        return TableDifference(after.name, inserted, updated, deleted, (*deletes, *updates, *inserts), note)

    def _whole_rows(self, change: Change, table: Table, source: str) -> tuple[int, tuple[RowChange, ...]]:
        """The rows `t` of a table that are in one database only: their number, and the first of them."""
        changes = []
        for (row,) in self._rows((table.columns,), "t", source):
            key = {each.name: row[each.name] for each in table.key}
            before, after = (row, {}) if change is Change.DELETE else ({}, row)
            changes.append(RowChange(change, key, before, after))
        return self._count(len(changes), source), tuple(changes)

    def _updates(self, table: Table, common: Sequence[str], source: str) -> tuple[int, tuple[RowChange, ...]]:
        source += f" AND NOT ({_all_same(common, common)})"
        changes = []
        for old, new in self._rows((common, common), "tu", source):
            differing = [column for column in common if not _is_same(old[column], new[column])]
            before, after = ({column: row[column] for column in differing} for row in (old, new))
            changes.append(RowChange(Change.UPDATE, {each.name: old[each.name] for each in table.key}, before, after))
        return self._count(len(changes), source), tuple(changes)

    def _rows(self, columns: Sequence[Sequence[str]], aliases: str, source: str) -> list[list[dict[str, Value]]]:
        """The first rows of a query: for each alias its columns."""
        wanted = [f"{alias}.{quoted(name)}" for alias, names in zip(aliases, columns, strict=True) for name in names]
        rows = self._connection.execute(f"SELECT {_read(wanted)} {source} LIMIT ?", (self._limit,))
        found = []
        for row in rows:
            values = iter(self._values(row))
            found.append([{name: next(values) for name in names} for names in columns])
        return found

    def _count(self, shown: int, source: str) -> int:
        if shown < self._limit:
            return shown
        ((count,),) = rows_of(self._connection, f"SELECT count(*) {source}")
        return int(count)

    def _by_whole_rows(self, before: Table, after: Table, common: Sequence[str], note: str | None) -> TableDifference:
        """Compare multisets of rows. Rows with equal rowids are compared first, so that few have to be sorted."""
        names = [f"c{number}" for number in range(len(common))]
        sides = []
        for sign, schema, other_schema, table, other in (
            (-1, BEFORE, AFTER, before, after),
            (1, AFTER, BEFORE, after, before),
        ):
            columns = ", ".join(f"t.{quoted(column)} AS {name}" for column, name in zip(common, names, strict=True))
            side = f"SELECT {sign} AS side, {columns} FROM {schema}.{quoted(table.name)} AS t"
            if table.rowid and other.rowid:
                there = f"u.{other.rowid} = t.{table.rowid} AND {_all_same(common, common)}"
                side += f" WHERE NOT EXISTS (SELECT 1 FROM {other_schema}.{quoted(other.name)} AS u WHERE {there})"
            sides.append(side)
        groups = ", ".join(f"typeof({name}), +{name} COLLATE BINARY, {_zero(name)}" for name in names)
        query = f"FROM ({' UNION ALL '.join(sides)}) GROUP BY {groups} HAVING sum(side) <> 0"
        changes = []
        for surplus, *row in self._connection.execute(
            f"SELECT sum(side), {_read(names)} {query} LIMIT ?", (self._limit,)
        ):
            values = dict(zip(common, self._values(row), strict=True))
            if surplus < 0:
                changes.append(RowChange(Change.DELETE, {}, values, {}, -surplus))
            else:
                changes.append(RowChange(Change.INSERT, {}, {}, values, surplus))
        ((inserted, deleted),) = rows_of(
            self._connection,
            f"SELECT ifnull(sum(max(n, 0)), 0), ifnull(sum(max(-n, 0)), 0) FROM (SELECT sum(side) AS n {query})",
        )
        return TableDifference(after.name, inserted, 0, deleted, tuple(changes), note)

    def _values(self, row: Sequence[Any]) -> list[Value]:
        """The values of a row that was selected with `_read`."""
        kinds, values = row[::2], row[1::2]
        return [
            text_value(value, self._encoding) if kind == "text" else value
            for kind, value in zip(kinds, values, strict=True)
        ]


def _read(expressions: Sequence[str]) -> str:
    """SQL that selects type and value of each expression; a text as a blob, since it need not be well-formed."""
    return ", ".join(
        f"typeof({each}), CASE typeof({each}) WHEN 'text' THEN CAST({each} AS BLOB) ELSE {each} END"
        for each in expressions
    )


def _all_same(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """SQL condition: the columns of `t` and `u` have the same bytes and types."""
    return " AND ".join(
        _same(f"t.{quoted(one)}", f"u.{quoted(other)}") for one, other in zip(ours, theirs, strict=True)
    )


def _same(one: str, other: str) -> str:
    # a unary plus takes the column's affinity away, which could convert one of the values
    return f"(+{one} COLLATE BINARY IS +{other} AND typeof({one}) = typeof({other}) AND {_zero(one)} IS {_zero(other)})"


def _zero(value: str) -> str:
    """SQL for the sign of a zero, which SQLite stores but does not compare; NULL for any other value."""
    return f"CASE WHEN typeof({value}) = 'real' AND {value} = 0.0 THEN {_ZERO_SIGN}({value}) END"


def _zero_sign(*values: Any) -> int:
    return int(math.copysign(1, values[0]))


def _is_same(one: Value, other: Value) -> bool:
    if type(one) is not type(other) or one != other:
        return False
    return not (isinstance(one, float) and isinstance(other, float)) or _zero_sign(one) == _zero_sign(other)


def _columns_note(before: Table, after: Table, common: Sequence[str]) -> str | None:
    dropped = [column for column in before.columns if column not in common]
    added = [column for column in after.columns if column not in common]
    parts = [f"{what} {', '.join(names)}" for what, names in (("added", added), ("dropped", dropped)) if names]
    if not parts:
        return None
    rest = "the other columns are compared" if common else "no column is the same: rows are not compared"
    return f"columns {'; '.join(parts)}; {rest}"
