"""What differs between two databases: the difference applied to the first gives the second; each kind of table, value
and schema on its own. All databases are made through apsw, the one SQLite of this process that opens them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litereplica.difference import databases
from litereplica.difference.databases import DatabaseDifference, UnreadableDatabase, compare_databases
from litereplica.difference.pages import compare_pages
from litereplica.difference.rows import Change, RowChange, TableDifference
from litereplica.difference.values import CODECS, RawText, Value, json_value, literal
from litereplica.errors import EnvironmentProblem, UsageError

ALL = 10_000


def series(low: int, high: int) -> str:
    """A subquery with the column `value`."""
    step = f"SELECT {low} UNION ALL SELECT value + 1 FROM s WHERE value < {high}"
    return f"(WITH RECURSIVE s(value) AS ({step}) SELECT value FROM s)"


def going_on() -> None:
    """Nothing ends the comparison."""


def make(path: Path, *statements: str, encoding: str = "UTF-8") -> Path:
    """Run statements in a database, new or not, and leave it in rollback mode."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'; PRAGMA journal_mode = delete; PRAGMA synchronous = off")
        for statement in statements:
            with suppress(apsw.MismatchError):  # an INTEGER PRIMARY KEY that is none
                connection.execute(statement)
    return path


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., DatabaseDifference]:
    """Compare what `first` makes with what `then` makes of that."""

    def run(first: list[str], then: list[str], names: tuple[str, ...] = (), limit: int = ALL) -> DatabaseDifference:
        before = make(tmp_path / "before.db", *first)
        (tmp_path / "after.db").write_bytes(before.read_bytes())
        after = make(tmp_path / "after.db", *then)
        return compare_databases(before, after, names=names, limit=limit, check=going_on)

    return run


def changes(difference: DatabaseDifference) -> dict[str, list[RowChange]]:
    return {table.name: list(table.rows) for table in difference.tables}


# --- the oracle ------------------------------------------------------------------------------

TABLES = {
    "numbered": ("(id INTEGER PRIMARY KEY, a, b TEXT)", ("id", "a", "b")),
    "paired": ("(a TEXT COLLATE NOCASE, b, c, PRIMARY KEY (b, a)) WITHOUT ROWID", ("a", "b", "c")),
    "named": ("(a PRIMARY KEY, b REAL, c)", ("a", "b", "c")),
    "loose": ("(a, b TEXT COLLATE RTRIM, rowid)", ("a", "b", "rowid")),
    "hidden": ("(rowid, oid, _rowid_)", ("rowid", "oid", "_rowid_")),
    "made": ("(a INTEGER PRIMARY KEY DESC, b, c AS (b || 'x') STORED, d AS (a))", ("a", "b")),
}
"""Tables, and the columns that can be written."""

NEAR = ["0", "0.0", "-0.0", "1", "1.0", "'1'", "'a'", "'A'", "'a '", "X'61'"]
FAR = [
    "NULL",
    "-1",
    "9223372036854775807",
    "9e999",
    "0.1",
    "''",
    "X''",
    "CAST(X'ff00' AS TEXT)",
    "CAST(X'610062' AS TEXT)",
]
FAR += ["'Ω'", "2", "3", "'b'"]
SQL_VALUES = st.one_of(st.sampled_from(NEAR), st.sampled_from(NEAR + FAR))


@st.composite
def statements(draw: st.DrawFn) -> str:
    table = draw(st.sampled_from(sorted(TABLES)))
    columns = TABLES[table][1]
    column = draw(st.sampled_from(columns))
    match draw(st.integers(0, 5)):
        case 0:
            return f"DELETE FROM {table} WHERE {column} IS {draw(SQL_VALUES)}"
        case 1 | 2:
            other = draw(st.sampled_from(columns))
            where = draw(st.sampled_from(["", f" WHERE {other} IS {draw(SQL_VALUES)}"]))
            return f"UPDATE OR IGNORE {table} SET {column} = {draw(SQL_VALUES)}{where}"
        case _:
            values = ", ".join(draw(SQL_VALUES) for _ in columns)
            return f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({values})"


Row = tuple[tuple[str, str], ...]
"""(column, value told exactly) of each column."""


def rows_in(path: Path, table: str) -> Counter[Row]:
    columns = TABLES[table][1]
    reads = ", ".join(
        f"typeof({name}), CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB) ELSE {name} END" for name in columns
    )
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        rows = connection.execute(f"SELECT {reads} FROM {table}").fetchall()
    told = [
        [f"text {value!r}" if kind == "text" else exact(value) for kind, value in zip(row[::2], row[1::2], strict=True)]
        for row in rows
    ]
    return Counter(tuple(zip(columns, values, strict=True)) for values in told)


def exact(value: object, codec: str = "utf-8") -> str:
    """A value and its type."""
    if isinstance(value, str):
        return f"text {value.encode(codec)!r}"
    if isinstance(value, RawText):
        return f"text {value.data!r}"
    return f"{type(value).__name__} {value!r}"


def applied(rows: Counter[Row], table: TableDifference, codec: str) -> Counter[Row]:
    """The rows after the changes."""
    result = Counter(rows)

    def told(values: dict[str, Value]) -> dict[str, str]:
        return {name: exact(value, codec) for name, value in values.items()}

    for each in sorted(table.rows, key=lambda each: [Change.DELETE, Change.UPDATE, Change.INSERT].index(each.change)):
        if each.change is Change.DELETE:
            result[tuple(told(each.before).items())] -= each.count
        elif each.change is Change.INSERT:
            result[tuple(told(each.after).items())] += each.count
        else:
            key = told(each.key).items()
            (old,) = [row for row in rows if key <= dict(row).items()]
            assert told(each.before).items() <= dict(old).items()
            result[old] -= 1
            result[tuple((dict(old) | told(each.after)).items())] += 1
    assert min(result.values(), default=0) >= 0
    return +result


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le"])
@given(first=st.lists(statements(), max_size=25), then=st.lists(statements(), min_size=1, max_size=12))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_difference_applied_to_the_first_database_gives_the_second(
    tmp_path_factory: pytest.TempPathFactory, encoding: str, first: list[str], then: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("oracle")
    schema = [f"CREATE TABLE {name} {columns}" for name, (columns, _) in TABLES.items()]
    before = make(directory / "before.db", *schema, *first, encoding=encoding)
    (directory / "after.db").write_bytes(before.read_bytes())
    after = make(directory / "after.db", *then)
    found = {table.name: table for table in compare_databases(before, after, limit=ALL, check=going_on).tables}
    for name in TABLES:
        old, new = rows_in(before, name), rows_in(after, name)
        if name not in found:
            assert old == new
            continue
        table = found[name]
        assert old != new
        assert applied(old, table, CODECS[encoding]) == new
        counted = Counter[Change]()
        for each in table.rows:
            counted[each.change] += each.count
        assert (table.inserted, table.updated, table.deleted) == tuple(counted[change] for change in Change)


# --- rows ------------------------------------------------------------------------------------


def test_rows_are_matched_by_key_and_only_what_differs_is_told(compare: Callable[..., DatabaseDifference]) -> None:
    found = compare(
        ["CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)", "INSERT INTO t VALUES (1, 'x', 1), (2, 'y', 2), (3, 'z', 3)"],
        ["DELETE FROM t WHERE id = 1", "UPDATE t SET b = 5 WHERE id = 2", "INSERT INTO t VALUES (9, NULL, X'00')"],
    )
    assert changes(found) == {
        "t": [
            RowChange(Change.DELETE, {"id": 1}, {"id": 1, "a": "x", "b": 1}, {}),
            RowChange(Change.UPDATE, {"id": 2}, {"b": 2}, {"b": 5}),
            RowChange(Change.INSERT, {"id": 9}, {}, {"id": 9, "a": None, "b": b"\0"}),
        ]
    }


ALIKE = [
    ("0.0", "-0.0"),
    ("1", "1.0"),
    ("'a'", "'A'"),
    ("'a'", "'a '"),
    ("'a'", "X'61'"),
    ("NULL", "0"),
    ("''", "NULL"),
]
ALIKE += [("CAST(X'6100' AS TEXT)", "'a'"), ("9007199254740993", "9007199254740992.0"), ("'1'", "1")]


@pytest.mark.parametrize("columns", ["(id INTEGER PRIMARY KEY, v COLLATE NOCASE)", "(id, v COLLATE RTRIM)"])
@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_values_that_are_nearly_the_same_differ(
    compare: Callable[..., DatabaseDifference], columns: str, one: str, other: str
) -> None:
    found = compare([f"CREATE TABLE t {columns}", f"INSERT INTO t VALUES (1, {one})"], [f"UPDATE t SET v = {other}"])
    (table,) = found.tables
    old, new = (next(side["v"] for row in table.rows if (side := getattr(row, name))) for name in ("before", "after"))
    assert exact(old) != exact(new)


@pytest.mark.parametrize(("one", "other"), [("'a'", "'A'"), ("1", "1.0"), ("0.0", "-0.0")])
def test_a_key_that_changed_but_is_equal_is_an_update(
    compare: Callable[..., DatabaseDifference], one: str, other: str
) -> None:
    found = compare(
        ["CREATE TABLE t (k COLLATE NOCASE PRIMARY KEY, v) WITHOUT ROWID", f"INSERT INTO t VALUES ({one}, 5)"],
        [f"UPDATE t SET k = {other}"],
    )
    (table,) = found.tables
    assert (table.inserted, table.updated, table.deleted) == (0, 1, 0)
    assert exact(table.rows[0].before["k"]) != exact(table.rows[0].after["k"])


def test_without_a_key_rows_are_counted(compare: Callable[..., DatabaseDifference]) -> None:
    found = compare(
        ["CREATE TABLE t (a, b)", "INSERT INTO t VALUES (1, 1), (1, 1), (2, 2), (3, 3)"],
        ["DELETE FROM t", "INSERT INTO t VALUES (3, 3), (1, 1), (4, 4), (4, 4)"],
    )
    (table,) = found.tables
    assert (table.inserted, table.updated, table.deleted) == (2, 0, 2)
    assert sorted((each.change.value, each.count, repr(each.before or each.after)) for each in table.rows) == [
        ("delete", 1, "{'a': 1, 'b': 1}"),
        ("delete", 1, "{'a': 2, 'b': 2}"),
        ("insert", 2, "{'a': 4, 'b': 4}"),
    ]


def test_vacuum_that_renumbers_rows_changes_none(compare: Callable[..., DatabaseDifference]) -> None:
    fill = f"INSERT INTO t SELECT value, randomblob(300) FROM {series(1, 300)}"
    found = compare(["CREATE TABLE t (a, b)", fill, "DELETE FROM t WHERE a % 3 = 0"], ["VACUUM"])
    assert found.tables == ()


def test_a_key_with_null_is_compared_by_whole_rows(compare: Callable[..., DatabaseDifference]) -> None:
    found = compare(
        ["CREATE TABLE t (a TEXT PRIMARY KEY, b)", "INSERT INTO t VALUES (NULL, 1), (NULL, 2), ('k', 3)"],
        ["UPDATE t SET b = 5 WHERE b = 2"],
    )
    (table,) = found.tables
    assert (table.inserted, table.updated, table.deleted) == (1, 0, 1)


def test_all_rows_are_counted_though_few_are_told(compare: Callable[..., DatabaseDifference]) -> None:
    insert = "INSERT INTO {} SELECT value, value FROM {}"
    first = ["CREATE TABLE t (id INTEGER PRIMARY KEY, a)", "CREATE TABLE u (a, b)"]
    first += [insert.format(table, series(1, 100)) for table in "tu"]
    then = ["DELETE FROM t WHERE id <= 10", "UPDATE t SET a = -a WHERE id > 80", "UPDATE u SET b = -b WHERE a > 80"]
    found = compare(
        first,
        [*then, insert.format("t", series(201, 230))],
        limit=3,
    )
    by_key, whole = found.tables
    assert (by_key.inserted, by_key.updated, by_key.deleted, len(by_key.rows)) == (30, 20, 10, 9)
    assert (whole.inserted, whole.updated, whole.deleted, len(whole.rows)) == (20, 0, 20, 3)
    found = compare([], [], limit=0)
    assert found.tables == ()


def test_collations_and_functions_of_the_application_are_not_needed(tmp_path: Path) -> None:
    before, after = tmp_path / "before.db", tmp_path / "after.db"
    for path, value in ((before, "x"), (after, "y")):
        with closing(apsw.Connection(str(path))) as connection:
            connection.create_collation("ours", lambda one, other: (one < other) - (one > other))
            connection.create_scalar_function("f", lambda *values: values[0], 1, deterministic=True)
            connection.execute("CREATE TABLE t (a COLLATE ours PRIMARY KEY, b, c AS (f(b))) WITHOUT ROWID")
            connection.execute("CREATE TABLE u (id INTEGER PRIMARY KEY, b COLLATE ours)")
            connection.execute("CREATE INDEX i ON u (f(b))")
            connection.execute("INSERT INTO t (a, b) VALUES ('1', 1), ('2', 2), ('3', ?)", (value,))
            connection.execute("INSERT INTO u VALUES (1, 'same'), (2, ?)", (value,))
    found = compare_databases(before, after, limit=ALL, check=going_on)
    assert [(table.name, table.inserted, table.updated, table.deleted) for table in found.tables] == [
        ("t", 1, 0, 1),
        ("u", 0, 1, 0),
    ]


def test_names_of_any_kind_are_quoted(compare: Callable[..., DatabaseDifference]) -> None:
    found = compare(
        ['CREATE TABLE "a ""b"" \'; --" ("select" INTEGER PRIMARY KEY, "x"" y")'],
        ['INSERT INTO "a ""b"" \'; --" VALUES (1, 2)'],
    )
    assert changes(found)['a "b" \'; --'][0].after == {"select": 1, 'x" y': 2}


# --- schema ----------------------------------------------------------------------------------


def test_schema_and_settings(compare: Callable[..., DatabaseDifference]) -> None:
    views = ["DROP VIEW v", "CREATE VIEW v AS SELECT 2"]
    tables = [
        "DROP TABLE gone",
        "CREATE TABLE new (a)",
        "INSERT INTO new VALUES (2), (3)",
        "CREATE INDEX i ON kept (a)",
    ]
    found = compare(
        ["CREATE TABLE kept (a)", "CREATE TABLE gone (a)", "INSERT INTO gone VALUES (1)", "CREATE VIEW v AS SELECT 1"],
        [*views, *tables, "PRAGMA user_version = 7"],
    )
    assert found.settings == {"user_version": (0, 7)}
    told = {
        (each.after or each.before).name: (each.before is not None, each.after is not None)  # type: ignore[union-attr]
        for each in found.objects
    }
    assert told == {"gone": (True, False), "new": (False, True), "i": (False, True), "v": (True, True)}
    assert [(table.name, table.inserted, table.deleted) for table in found.tables] == [("gone", 0, 1), ("new", 2, 0)]


def test_columns_that_both_have_are_compared_and_it_says_so(compare: Callable[..., DatabaseDifference]) -> None:
    found = compare(
        ["CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)", "INSERT INTO t VALUES (1, 1, 1), (2, 2, 2)"],
        ["ALTER TABLE t ADD COLUMN c DEFAULT 5", "ALTER TABLE t DROP COLUMN b", "UPDATE t SET a = 9 WHERE id = 2"],
    )
    (table,) = found.tables
    assert table.rows == (RowChange(Change.UPDATE, {"id": 2}, {"a": 2}, {"a": 9}),)
    assert table.note == "columns added c; dropped b; the other columns are compared"


def test_tables_without_a_common_column_are_not_compared(compare: Callable[..., DatabaseDifference]) -> None:
    found = compare(["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"], ["ALTER TABLE t RENAME COLUMN a TO b"])
    assert "rows are not compared" in str(found.tables[0].note)


@pytest.mark.parametrize("module", ["fts5(a, b)", "rtree(id, x, y)"])
def test_a_virtual_table_is_named_and_its_shadow_tables_are_not(
    compare: Callable[..., DatabaseDifference], module: str
) -> None:
    first = [
        f"CREATE VIRTUAL TABLE v USING {module}",
        "CREATE VIRTUAL TABLE v_x USING fts5(z)",
        "CREATE TABLE v_own (a)",
    ]
    row = "INSERT INTO v VALUES (1, 2)" if "fts5" in module else "INSERT INTO v VALUES (1, 2, 3)"
    found = compare(first, [row, "INSERT INTO v_own VALUES (1)"])
    assert found.virtual == ("v",)
    assert [table.name for table in found.tables] == ["v_own"]
    assert found.objects == ()


def test_a_table_that_is_too_wide_is_told_of_and_the_others_are_compared(
    compare: Callable[..., DatabaseDifference],
) -> None:
    columns = ", ".join(f"c{number}" for number in range(1500))
    found = compare(
        [f"CREATE TABLE wide (id INTEGER PRIMARY KEY, {columns})", "CREATE TABLE t (a)"],
        ["INSERT INTO wide (id) VALUES (1)", "INSERT INTO t VALUES (1)"],
    )
    narrow, wide = found.tables
    assert (narrow.name, narrow.inserted) == ("t", 1)
    assert (wide.name, str(wide.note).startswith("rows cannot be compared: ")) == ("wide", True)


def test_only_the_named_tables_are_compared(compare: Callable[..., DatabaseDifference]) -> None:
    first = ["CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT)", "CREATE TABLE u (a)"]
    then = ["INSERT INTO t VALUES (7)", "INSERT INTO u VALUES (7)", "CREATE INDEX i ON u (a)"]
    found = compare(first, then, names=("T", "sqlite_sequence"))
    assert [table.name for table in found.tables] == ["sqlite_sequence", "t"]
    assert found.objects == ()
    with pytest.raises(UsageError, match="'nowhere'"):
        compare([], [], names=("nowhere",))


def test_other_encodings_and_page_sizes(tmp_path: Path) -> None:
    statement = ["CREATE TABLE t (a)", "INSERT INTO t VALUES ('x')"]
    before = make(tmp_path / "before.db", *statement)
    after = make(tmp_path / "after.db", "PRAGMA page_size = 1024", *statement)
    found = compare_databases(before, after, limit=ALL, check=going_on)
    assert (found.settings, found.tables) == ({"page_size": (4096, 1024)}, ())
    after = make(tmp_path / "utf16.db", *statement, encoding="UTF-16be")
    found = compare_databases(before, after, limit=ALL, check=going_on)
    assert found.settings == {"encoding": ("UTF-8", "UTF-16be")}
    assert "not compared" in str(found.note)


# --- failures --------------------------------------------------------------------------------


def test_a_database_that_sqlite_cannot_read_is_an_error_of_ours(tmp_path: Path) -> None:
    before = make(tmp_path / "before.db", "CREATE TABLE t (a)")
    after = tmp_path / "after.db"
    after.write_bytes(b"encrypted" * 500)
    with pytest.raises(UnreadableDatabase):
        compare_databases(before, after, limit=ALL, check=going_on)
    data = bytearray(before.read_bytes())
    data[100] = 77  # no kind of page
    after.write_bytes(data)
    with pytest.raises(UnreadableDatabase):
        compare_databases(before, after, limit=ALL, check=going_on)


def test_no_room_for_sorting_is_a_problem_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = make(tmp_path / "one.db", "CREATE TABLE t (a)")

    def full(*args: object, **options: object) -> None:
        raise apsw.FullError("database or disk is full")

    monkeypatch.setattr(databases, "compare_table", full)
    with pytest.raises(EnvironmentProblem, match="ran out of space"):
        compare_databases(path, path, limit=ALL, check=going_on)


def test_the_check_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    def end() -> None:
        raise Ended

    monkeypatch.setattr(databases, "CHECK_STEPS", 10)
    path = make(tmp_path / "one.db", "CREATE TABLE t (a)", f"INSERT INTO t SELECT value FROM {series(1, 1000)}")
    with pytest.raises(Ended):
        compare_databases(path, path, limit=ALL, check=end)


# --- values and pages ------------------------------------------------------------------------

VALUES: list[tuple[Value, str, object]] = [
    (None, "NULL", None),
    (-9223372036854775808, "-9223372036854775808", -9223372036854775808),
    (1.0, "1.0", 1.0),
    (-0.0, "-0.0", -0.0),
    (math.inf, "9e999", {"real": "Infinity"}),
    (-math.inf, "-9e999", {"real": "-Infinity"}),
    ("it's", "'it''s'", "it's"),
    ("a\nb\\\x1b\0\U000e0001", "unistr('a\\u000ab\\\\\\u001b\\u0000\\+0e0001')", "a\nb\\\x1b\0\U000e0001"),
    (b"\0\xff", "X'00ff'", {"blob": "AP8="}),
    (RawText(b"\xff"), "CAST(X'ff' AS TEXT)", {"text": "/w=="}),
]


@pytest.mark.parametrize(("value", "sql", "json"), VALUES)
def test_values_are_written_as_sql_that_makes_them_and_as_json(value: Value, sql: str, json: object) -> None:
    assert literal(value) == sql
    assert repr(json_value(value)) == repr(json)
    with closing(apsw.Connection(":memory:")) as connection:
        kind, data = connection.execute(f"SELECT typeof(v), CAST(v AS BLOB) FROM (SELECT {sql} AS v)").fetchone()  # type: ignore[misc]
        made = connection.execute(f"SELECT {sql}").fetchone()[0] if kind != "text" else data  # type: ignore[index]
    expected = value.encode() if isinstance(value, str) else value.data if isinstance(value, RawText) else value
    assert repr(made) == repr(expected)


def test_large_values_are_cut_in_literals() -> None:
    assert literal("x" * 12345).endswith("x'… (12,345 characters)")
    assert literal(b"x" * 12345).endswith("78'… (12,345 bytes)")
    assert len(literal("x" * 12345)) < 300


def test_pages_that_differ(tmp_path: Path) -> None:
    before, after = tmp_path / "before.db", tmp_path / "after.db"
    fill = f"INSERT INTO t SELECT randomblob(400) FROM {series(1, 20000)}"
    make(before, "CREATE TABLE t (a)", fill)
    data = bytearray(before.read_bytes())
    size, pages = 4096, len(data) // 4096
    assert pages > 2048  # several pieces
    for pgno in (2, 3, 4, 1025, pages):
        data[pgno * size - 1] ^= 1
    after.write_bytes(data + bytes(3 * size))
    found = compare_pages(before, after, check=going_on)
    assert found.ranges() == [(2, 4), (1025, 1025), (pages, pages)]
    assert (found.counts, found.page_sizes, found.is_empty) == ((pages, pages + 3), (size, size), False)
    assert compare_pages(before, before, check=going_on).is_empty


@pytest.fixture(autouse=True)
def no_temporary_files_are_left(tmp_path: Path) -> Iterator[None]:
    """Read-only and immutable: nothing appears beside the databases."""
    yield
    assert {path.suffix for path in tmp_path.iterdir()} <= {".db"}
