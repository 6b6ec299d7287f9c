"""The soak test's own tools: the oracle notices what it is there to notice, and a short run finds nothing wrong."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from soaking.application import Application, create
from soaking.chaos import Window
from soaking.judge import judge
from soaking.reader import Seen
from soaking.soak import Plan, Run
from soaking.state import State, WrongRead, read_state
from soaking.subjects import Requests
from soaking.watch import Curve

ROOT = Path(__file__).parents[1]
LEDGER: dict[int, tuple[float, State]] = {1: (100.0, (1, 2, 3, 4)), 2: (200.0, (2, 5, 6, 7))}


@pytest.fixture
def database(tmp_path: Path) -> sqlite3.Connection:
    """The soak test's database after a transaction of each kind."""
    path = tmp_path / "app.db"
    create(path)
    with (tmp_path / "ledger").open("w") as ledger:
        application = Application(path, ledger, seed=1)
        for _ in range(60):
            application.step()
    return sqlite3.connect(path, isolation_level=None)


def state(database: sqlite3.Connection) -> tuple[int, ...]:
    return read_state(lambda sql: database.execute(sql).fetchall(), ballast=1)


def test_every_transaction_of_the_application_leaves_the_state_that_the_ledger_has(
    database: sqlite3.Connection, tmp_path: Path
) -> None:
    entries = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    assert [entry[1] for entry in entries] == list(range(1, 62))
    assert tuple(entries[-1][1:]) == state(database)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE item SET value = value + 1 WHERE id = (SELECT max(id) FROM item)",
        "DELETE FROM item WHERE id = (SELECT max(id) FROM item)",
        "UPDATE state SET total = total - 1",
        "UPDATE ballast SET text = text || ' ' WHERE id = 7",
    ],
)
def test_a_reader_notices_a_state_that_contradicts_itself(database: sqlite3.Connection, sql: str) -> None:
    database.execute(sql)
    with pytest.raises(WrongRead):
        state(database)


def run_of(seen: Seen, *, windows: list[Window] | None = None, curves: list[Curve] | None = None) -> Run:
    return Run(
        plan=Plan(minutes=30, seed=1, rate=0.0005, directory=Path()),
        began=0.0,
        ended=1800.0,
        ledger=LEDGER,
        application={"counts": {}, "longest_s": 0.0},
        readers=[seen],
        windows=windows or [],
        troubles=Counter(),
        drops=0,
        curves=curves or [],
        requests={"kept mount": Requests(Counter(poll=10), 10)},
        warnings=Counter(),
        log_lines={},
        faults=[],
    )


def seen_by_a_reader(tmp_path: Path, *notes: object) -> Seen:
    path = tmp_path / "notes"
    path.write_text("".join(json.dumps(note) + "\n" for note in notes) + '["state", 1')
    seen = Seen("held", "killed mount")
    seen.read(path)
    return seen


def test_what_agrees_with_the_ledger_is_no_problem(tmp_path: Path) -> None:
    notes = (["state", 150.0, [1, 2, 3, 4]], ["past", 210.0, 205.0, [2, 5, 6, 7]], ["state", 210.0, [2, 5, 6, 7]])
    seen = seen_by_a_reader(tmp_path, *notes)
    assert seen.transactions == 3
    assert judge(run_of(seen)).problems == []


@pytest.mark.parametrize(
    ("notes", "problem"),
    [
        ([["state", 150.0, [1, 2, 3, 5]]], "is not in the ledger"),
        ([["state", 150.0, [3, 2, 3, 4]]], "is not in the ledger"),
        ([["state", 150.0, [2, 5, 6, 7]], ["state", 151.0, [1, 2, 3, 4]]], "went back from 2 to 1"),
        ([["past", 150.0, 120.0, [2, 5, 6, 7]]], "later than the time that was asked for"),
        ([["past", 150.0, 120.0, [1, 5, 6, 7]]], "is not in the ledger"),
        ([["wrong", 150.0, "integrity"]], "integrity"),
        ([["failure", 150.0, 149.0, "disk I/O error"]], "disk I/O error"),
    ],
)
def test_what_contradicts_the_ledger_is_a_problem(tmp_path: Path, notes: list[object], problem: str) -> None:
    verdict = judge(run_of(seen_by_a_reader(tmp_path, *notes)))
    assert len(verdict.problems) == 1
    assert problem in verdict.problems[0]


@pytest.mark.parametrize(
    ("window", "allowed"),
    [
        (Window("killed mount", 145.0, 149.5), True),
        (Window("kept mount", 145.0, 149.5), False),
        (Window("cut", 100.0, 149.5), True),
        (Window("cut", 145.0, 149.5), False),
        (Window("cut", 20.0, 90.0), False),
    ],
)
def test_a_failure_needs_a_trouble_that_explains_it(tmp_path: Path, window: Window, allowed: bool) -> None:
    seen = seen_by_a_reader(tmp_path, ["failure", 150.0, 149.0, "disk I/O error"])
    verdict = judge(run_of(seen, windows=[window]))
    assert (verdict.problems == []) is allowed
    assert verdict.allowed.total() == allowed


def test_a_curve_that_rises_is_a_problem(tmp_path: Path) -> None:
    flat = Curve("threads", (1.0, 9.0, 9.0, 10.0, 9.0, 9.0))
    rising = Curve("memory", (1.0, 9.0, 20.0, 20.0, 40.0, 45.0))
    verdict = judge(run_of(seen_by_a_reader(tmp_path, ["state", 150.0, [1, 2, 3, 4]]), curves=[flat, rising]))
    assert len(verdict.problems) == 1
    assert verdict.problems[0].startswith("memory")


@pytest.mark.slow
def test_a_short_run_finds_nothing_wrong(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    command = ["scripts/soak", "--minutes", "0.7", "--seed", "3", "--directory", str(tmp_path), "--report", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No wrong read, and no error beyond those that SEMANTICS allows." in report.read_text()
