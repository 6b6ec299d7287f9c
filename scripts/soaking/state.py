"""The database of the soak test: its tables, and the state that each transaction leaves behind.

A state is read by queries that must agree with each other at any moment, so that a reader notices a wrong page by
itself; and it is in the ledger under its counter, so that a state of another moment is noticed, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

State: TypeAlias = tuple[int, ...]
"""Counter, rows, sum of values, sum of values weighted by id: of the table `item`, as it was committed."""

Query: TypeAlias = Callable[[str], list[Any]]

BALLAST_ROWS = 3000
BALLAST_BYTES = 4000
"""Of each row: 12 MB that hardly ever change, more than a small cache holds. The text of a row follows from its id."""
ITEMS = 2000

_BALLAST_TEXT = "substr(replace(hex(zeroblob(2000)), '00', printf('%08x', {id} * 2654435761 % 4294967296)), 1, 4000)"

SETUP = f"""
PRAGMA page_size = 4096;
PRAGMA auto_vacuum = incremental;
PRAGMA journal_mode = wal;
CREATE TABLE state(counter INTEGER, items INTEGER, total INTEGER, weighted INTEGER);
CREATE TABLE item(id INTEGER PRIMARY KEY, value INTEGER, body BLOB);
CREATE INDEX item_value ON item(value);
CREATE TABLE ballast(id INTEGER PRIMARY KEY, text TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {BALLAST_ROWS})
    INSERT INTO ballast SELECT i, {_BALLAST_TEXT.format(id="i")} FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ITEMS})
    INSERT INTO item SELECT i, i % 97, randomblob(200) FROM n;
INSERT INTO state SELECT 1, count(*), sum(value), sum(id * value) FROM item;
"""

NOTE_STATE = """
UPDATE state SET counter = counter + 1, items = (SELECT count(*) FROM item),
    total = (SELECT ifnull(sum(value), 0) FROM item), weighted = (SELECT ifnull(sum(id * value), 0) FROM item)
"""
"""The last statement of each transaction."""

_STATE = "SELECT counter, items, total, weighted FROM state"
_COMPUTED = "SELECT count(*), ifnull(sum(value), 0), ifnull(sum(id * value), 0) FROM item NOT INDEXED"
_BY_INDEX = "SELECT count(*), ifnull(sum(value), 0), ifnull(sum(id * value), 0) FROM item INDEXED BY item_value"
_WRONG_BALLAST = f"SELECT count(*) FROM ballast WHERE id BETWEEN {{0}} AND {{0}} + 9 AND text <> {_BALLAST_TEXT}"


class WrongRead(Exception):
    """A transaction saw something that never was."""


def read_state(query: Query, *, ballast: int) -> State:
    """The state that one transaction sees; the caller has begun it.

    Also checks ten rows of ballast, from row `ballast` on. Raises `WrongRead` when the answers contradict each other.
    """
    state = tuple(map(int, query(_STATE)[0]))
    for sql in (_COMPUTED, _BY_INDEX):
        if (computed := tuple(map(int, query(sql)[0]))) != state[1:]:
            raise WrongRead(f"the state is {state}, and {sql} gives {computed}")
    wrong = query(_WRONG_BALLAST.format(ballast, id="id"))[0][0]
    if int(wrong):
        raise WrongRead(f"{wrong} of ten rows of ballast from {ballast} on are wrong at {state[0]}")
    return state


def statements(*, ballast: int) -> list[str]:
    """What `read_state` asks, in its order, for a client that takes a script."""
    return [_STATE, _COMPUTED, _BY_INDEX, _WRONG_BALLAST.format(ballast, id="id")]


def replay(statements_: list[str], answers: list[list[Any]]) -> Query:
    """A query that gives the answers of a script that has run already."""
    known = dict(zip(statements_, answers, strict=True))
    return lambda sql: known[sql]


def read_ledger(path: Path) -> Iterator[tuple[float, State]]:
    """Each commit of the application: when it returned (Unix time, seconds), and its state."""
    with path.open() as file:
        for line in file:
            at, *state = json.loads(line)
            yield at, tuple(state)
