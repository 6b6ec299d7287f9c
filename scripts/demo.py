"""Commit to one SQLite file while `sqlite3` queries another that follows it, and say how far behind it is.

The committing side is a thread with the interpreter's own SQLite; the querying side is the `sqlite3` program, kept
open and asked again and again. Both run on one machine, so one clock times a commit and its appearance.
"""

from __future__ import annotations

import argparse
import itertools
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

COMMIT_INTERVAL_S = 0.05
"""Twenty transactions a second: often enough for a median, slow enough to see each one arrive alone."""
QUERY_INTERVAL_S = 0.005
"""The resolution of the measured lag."""
CATCH_UP_DEADLINE_S = 30.0
"""How long the last commit may take to appear before the demo has failed."""
QUERY = "SELECT count(*) || ' ' || coalesce(max(id), 0) FROM event;\n"


@dataclass
class Commits:
    """The committing side: `times_ns` says when each row was committed, by its id: 1, 2, 3, … (monotonic clock)."""

    path: str
    times_ns: list[int] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Insert a row per transaction until told to stop."""
        database = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        while not self.stop.wait(COMMIT_INTERVAL_S):
            database.execute("INSERT INTO event (committed_ns) VALUES (?)", (time.time_ns(),))
            self.times_ns.append(time.monotonic_ns())
        database.close()


class Shell:
    """A running `sqlite3` that answers queries of one row and one column."""

    def __init__(self, path: str) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(["sqlite3", "-bail", path], stdin=pipe, stdout=pipe, text=True, bufsize=1)

    def ask(self, query: str) -> str:
        """The answer; exits when the shell has ended, which it does after an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(query)
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit("sqlite3 ended with an error")
        return answer.strip()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def follow(shell: Shell, commits: Commits, thread: threading.Thread, *, seconds: float) -> list[float]:
    """Ask until `seconds` have passed and every commit has been seen. Returns the lag of each row in ms."""
    lags_ms: list[float] = []
    started_s = time.monotonic()
    next_report_s = 1.0
    for queries in itertools.count(1):
        ended = not thread.is_alive()
        count, newest = map(int, shell.ask(QUERY).split())
        now_ns, passed_s = time.monotonic_ns(), time.monotonic() - started_s
        if count != newest or newest < len(lags_ms):
            sys.exit(f"inconsistent: {count} rows up to {newest} after {len(lags_ms)} had been seen")
        # A row may be seen before the committing thread has noted its time: that one is left for the next query.
        noted = commits.times_ns[len(lags_ms) : newest]
        lags_ms += [(now_ns - committed_ns) / 1e6 for committed_ns in noted]
        if passed_s >= next_report_s:
            print(f"  committed {len(commits.times_ns):5}   seen {len(lags_ms):5}   queries {queries:6}", flush=True)
            next_report_s += 1
        if ended and not commits.stop.is_set():
            sys.exit("the committing side has failed")
        if passed_s >= seconds:
            commits.stop.set()
        if ended and len(lags_ms) == len(commits.times_ns):
            break
        if passed_s >= seconds + CATCH_UP_DEADLINE_S:
            sys.exit(f"only {len(lags_ms)} of {len(commits.times_ns)} transactions have appeared")
        time.sleep(QUERY_INTERVAL_S)
    return lags_ms


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("primary", help="the database that is committed to")
    parser.add_argument("replica", help="the database that is queried")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()

    commits = Commits(options.primary)
    shell = Shell(options.replica)
    thread = threading.Thread(target=commits.run, daemon=True)
    thread.start()
    lags_ms = follow(shell, commits, thread, seconds=options.seconds)
    integrity = shell.ask("PRAGMA integrity_check;\n")
    shell.close()

    print(f"committed  {len(commits.times_ns)} transactions to {options.primary}")
    print(f"seen       {len(lags_ms)} of them with sqlite3 {options.replica}")
    print(f"lag        median {statistics.median(lags_ms):.0f} ms, max {max(lags_ms):.0f} ms")
    print(f"integrity  {integrity}")
    if integrity != "ok":
        sys.exit(1)


if __name__ == "__main__":
    main()
