"""Restoring a database from S3: ours and Litestream's command, from nothing to the file under its name."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.latency_proxy import latency_proxy
from benchmarks.processes import peak_memory
from benchmarks.results import RESTORE, Comparison, Goal, Result, series
from benchmarks.setting import Setting
from litereplica.testing.litestream import NEVER, LitestreamProcess, child_environment, litestream_binary
from litereplica.testing.mounts import litereplica_binary

OURS = "litereplica restore"
FASTER = 1.5
PEAK_MEMORY_MB = 120
LOOK_INTERVAL_S = 0.005
ROWS_CHANGED = 20
"""By each transaction, anywhere in the table: some 20 pages."""
NOTHING_COMPACTED = {"levels": [{"interval": NEVER}], "snapshot": {"interval": NEVER}, "l0-retention": NEVER}

Command = Callable[[str, Path], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a command took: wall time, and its peak of memory in bytes."""

    seconds: float
    memory: int


def restore(setting: Setting) -> tuple[Result, ...]:
    """A whole restore, of a snapshot and with transactions on top, without and with added latency; its memory."""
    subjects: dict[str, Command] = {OURS: _ours, RESTORE: _litestream}
    size_mb = setting.database.stat().st_size / 1e6
    deltas = setting.scale.restored_deltas
    replicas = {
        f"{size_mb:.0f} MB": setting.direct_url,
        f"{size_mb:.0f} MB and {deltas} transactions": _with_deltas(setting, deltas),
    }
    results: list[Result] = []
    peaks: dict[str, list[float]] = defaultdict(list)
    for name, url in replicas.items():
        for round_trip_ms in (0.0, setting.round_trip_ms):
            samples: dict[str, list[float]] = {subject: [] for subject in subjects}
            for _ in range(setting.scale.repeats):
                for subject, command in subjects.items():
                    taken = _restored(setting, url, command, round_trip_ms)
                    samples[subject].append(taken.seconds)
                    peaks[subject].append(taken.memory / 1e6)
            results.append(_result(f"Restore, {name}, {round_trip_ms:g} ms away", samples))
    return (*results, *_memory(peaks))


def _restored(setting: Setting, url: str, command: Command, round_trip_ms: float) -> Taken:
    path = setting.fresh_directory() / "app.db"
    if not round_trip_ms:
        taken = _run(command(url, path))
    else:
        with latency_proxy(setting.port, round_trip_ms=round_trip_ms) as proxy:
            taken = _run(command(url.replace(setting.server.endpoint, proxy.endpoint), path))
    path.unlink()
    return taken


def _run(command: Sequence[str]) -> Taken:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=child_environment())
    memory = 0
    # not ru_maxrss: a child's begins with what this process has
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):  # it is ending
            memory = peak_memory(process.pid)
        time.sleep(LOOK_INTERVAL_S)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Taken(seconds, memory)


def _ours(url: str, path: Path) -> Sequence[str]:
    return [str(litereplica_binary()), "restore", url, "-o", str(path)]


def _litestream(url: str, path: Path) -> Sequence[str]:
    return [str(litestream_binary()), "restore", "-o", str(path), url]


def _with_deltas(setting: Setting, count: int) -> str:
    """A replica of the database, with a file of level 0 for each of so many small transactions behind it."""
    database, url = setting.copy_of_database(), setting.fresh_direct_url()
    chance = random.Random(1)
    with LitestreamProcess(database, url, sync_interval=NEVER, settings=NOTHING_COMPACTED) as litestream:
        connection = sqlite3.connect(database, isolation_level=None, timeout=30)
        for _ in range(count):
            rows = [(chance.randint(1, setting.scale.rows),) for _ in range(ROWS_CHANGED)]
            connection.execute("BEGIN")
            connection.executemany("UPDATE item SET name = name || '+' WHERE id = ?", rows)
            connection.execute("COMMIT")
            litestream.sync()
        connection.close()
    return url


def _result(title: str, samples: dict[str, list[float]]) -> Result:
    return Result(
        title=title,
        unit="s",
        method="The command from its start to its end: the interpreter's start, the plan, the download, the checks and "
        "the fsync are in it. The page cache takes the file; the store is on the same machine.",
        series=series(samples),
        comparisons=(Comparison(RESTORE, OURS, Goal(FASTER, at_least=True)),),
    )


def _memory(peaks: dict[str, list[float]]) -> Iterator[Result]:
    yield Result(
        title="Memory of a restore",
        unit="MB at its peak",
        method="The greatest resident size of the command's process, over all these restores.",
        series=series(peaks),
        comparisons=(Comparison(OURS, None, Goal(PEAK_MEMORY_MB)), Comparison(OURS, RESTORE)),
    )
