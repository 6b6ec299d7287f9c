"""Requests of a reader with several open connections, and what they cost an hour: idle, and while a primary commits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.client import Client
from benchmarks.database import steady_commits
from benchmarks.latency_proxy import LatencyProxy
from benchmarks.requests import KINDS, USD_PER_1000, Requests
from benchmarks.results import MOUNT, VFS, Comparison, Goal, Result, series
from benchmarks.setting import Setting
from benchmarks.subjects import PEER, Subject, mounted
from litereplica.testing.litestream import LitestreamProcess

COMMITS_PER_S = 20
SYNC_INTERVAL = "1s"
SETTLE_S = 3.0
"""Between opening and counting: requests of the opening itself do not belong to an hour."""
GOAL = 0.01

SUBJECTS = (Subject(MOUNT, mounted), PEER)


Occupy = Callable[[Client, float], int]
"""What a client does for so many seconds; how many of its queries failed."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A subject: what each window would cost in an hour, in USD; the requests of an hour; and failed queries."""

    usd: tuple[float, ...]
    requests: Requests
    failures: int


def idle(setting: Setting) -> tuple[Result, ...]:
    """Nobody commits and nobody asks."""

    def rest(client: Client, seconds: float) -> int:
        time.sleep(seconds)
        return 0

    counted = _count(setting, setting.direct_url, rest)
    return (_result(setting, "Idle cost", "Nobody commits and nobody asks", counted),)


def under_load(setting: Setting) -> tuple[Result, ...]:
    """A primary commits steadily, Litestream publishes, and every connection asks once a second."""
    source, url = setting.copy_of_database(), setting.fresh_direct_url()
    with LitestreamProcess(source, url, sync_interval=SYNC_INTERVAL), steady_commits(source, per_second=COMMITS_PER_S):
        counted = _count(setting, url, Client.keep_asking)
    what = (
        f"{COMMITS_PER_S} transactions a second are committed, Litestream publishes every {SYNC_INTERVAL}, and every "
        "connection asks for the newest row once a second"
    )
    return (_result(setting, "Cost under a steady load", what, counted),)


def _count(setting: Setting, url: str, occupy: Occupy) -> dict[str, Counted]:
    """All subjects at the same time, each through a proxy of its own."""
    scale = setting.scale
    with ExitStack() as stack:
        proxies: list[LatencyProxy] = []
        clients: list[Client] = []
        for subject in SUBJECTS:
            distant, proxy = stack.enter_context(setting.distant(url))
            client = stack.enter_context(subject.prepare(setting, distant)).client
            for key in range(1, scale.connections + 1):
                client.open(key)
            proxies.append(proxy)
            clients.append(client)
        time.sleep(SETTLE_S)
        threads = stack.enter_context(ThreadPoolExecutor(len(SUBJECTS)))
        counts = [[proxy.requests() for proxy in proxies]]
        failures = [0] * len(SUBJECTS)
        for _ in range(scale.windows):
            failed = threads.map(occupy, clients, [scale.window_s] * len(clients))
            failures = [earlier + now for earlier, now in zip(failures, failed, strict=True)]
            counts.append([proxy.requests() for proxy in proxies])
    return {
        subject.name: _counted(scale.window_s, count, failed)
        for subject, count, failed in zip(SUBJECTS, zip(*counts, strict=True), failures, strict=True)
    }


def _counted(window_s: float, counts: Sequence[Requests], failures: int) -> Counted:
    """From the counts at the windows' bounds."""
    windows = [after.since(before).per_hour(window_s) for before, after in itertools.pairwise(counts)]
    total = counts[-1].since(counts[0]).per_hour(window_s * len(windows))
    return Counted(tuple(window.usd for window in windows), total, failures)


def _result(setting: Setting, title: str, what: str, counted: dict[str, Counted]) -> Result:
    scale = setting.scale
    prices = ", ".join(f"{kind} {USD_PER_1000[kind]:g}" for kind in KINDS)
    remarks = [f"Requests per hour of the {name}: {each.requests}." for name, each in counted.items()]
    remarks += [f"{each.failures} queries of the {name} failed." for name, each in counted.items() if each.failures]
    return Result(
        title=title,
        unit="USD per hour",
        method=f"{scale.connections} open connections. {what}. Requests are counted on the wire, in {scale.windows} "
        f"windows of {scale.window_s:g} s, and priced as Amazon S3 lists them (USD per 1,000: {prices}).",
        series=series({name: each.usd for name, each in counted.items()}),
        comparisons=(Comparison(MOUNT, VFS, Goal(GOAL)),),
        remarks=tuple(remarks),
    )
