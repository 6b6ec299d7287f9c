"""One client of a mount, in a process of its own.

    python -m soaking.reader KIND DATABASE NOTES SEED

KIND is `held` (one connection, short transactions), `fresh` (a connection for each transaction), `mmap` (apsw with
mmap_size), `cli` (the `sqlite3` program, a process for each transaction), `holder` (transactions of up to two
minutes, which look again and again) or `past` (states of the last minutes, from `.at`).

Prints `ready`, and reads until its stdin is closed. Appends what it sees to the file NOTES, a line of JSON each, so
that nothing is lost when it is killed (by SIGBUS, if it has mapped a file of which pages cannot be read). A connection
that failed is closed and opened anew.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from soaking.state import BALLAST_ROWS, Query, State, WrongRead, read_state, replay, statements

THINK_S = 0.3
"""Between transactions, on average: the readers share the machine with those whom they watch."""
RETRY_S = 0.5
HOLD_S = (5.0, 120.0)
PAST_S = (5.0, 90.0)
CLI_DEADLINE_S = 120
IO_ERRORS = ("unable to get the page", "Failed to read ptrmap")
"""How PRAGMA integrity_check tells of pages that could not be read."""
CHECK_EVERY = 40
"""One transaction in so many runs PRAGMA integrity_check."""


@dataclass(slots=True)
class Seen:
    """What a reader saw, on which mount: its notes.

    `failures`: begin and end (Unix time, seconds) and the error; `wrong`: what never was; `last_at`: when it wrote the
    last of its notes.
    """

    kind: str
    mount: str
    transactions: int = 0
    checks: int = 0
    states: dict[int, State] = field(default_factory=dict)
    past: list[tuple[float, State]] = field(default_factory=list)
    failures: list[tuple[float, float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    last_at: float = 0.0

    def read(self, notes: Path) -> None:
        """Take in all notes of a reader, which may have been killed while it wrote the last one."""
        newest = 0
        for line in notes.read_text().splitlines():
            try:
                what, self.last_at, *rest = json.loads(line)
            except ValueError:
                continue
            if what == "failure":
                self.failures.append((rest[0], self.last_at, rest[1]))
            elif what == "wrong":
                self.wrong.append(rest[0])
            elif what == "check":
                self.checks += 1
            elif what == "past":
                self.past.append((rest[0], tuple(rest[1])))
            else:
                state: State = tuple(rest[0])
                if state[0] < newest:
                    self.wrong.append(f"went back from {newest} to {state[0]}")
                if self.states.setdefault(state[0], state) != state:
                    self.wrong.append(f"two states at {state[0]}: {self.states[state[0]]} and {state}")
                newest = state[0]
            self.transactions += what in ("past", "state")


class Reader:
    """A client; `step` is one transaction, and raises what SQLite raises."""

    def __init__(self, kind: str, database: Path, notes: IO[str], seed: int) -> None:
        self._kind = kind
        self._notes = notes
        self._database = database
        self._random = random.Random(seed)
        self._started = time.time()
        self._query: Query | None = None
        self._close: Callable[[], None] = lambda: None
        self._steps: dict[str, Callable[[], None]] = {
            "held": self._short,
            "fresh": self._fresh,
            "mmap": self._short,
            "cli": self._cli,
            "holder": self._hold,
            "past": self._past,
        }

    def step(self) -> None:
        """One transaction of this kind."""
        self._steps[self._kind]()

    def note(self, *what: object) -> None:
        """Write a note: what it is, and its content."""
        print(json.dumps([what[0], time.time(), *what[1:]]), file=self._notes, flush=True)

    def close(self) -> None:
        """Give the connection back."""
        self._close()
        self._query, self._close = None, lambda: None

    def _see(self, state: State) -> None:
        self.note("state", state)

    def _read(self, query: Query) -> State:
        state = read_state(query, ballast=self._random.randrange(1, BALLAST_ROWS))
        if self._random.randrange(CHECK_EVERY) == 0:
            self.note("check")
            verdict = [str(row[0]) for row in query("PRAGMA integrity_check")]
            if any(words in line for line in verdict for words in IO_ERRORS):
                raise sqlite3.OperationalError(f"integrity_check: {verdict[0][:200]}")
            if verdict != ["ok"]:
                raise WrongRead(f"integrity at {state[0]}: {verdict}")
        return state

    def _connected(self) -> Query:
        if self._query is None:
            self._query, self._close = _connect(self._database, mapped=self._kind == "mmap")
        return self._query

    def _short(self) -> None:
        with _transaction(self._connected()) as query:
            self._see(self._read(query))

    def _fresh(self) -> None:
        self._short()
        self.close()

    def _hold(self) -> None:
        end = time.monotonic() + self._random.uniform(*HOLD_S)
        with _transaction(self._connected()) as query:
            first = self._read(query)
            self._see(first)
            while time.monotonic() < end and not _told_to_end(1.0):
                query("PRAGMA shrink_memory")
                if (again := self._read(query)) != first:
                    raise WrongRead(f"the held snapshot changed from {first} to {again}")

    def _cli(self) -> None:
        script = statements(ballast=self._random.randrange(1, BALLAST_ROWS))
        done = subprocess.run(
            ["sqlite3", "-init", "/dev/null", "-batch", "-bail", "-readonly", str(self._database)],
            input=f"BEGIN;{';'.join(script)};COMMIT;\n",
            capture_output=True,
            text=True,
            timeout=CLI_DEADLINE_S,
            check=False,
        )
        if done.returncode != 0 or done.stderr:
            raise sqlite3.OperationalError(f"sqlite3 ended with {done.returncode}: {done.stderr.strip()}")
        answers = [[tuple(line.split("|"))] for line in done.stdout.splitlines()]
        ballast = int(script[-1].split("BETWEEN ")[1].split()[0])
        self._see(read_state(replay(script, answers), ballast=ballast))

    def _past(self) -> None:
        """A state is the ledger's at its time; the judge compares."""
        at = max(time.time() - self._random.uniform(*PAST_S), self._started)
        name = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        query, close = _connect(self._database.parent / ".at" / name / self._database.name)
        try:
            with _transaction(query):
                self.note("past", at, self._read(query))
        finally:
            close()


def _connect(path: Path, *, mapped: bool = False) -> tuple[Query, Callable[[], None]]:
    if mapped:
        import apsw

        bundled = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        bundled.execute(f"PRAGMA mmap_size={1 << 28}").fetchall()
        return lambda sql: bundled.execute(sql).fetchall(), bundled.close
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=0)
    return lambda sql: connection.execute(sql).fetchall(), connection.close


@contextlib.contextmanager
def _transaction(query: Query) -> Iterator[Query]:
    query("PRAGMA shrink_memory")
    query("BEGIN")
    yield query
    query("COMMIT")


def _told_to_end(within_s: float) -> bool:
    return bool(select.select([sys.stdin], [], [], within_s)[0])


def main(kind: str, database: Path, notes: Path, seed: int) -> None:
    """Read until stdin is closed."""
    pause = random.Random(seed)
    with notes.open("a") as file:
        reader = Reader(kind, database, file, seed)
        print("ready", flush=True)
        while not _told_to_end(pause.uniform(0, 2 * THINK_S)):
            begun = time.time()
            try:
                reader.step()
            except WrongRead as exc:
                reader.note("wrong", str(exc))
                reader.close()
            except Exception as exc:  # whatever a driver raises: the judge decides
                reader.note(
                    "failure", begun, f"{type(exc).__name__}: {exc} {getattr(exc, 'sqlite_errorname', '')}".rstrip()
                )
                with contextlib.suppress(Exception):
                    reader.close()
                if _told_to_end(RETRY_S):
                    break


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
