"""A client in a tight loop of read transactions: `python -m tests.helpers.hot_client DATABASE KIND`.

KIND is `stdlib`, `apsw` or `apsw-mmap`. Each transaction reads both values of protocol_mount's database, which must be
equal and never go back. On SIGTERM it makes some more of them and prints what it saw as JSON.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

QUERY = "SELECT a.value, b.value FROM a, b"


def stdlib(path: str) -> Callable[[], Any]:
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    return lambda: connection.execute(QUERY).fetchone()


def bundled(path: str, *, mmap_size: int) -> Callable[[], Any]:
    import apsw

    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    connection.execute(f"PRAGMA mmap_size={mmap_size}").fetchall()
    return lambda: connection.execute(QUERY).fetchall()[0]


def main(path: str, kind: str) -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    query = stdlib(path) if kind == "stdlib" else bundled(path, mmap_size=(1 << 28) if kind == "apsw-mmap" else 0)
    errors: Counter[str] = Counter()
    transactions = last = 0
    distinct = 0
    print("ready", flush=True)
    running = True
    while running:
        running = not stopped
        for _ in range(100):
            try:
                first, second = map(int, query())
            except Exception as exc:
                errors[f"{type(exc).__name__}: {exc} {getattr(exc, 'sqlite_errorname', '')}"] += 1
                continue
            transactions += 1
            if first != second:
                errors["torn"] += 1
            if first < last:
                errors["went back"] += 1
            distinct += first != last
            last = first
    print(json.dumps({"transactions": transactions, "distinct": distinct, "last": last, "errors": errors}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
