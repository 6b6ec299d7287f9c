"""Measures the cost of replicating many idle databases: our writer and Litestream, with the same configuration file.

Both have published all databases before, and are started again: what is measured is neither the first snapshots nor
the compaction that follows them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from benchmarks.processes import cpu_s, open_descriptors, resident_memory
from benchmarks.results import Comparison, Goal, Result, series
from benchmarks.setting import Setting
from litereplica.storage.open import open_storage
from litereplica.testing.litestream import child_environment, litestream_binary
from litereplica.testing.mounts import litereplica_binary

LITESTREAM = "Litestream"
OURS = "litereplica"
PUBLISH_LIMIT_S = 900.0
SETTLE_S = 20.0
"""After the start: whatever a writer does once is over."""
QUIET_S = 10.0
QUIET_LIMIT_S = 60.0
"""So long without a request: what a writer does after the first snapshots is over. Or it goes on for ever."""
LOOK_INTERVAL_S = 2.0
"""Between listings of the store, which does not count them."""
END_LIMIT_S = 60
MB_GOAL, DESCRIPTORS_GOAL, CPU_GOAL = 150, 2100, 2
"""For 1,000 databases: megabytes, descriptors, per cent of a core."""

CREATE = """
import sqlite3, sys
for number in range(int(sys.argv[2])):
    connection = sqlite3.connect(f"{sys.argv[1]}/{number:05}.db")
    connection.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(10000))")
    connection.close()
"""


@dataclass(frozen=True, slots=True)
class Idle:
    """A writer at rest."""

    megabytes: float
    descriptors: int
    cpu_percent: float
    requests_per_hour: int


def writer_idle(setting: Setting) -> tuple[Result, ...]:
    """Memory, descriptors, CPU and requests of a writer whose databases nobody writes to."""
    count = setting.scale.idle_databases
    commands: dict[str, Callable[[Path], list[str]]] = {
        LITESTREAM: lambda config: [litestream_binary(), "replicate", "-config", str(config)],
        OURS: lambda config: [litereplica_binary(), "replicate", "--config", str(config)],
    }
    return tuple(_results({name: _measure(setting, count, each) for name, each in commands.items()}, setting, count))


def _measure(setting: Setting, count: int, command: Callable[[Path], list[str]]) -> Idle:
    directory, url = setting.fresh_directory(), setting.fresh_direct_url()
    subprocess.run([sys.executable, "-c", CREATE, str(directory), str(count)], check=True)
    with setting.distant(url) as (distant, proxy):
        config = setting.fresh_directory() / "writer.yml"
        config.write_text(json.dumps(_configuration(directory, distant)))  # JSON is YAML
        with _running(command(config)):
            _wait_until_published(url, count)
            _wait_until_quiet(lambda: proxy.requests().total)
        with _running(command(config)) as pid:
            time.sleep(SETTLE_S)
            window_s = setting.scale.window_s
            requests, before_s = proxy.requests(), cpu_s(pid)
            time.sleep(window_s)
            return Idle(
                resident_memory(pid) / 1e6,
                open_descriptors(pid),
                100 * (cpu_s(pid) - before_s) / window_s,
                proxy.requests().since(requests).per_hour(window_s).total,
            )


def _configuration(directory: Path, url: str) -> dict[str, object]:
    return {"dbs": [{"dir": str(directory), "pattern": "*.db", "replica": {"url": url}}]}


@contextmanager
def _running(command: list[str]) -> Iterator[int]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=child_environment(os.environ)
    )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(END_LIMIT_S)


def _wait_until_published(url: str, count: int) -> None:
    """Until each database has a file in the store."""
    deadline_s = time.monotonic() + PUBLISH_LIMIT_S
    while (published := trio.run(_published, url)) < count:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{published} of {count} databases are published after {PUBLISH_LIMIT_S:.0f} s")
        time.sleep(LOOK_INTERVAL_S)


async def _published(url: str) -> int:
    async with open_storage(url) as storage:
        keys = [info.key for info in await storage.list("") if info.key.endswith(".ltx")]
    return len({key.partition("/")[0] for key in keys})


def _wait_until_quiet(requests: Callable[[], int]) -> None:
    seen, since_s, limit_s = -1, time.monotonic(), time.monotonic() + QUIET_LIMIT_S
    while time.monotonic() < min(since_s + QUIET_S, limit_s):
        total = requests()
        if total != seen:
            seen, since_s = total, time.monotonic()
        time.sleep(0.2)


def _results(measured: dict[str, Idle], setting: Setting, count: int) -> Iterator[Result]:
    method = (
        f"{count:,} databases in one directory, all of them published before, nobody has them open; the writers are "
        f"started again, and measured for {setting.scale.window_s:g} s, {SETTLE_S:g} s later. Requests to S3 are "
        "counted on the wire."
    )
    measures: tuple[tuple[str, str, Callable[[Idle], float], float | None], ...] = (
        ("Memory of a writer of idle databases", "MB", lambda idle: idle.megabytes, MB_GOAL),
        ("Descriptors of a writer of idle databases", "open", lambda idle: idle.descriptors, DESCRIPTORS_GOAL),
        ("CPU of a writer of idle databases", "% of a core", lambda idle: idle.cpu_percent, CPU_GOAL),
        ("Requests of a writer of idle databases", "per hour", lambda idle: idle.requests_per_hour, 0),
    )
    for title, unit, value, goal in measures:
        of_peer = value(measured[LITESTREAM])
        comparisons = (Comparison(OURS, LITESTREAM, Goal(1)),) if of_peer else ()
        yield Result(
            title=title,
            unit=unit,
            method=method,
            series=series({name: [value(idle)] for name, idle in measured.items()}),
            comparisons=(*comparisons, *(() if goal is None else (Comparison(OURS, None, Goal(goal)),))),
        )
