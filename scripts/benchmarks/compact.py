"""Merging level 0 into level 1, ours and Litestream's compactor, of the very same files in a directory."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.results import Comparison, Result, series
from benchmarks.setting import Setting
from litereplica.testing.litestream import NEVER, LitestreamProcess
from litereplica.testing.mounts import litereplica_binary

OURS = "litereplica compact"
LITESTREAM = "Litestream's compactor"
TRANSACTIONS = 12
ROWS_CHANGED = 2000
"""By each transaction, anywhere in the table: nearly as many pages."""
DEADLINE_S = 120.0
LOOK_S = 0.0005

NOTHING_COMPACTED = {"levels": [{"interval": NEVER}], "snapshot": {"interval": NEVER}, "l0-retention": NEVER}
"""Litestream compacts once when it starts, and not again."""


def compact(setting: Setting) -> tuple[Result, ...]:
    """The rate at which level 0 is merged into level 1."""
    database, url = setting.copy_of_database(), setting.fresh_file_url()
    directory = Path(url.removeprefix("file://")) / "ltx"
    _publish(setting, database, url)
    bytes_read = sum(path.stat().st_size for path in (directory / "0").iterdir())
    rates: dict[str, list[float]] = {OURS: [], LITESTREAM: []}
    for _ in range(setting.scale.repeats):
        _remove_level_1(directory)
        rates[OURS].append(bytes_read / 1e6 / _ours(url))
        _remove_level_1(directory)
        rates[LITESTREAM].append(bytes_read / 1e6 / _litestream(database, url, directory / "1"))
    files = len(list((directory / "0").iterdir()))
    return (
        Result(
            title="Compaction",
            unit="MB of inputs a second",
            method=f"{files} files of level 0, {bytes_read / 1e6:.0f} MB, are merged into one of level 1, on a disk. "
            "Ours is what the command tells: it lists, checks every input, merges, reads the result back and checks "
            "it, and publishes it with an fsync. Litestream's is the time from the appearance of the temporary file "
            "that it writes the result to until that has its name, fsync included; it checks nothing afterwards.",
            series=series(rates),
            comparisons=(Comparison(OURS, LITESTREAM),),
        ),
    )


def _publish(setting: Setting, database: Path, url: str) -> None:
    """The whole database, and a file for each of some large transactions."""
    chance = random.Random(1)
    with LitestreamProcess(database, url, sync_interval=NEVER, settings=NOTHING_COMPACTED) as litestream:
        connection = sqlite3.connect(database, isolation_level=None, timeout=30)
        for _ in range(TRANSACTIONS):
            rows = [(chance.randint(1, setting.scale.rows),) for _ in range(ROWS_CHANGED)]
            connection.execute("BEGIN")
            connection.executemany("UPDATE item SET name = name || '+' WHERE id = ?", rows)
            connection.execute("COMMIT")
            litestream.sync()
        connection.close()


def _remove_level_1(directory: Path) -> None:
    for path in (directory / "1").glob("*"):
        path.unlink()


def _ours(url: str) -> float:
    command = [str(litereplica_binary()), "compact", url, "--level", "1", "--json"]
    done = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return float(done["duration_ms"]) / 1000


def _litestream(database: Path, url: str, level: Path) -> float:
    """Seconds that its compaction at the start took, seen from outside: it does not tell."""
    with ThreadPoolExecutor() as threads:
        seconds = threads.submit(_seconds_of_writing, level)
        with LitestreamProcess(database, url, sync_interval=NEVER, settings=NOTHING_COMPACTED):
            return seconds.result()


def _seconds_of_writing(level: Path) -> float:
    deadline, begun = time.perf_counter() + DEADLINE_S, 0.0
    while time.perf_counter() < deadline:
        names = [path.suffix for path in level.glob("*")]
        if ".ltx" in names:
            return time.perf_counter() - begun
        if names and not begun:
            begun = time.perf_counter()
        time.sleep(LOOK_S)
    raise TimeoutError(f"no compaction in {DEADLINE_S:.0f} s")
