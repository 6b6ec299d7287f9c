"""What a writer costs the application beside it, and the machine: ours and Litestream, into a local directory.

An application commits as fast as it can: the hardest for a writer, which has to find the moments for its checkpoints.
The commits per second of an application depend on what else the machine does, so that the subjects take turns.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.application import ROW_BYTES, ROWS, Committed, create, run_application
from benchmarks.processes import cpu_s, peak_memory, replicating
from benchmarks.results import Comparison, Goal, Result, series
from benchmarks.setting import Setting
from litereplica.testing.litestream import LitestreamProcess

ALONE = "no writer"
LITESTREAM = "Litestream"
OURS = "litereplica"
SYNC_INTERVAL = "1s"
LONGEST_PAUSE_MS = 300
SETTLED_S = 2.5
"""Twice the interval, and a little: nothing more is published then."""

Start = Callable[[Path, str], AbstractContextManager[int]]
"""Replicates a database to a URL while it is entered; its value is the process ID."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The result of a run.

    The application's times; the writer's CPU seconds and peak of memory in bytes; and the files and bytes that it put
    into level 0 after the first snapshot.
    """

    application: Committed
    cpu_s: float = 0.0
    memory: int = 0
    files: int = 0
    bytes: int = 0


def writer(setting: Setting) -> tuple[Result, ...]:
    """Commits, pauses, CPU, memory, bytes and files of an application's writer."""
    commits = setting.scale.writer_commits
    costs: dict[str, list[Cost]] = defaultdict(list)
    for _ in range(setting.scale.writer_repeats):
        costs[ALONE].append(_alone(setting, commits))
        costs[LITESTREAM].append(_beside(setting, commits, _litestream))
        costs[OURS].append(_beside(setting, commits, _ours))
    return tuple(_results(costs, commits))


def _alone(setting: Setting, commits: int) -> Cost:
    database = setting.fresh_directory() / "app.db"
    create(database)
    return Cost(run_application(database, commits))


def _beside(setting: Setting, commits: int, start: Start) -> Cost:
    database, url = setting.fresh_directory() / "app.db", setting.fresh_file_url()
    create(database)
    level0 = Path(url.removeprefix("file://")) / "ltx" / "0"
    with start(database, url) as pid:
        before_s, first = cpu_s(pid), set(level0.iterdir())
        application = run_application(database, commits)
        _wait_until_settled(level0)
        sizes = [path.stat().st_size for path in level0.iterdir() if path not in first]
        return Cost(application, cpu_s(pid) - before_s, peak_memory(pid), len(sizes), sum(sizes))


@contextmanager
def _litestream(database: Path, url: str) -> Iterator[int]:
    with LitestreamProcess(database, url, sync_interval=SYNC_INTERVAL) as process:
        yield process.pid


@contextmanager
def _ours(database: Path, url: str) -> Iterator[int]:
    with replicating(database, url, sync_interval=SYNC_INTERVAL) as pid:
        yield pid


def _wait_until_settled(level0: Path) -> None:
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < SETTLED_S:
        count = len(list(level0.iterdir()))
        if count != seen:
            seen, since = count, time.monotonic()
        time.sleep(0.1)


def _results(costs: dict[str, list[Cost]], commits: int) -> Iterator[Result]:
    method = (
        f"{commits:,} transactions of {ROWS} rows of {ROW_BYTES} random bytes, synchronous = normal, as "
        f"fast as they go; the writer publishes every {SYNC_INTERVAL} to a directory."
    )
    writers = {name: costs[name] for name in (LITESTREAM, OURS)}

    def samples(of: dict[str, list[Cost]], value: Callable[[Cost], float]) -> dict[str, list[float]]:
        return {name: [value(cost) for cost in each] for name, each in of.items()}

    yield Result(
        title="Commits beside a writer",
        unit="commits/s",
        method=method,
        series=series(samples(costs, lambda cost: commits / cost.application.seconds)),
        comparisons=(Comparison(OURS, ALONE), Comparison(OURS, LITESTREAM, Goal(1, at_least=True))),
    )
    yield Result(
        title="Longest pause of the application",
        unit="ms",
        method=method,
        series=series(samples(costs, lambda cost: cost.application.longest_s * 1000)),
        comparisons=(Comparison(OURS, LITESTREAM, Goal(1)), Comparison(OURS, None, Goal(LONGEST_PAUSE_MS))),
    )
    measures: tuple[tuple[str, str, Callable[[Cost], float]], ...] = (
        ("CPU time of the writer", "ms per 1,000 commits", lambda cost: 1e6 * cost.cpu_s / commits),
        ("Memory of the writer", "MB at its peak", lambda cost: cost.memory / 1e6),
        ("Bytes published", "kB per 1,000 commits", lambda cost: cost.bytes / commits),
        ("Files published", "per 1,000 commits", lambda cost: 1000 * cost.files / commits),
    )
    for title, unit, value in measures:
        yield Result(
            title=title,
            unit=unit,
            method=method,
            series=series(samples(writers, value)),
            comparisons=(Comparison(OURS, LITESTREAM, Goal(1)),),
        )
