"""An application in a process of its own, that owns a database through the interpreter's sqlite3.

The writer links another SQLite; two of them must not open one file in one process. Tests talk to the application line
by line: one JSON request, one JSON answer. They wait for answers in a thread, since the application may have to wait
for the writer, which runs in the test's event loop.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

ANSWER_DEADLINE_S = 30.0
BUSY_TIMEOUT_S = 5.0


class Application:
    """One connection to a database in another process; `journal_mode` is set when it begins.

    >>> with Application(tmp_path / "app.db", page_size=512) as app:
    ...     await app("CREATE TABLE t (x)")
    ...     image = await app.image()
    """

    def __init__(self, database: Path, *, page_size: int = 4096, journal_mode: str = "wal", setup: str = "") -> None:
        self.database = database
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.helpers.app", str(database)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._ask({"script": f"PRAGMA page_size = {page_size}; {setup} PRAGMA journal_mode = {journal_mode}"})

    async def __call__(self, sql: str, *parameters: Any) -> list[list[Any]]:
        """Run one statement, in autocommit mode unless a transaction was begun; its rows."""
        rows: list[list[Any]] = await self._request({"sql": sql, "parameters": parameters})
        return rows

    async def script(self, sql: str) -> None:
        """Run statements."""
        await self._request({"script": sql})

    async def image(self) -> bytes:
        """The bytes of the whole database, as a reader sees it now: WAL and file together."""
        path = self.database.with_name("image")
        await self._request({"image": str(path)})
        return path.read_bytes()

    async def commits(self, count: int) -> None:
        """Commit so many rows into `t (x)`, each in a transaction of its own, without a pause."""
        await self._request({"commits": count})

    def call(self, sql: str, *parameters: Any) -> list[list[Any]]:
        """As calling the object itself, for tests that are not asynchronous."""
        rows: list[list[Any]] = self._ask({"sql": sql, "parameters": parameters})
        return rows

    def digest(self) -> str:
        """SHA-256 of the database's bytes, as a reader sees it now."""
        return str(self._ask({"digest": True}))

    def save(self, path: Path) -> None:
        """Write the database's bytes, as a reader sees it now, to another file."""
        self._ask({"image": str(path)})

    def disconnect(self) -> None:
        """Close the connection; the next request opens another."""
        self._ask({"disconnect": True})

    def close(self) -> None:
        """Close the connection as a program does that ends."""
        if self._process.poll() is None:
            self._process.communicate(timeout=ANSWER_DEADLINE_S)

    def kill(self) -> None:
        """End it without closing the connection."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Application:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _request(self, request: dict[str, Any]) -> Any:
        return await trio.to_thread.run_sync(self._ask, request)

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise sqlite3.OperationalError(answer["error"])
        return answer["rows"]


def _serve(database: str) -> None:
    connection: sqlite3.Connection | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if connection is None:
                connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            answer = {"rows": _answer(connection, request)}
            if "disconnect" in request:
                connection.close()
                connection = None
        except sqlite3.Error as exc:
            answer = {"error": str(exc)}
        print(json.dumps(answer), flush=True)
    if connection is not None:
        connection.close()


def _answer(connection: sqlite3.Connection, request: dict[str, Any]) -> Any:
    if "script" in request:
        connection.executescript(request["script"])
        return []
    if "image" in request:
        Path(request["image"]).write_bytes(connection.serialize())
        return []
    if "digest" in request:
        return hashlib.sha256(connection.serialize()).hexdigest()
    if "disconnect" in request:
        return []
    if "commits" in request:
        for _ in range(request["commits"]):
            connection.execute("INSERT INTO t VALUES (randomblob(200))")
        return []
    return connection.execute(request["sql"], request["parameters"]).fetchall()


if __name__ == "__main__":
    _serve(sys.argv[1])
