"""A bank whose every state is known: money that moves between accounts, and readers that compare.

    python -m tests.helpers.bank DATABASE KIND

`Bank` is the primary's side: each `step` is one transaction and one TXID, and goes into a ledger. The program is a
reader: KIND is `stdlib`, `apsw-mmap`, `cli` (the `sqlite3` program) or `holder` (each transaction lasts for seconds).
It prints `ready`, reads until SIGTERM, and prints what it saw as JSON: `transactions`, `errors`, and `observed`, the
state that it saw at each counter. Nothing waits for a lock: a single SQLITE_BUSY is an error.
"""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from litereplica.types import TXID
from tests.helpers.publisher import Publisher

ACCOUNTS = 3000
"""On some 300 pages: far more than a transaction changes, so that a reader has pages in the WAL and in the base."""
FIRST_BALANCE = 1000
TRANSFERS = 8
KEPT_ENTRIES = 200
HOLD_S = 2.0
PAUSE_S = 1.5
"""Between the transactions of `holder`: longer than the time after which a mount tries to restart its WAL again."""
THINK_S = 0.001
"""Between transactions of the others, so that the readers leave the machine to those whom they watch."""
CLI_TRANSACTIONS = 40
CLI_DEADLINE_S = 60

State: TypeAlias = list[int]
"""What the queries of a transaction return, the counter first."""

SETUP = f"""
CREATE TABLE meta(counter INTEGER);
INSERT INTO meta VALUES (1);
CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, owner TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
    INSERT INTO account SELECT i, {FIRST_BALANCE}, printf('%0400d', i) FROM n;
CREATE TABLE entry(id INTEGER PRIMARY KEY, source INTEGER, target INTEGER, amount INTEGER);
CREATE INDEX entry_target ON entry(target, amount);
"""

QUERIES = (
    "SELECT counter FROM meta",
    "SELECT count(*) FROM account",
    "SELECT sum(balance) FROM account",
    "SELECT sum(id * balance) FROM account",
    "SELECT count(*) FROM entry NOT INDEXED",
    "SELECT ifnull(sum(amount), 0) FROM entry NOT INDEXED",
    "SELECT ifnull(sum(target * amount), 0) FROM entry INDEXED BY entry_target",
)
TOTAL = ACCOUNTS * FIRST_BALANCE


@dataclass(slots=True)
class Bank:
    """The primary. `ledger[counter]` is the state at that counter, which is the TXID."""

    publisher: Publisher
    ledger: dict[TXID, State] = field(default_factory=dict)
    random: random.Random = field(default_factory=lambda: random.Random(20240229))

    @classmethod
    def open(cls, directory: Path, *, page_size: int = 4096) -> Bank:
        """A new bank, at TXID 1."""
        bank = cls(Publisher(directory, setup=SETUP, page_size=page_size))
        bank.note()
        return bank

    def step(self) -> TXID:
        """Some transfers as one transaction, published; returns the TXID."""
        statements = ["UPDATE meta SET counter = counter + 1"]
        for _ in range(TRANSFERS):
            source, target = self.random.sample(range(1, ACCOUNTS + 1), 2)
            amount = self.random.randrange(1, 100)
            statements += [
                f"UPDATE account SET balance = balance - {amount} WHERE id = {source}",
                f"UPDATE account SET balance = balance + {amount} WHERE id = {target}",
                f"INSERT INTO entry(source, target, amount) VALUES ({source}, {target}, {amount})",
            ]
        statements.append(f"DELETE FROM entry WHERE id <= (SELECT max(id) FROM entry) - {KEPT_ENTRIES}")
        self.publisher.transaction(*statements)
        self.note()
        return self.publisher.txid

    def note(self) -> None:
        """Enter the present state into the ledger."""
        state = observe(lambda sql: self.publisher.connection.execute(sql).fetchall())
        assert state[0] == self.publisher.txid
        assert state[2] == TOTAL
        self.ledger[state[0]] = state


Query: TypeAlias = Callable[[str], list[Any]]


def observe(query: Query) -> State:
    """The state that one transaction sees, all pages read anew; the caller has begun it."""
    query("PRAGMA shrink_memory")
    return [int(query(sql)[0][0]) for sql in QUERIES]


class Observer:
    """What one reader sees, and whether that can be."""

    def __init__(self) -> None:
        self.transactions = 0
        self.errors: Counter[str] = Counter()
        self.observed: dict[int, State] = {}
        self._last = 0

    def see(self, state: State) -> None:
        counter = state[0]
        self.transactions += 1
        if counter < self._last:
            self.errors[f"went back from {self._last} to {counter}"] += 1
        if self.observed.setdefault(counter, state) != state:
            self.errors[f"two states at {counter}: {self.observed[counter]}, {state}"] += 1
        self._last = counter

    def fail(self, exc: Exception) -> None:
        self.errors[f"{type(exc).__name__}: {exc} {getattr(exc, 'sqlite_errorname', '')}"] += 1


def read_with(query: Query, observer: Observer) -> None:
    """One transaction."""
    query("BEGIN")
    try:
        observer.see(observe(query))
    finally:
        query("COMMIT")
    time.sleep(THINK_S)


def hold_with(query: Query, observer: Observer) -> None:
    """One transaction that lasts, and looks again and again; then a pause, so that the WAL can restart."""
    query("BEGIN")
    try:
        end = time.monotonic() + HOLD_S
        first = observe(query)
        observer.see(first)
        while time.monotonic() < end:
            time.sleep(0.05)
            if (again := observe(query)) != first:
                observer.errors[f"the held snapshot changed: {first}, {again}"] += 1
        if (verdict := query("PRAGMA integrity_check")) != [("ok",)]:
            observer.errors[f"integrity: {verdict}"] += 1
    finally:
        query("COMMIT")
    time.sleep(PAUSE_S)


def run_cli(path: str, observer: Observer) -> None:
    """Some transactions in one run of the program, which opens the database anew."""
    script = "".join(f"BEGIN;{';'.join(QUERIES)};COMMIT;\n" for _ in range(CLI_TRANSACTIONS))
    done = subprocess.run(
        ["sqlite3", "-init", "/dev/null", "-batch", "-bail", path],
        input=script,
        capture_output=True,
        text=True,
        timeout=CLI_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0 or done.stderr:
        raise RuntimeError(f"sqlite3: exit code {done.returncode}: {done.stderr}")
    values = [int(line) for line in done.stdout.split()]
    for i in range(0, len(values), len(QUERIES)):
        observer.see(values[i : i + len(QUERIES)])


def reader(path: str, kind: str, observer: Observer) -> Callable[[], None]:
    """What a reader of this kind does again and again."""
    if kind == "cli":
        return lambda: run_cli(path, observer)
    if kind == "apsw-mmap":
        import apsw

        bundled = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        bundled.execute(f"PRAGMA mmap_size={1 << 28}").fetchall()
        return lambda: read_with(lambda sql: bundled.execute(sql).fetchall(), observer)
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    body = hold_with if kind == "holder" else read_with
    return lambda: body(lambda sql: connection.execute(sql).fetchall(), observer)


def main(path: str, kind: str) -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    observer = Observer()
    read = reader(path, kind, observer)
    print("ready", flush=True)
    running = True
    while running:
        running = not stopped
        try:
            read()
        except Exception as exc:
            observer.fail(exc)
    saw = {"transactions": observer.transactions, "errors": observer.errors, "observed": observer.observed}
    print(json.dumps(saw), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
