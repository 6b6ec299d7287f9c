"""Lag: from the return of COMMIT on the primary to the moment a client of the replica sees the row."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from benchmarks.client import Client
from benchmarks.database import Primary, make_database
from benchmarks.processes import replicating
from benchmarks.results import Comparison, Goal, Result, series
from benchmarks.setting import Setting
from benchmarks.subjects import mounted, through_vfs
from litereplica.testing.litestream import LitestreamProcess

VFS_POLL_INTERVAL_S = 1.0
"""The extension has no setting for it."""
LIMIT_S = 10.0
"""A commit that is not visible by then is a stall, whatever the interval."""
WARM_UP_LIMIT_S = 60.0
ROWS = 1000
GOAL = 0.6

Chain = Callable[[Setting, Path, tuple[str, str], float], AbstractContextManager[Client]]
"""A writer of a source, through the first URL, and a client of a reader through the second, at an interval."""


def lag(setting: Setting) -> tuple[Result, ...]:
    """At several intervals, through a directory and through SeaweedFS, us and Litestream with its VFS."""
    return tuple(_lag(setting, store) for store in ("file://", "s3://"))


def _lag(setting: Setting, store: str) -> Result:
    samples: dict[str, list[float]] = {}
    comparisons, remarks = [], []
    for interval_s in setting.scale.lag_intervals_s:
        polled = "" if interval_s == VFS_POLL_INTERVAL_S else f" (VFS {VFS_POLL_INTERVAL_S:g} s)"
        ours, theirs = f"litereplica {interval_s:g} s", f"Litestream {interval_s:g} s{polled}"
        for subject, chain in ((ours, _litereplica), (theirs, _litestream)):
            samples[subject], stalls = _measure(setting, store, chain=chain, interval_s=interval_s)
            if stalls:
                commits = setting.scale.lag_commits
                remarks.append(f"{subject}: {stalls} of {commits} commits did not appear within {LIMIT_S:g} s.")
        comparisons += [Comparison(ours, theirs, Goal(GOAL)), Comparison(ours, theirs, Goal(GOAL), percent=99)]
    return Result(
        title=f"Lag, {store}",
        unit="ms",
        method="From the return of COMMIT to the first query that sees the row, for "
        f"{setting.scale.lag_commits} commits with random pauses of one to two intervals. The writer syncs and the "
        f"reader polls at the interval given; the poll of the VFS is fixed at {VFS_POLL_INTERVAL_S:g} s. Commits that "
        f"do not appear within {LIMIT_S:g} s are counted apart, and the client opens the database again.",
        series=series(samples),
        comparisons=tuple(comparisons),
        remarks=tuple(remarks),
    )


def _measure(setting: Setting, store: str, *, chain: Chain, interval_s: float) -> tuple[list[float], int]:
    """Lags in ms of the commits that appeared, and how many did not."""
    source = setting.fresh_directory() / "app.db"
    make_database(source, ROWS)
    chance = random.Random(1)
    lags, stalls = [], 0
    with ExitStack() as stack:
        write_url, read_url = stack.enter_context(_store(setting, store))
        client = stack.enter_context(chain(setting, source, (write_url, read_url), interval_s))
        primary = Primary(source)
        stack.callback(primary.close)
        client.open(1)
        primary.commit()
        client.wait_for_beat(primary.beats, limit_s=WARM_UP_LIMIT_S)
        for _ in range(setting.scale.lag_commits):
            time.sleep(interval_s * chance.uniform(1, 2))
            committed = primary.commit()
            seen = client.wait_for_beat(primary.beats, limit_s=LIMIT_S)
            if seen is None:
                stalls += 1
                client.reopen()
            else:
                lags.append((seen - committed) * 1000)
    return lags, stalls


@contextmanager
def _store(setting: Setting, store: str) -> Iterator[tuple[str, str]]:
    """An empty replica: as the writer and as the reader have it. Both are distant, if it is not a directory."""
    if store == "file://":
        url = setting.fresh_file_url()
        yield url, url
        return
    direct = setting.fresh_direct_url()
    with setting.distant(direct) as (write_url, _), setting.distant(direct) as (read_url, _):
        yield write_url, read_url


@contextmanager
def _litereplica(setting: Setting, source: Path, urls: tuple[str, str], interval_s: float) -> Iterator[Client]:
    interval = f"{interval_s * 1000:g}ms"
    with (
        replicating(source, urls[0], sync_interval=interval),
        mounted(setting, urls[1], poll_interval=interval) as ready,
    ):
        yield ready.client


@contextmanager
def _litestream(setting: Setting, source: Path, urls: tuple[str, str], interval_s: float) -> Iterator[Client]:
    with (
        LitestreamProcess(source, urls[0], sync_interval=f"{interval_s * 1000:g}ms"),
        through_vfs(setting, urls[1]) as ready,
    ):
        yield ready.client
