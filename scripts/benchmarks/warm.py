"""Warm: a mount whose pages the kernel has, against the same file on the local disk; and what the daemon weighs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from benchmarks.client import Client, file_client
from benchmarks.database import steady_commits
from benchmarks.processes import replicating
from benchmarks.results import LOCAL, MOUNT, VFS, Comparison, Goal, Result, series
from benchmarks.setting import Setting
from benchmarks.subjects import PEER, mounted
from litereplica.testing.mounts import MountedReplica, MountError

COMMITS_PER_S = 20
WARM_UP_SCANS = 20
"""At most; the kernel's read-ahead and the mount's own may still be under way when the first ones end."""
READS = ("reads_database", "reads_wal", "reads_shm")
DAEMON = "mount's daemon"
UNDER_LOAD = f", {COMMITS_PER_S} commits/s"

Rate = Callable[[Client, int], float]


def warm_queries(setting: Setting) -> tuple[Result, ...]:
    """Look-ups and whole scans on the mount and on the local file in turn, at rest and while rows are committed."""
    scale = setting.scale

    def lookups_per_s(client: Client, seed: int) -> float:
        chance = random.Random(seed)
        keys = [chance.randint(1, scale.rows) for _ in range(scale.warm_lookups)]
        return scale.warm_lookups / client.lookups(keys)

    def scans_per_s(client: Client, seed: int) -> float:
        return 1 / client.scan(1, scale.rows)

    rates: dict[str, Rate] = {"Warm look-ups": lookups_per_s, "Warm scan": scans_per_s}
    samples: dict[str, dict[str, list[float]]] = {title: {} for title in rates}
    remarks = []
    with _pair(setting) as (source, mount, clients):
        for suffix in ("", UNDER_LOAD):
            load = steady_commits(source, per_second=COMMITS_PER_S) if suffix else nullcontext()
            with load:
                before = _reads(mount)
                for seed in range(scale.warm_repeats):
                    for title, rate in rates.items():
                        for subject, client in clients.items():
                            samples[title].setdefault(subject + suffix, []).append(rate(client, seed))
                remarks.append(_reads_told(before, _reads(mount), "under load" if suffix else "at rest"))
    return tuple(
        Result(
            title=title,
            unit="per s",
            method=f"{what}, the mount and the primary's own file in turn, at rest and while {COMMITS_PER_S} "
            "transactions a second are committed there and followed by the mount.",
            series=series(samples[title]),
            comparisons=(
                Comparison(MOUNT, LOCAL, Goal(0.9, at_least=True)),
                Comparison(MOUNT + UNDER_LOAD, LOCAL + UNDER_LOAD, Goal(0.9, at_least=True)),
            ),
            remarks=tuple(remarks),
        )
        for title, what in (
            ("Warm look-ups", f"{scale.warm_lookups:,} look-ups by random keys"),
            ("Warm scan", f"`sum(length(body))` over all {scale.rows:,} rows"),
        )
    )


def memory(setting: Setting) -> tuple[Result, ...]:
    """Resident memory of the daemon once everything has been read, and of a process with the VFS."""
    with setting.distant(setting.direct_url) as (url, _), mounted(setting, url) as ready:
        assert ready.mount is not None
        for key in range(1, setting.scale.connections + 1):
            ready.client.open(key)
        _warm_up(ready.mount, ready.client, setting.scale.rows)
        daemon = _resident_mb(ready.mount.pid)
        client = _resident_mb(ready.client.pid)
    with setting.distant(setting.direct_url) as (url, _), PEER.prepare(setting, url) as ready:
        for key in range(1, setting.scale.connections + 1):
            ready.client.open(key)
        ready.client.lookups(range(1, setting.scale.rows, setting.scale.rows // setting.scale.lookups))
        peer = _resident_mb(ready.client.pid)
    connections = f"{setting.scale.connections} connections"
    return (
        Result(
            title="Memory",
            unit="MB",
            method="Resident set: of the mount's daemon after all rows have been read; of its client with "
            f"{connections}; and of a client with {connections} through the VFS after {setting.scale.lookups} look-ups "
            "on one of them.",
            series=series({DAEMON: [daemon], "mount's client": [client], f"{VFS}'s client": [peer]}),
            comparisons=(Comparison(DAEMON, None, Goal(150)),),
        ),
    )


@contextmanager
def _pair(setting: Setting) -> Iterator[tuple[Path, MountedReplica, dict[str, Client]]]:
    """A primary's database and a mount that follows it, with a warm client each."""
    source, direct_url = setting.copy_of_database(), setting.fresh_direct_url()
    with ExitStack() as stack:
        stack.enter_context(replicating(source, direct_url, sync_interval="1s"))
        url, _ = stack.enter_context(setting.distant(direct_url))
        ready = stack.enter_context(mounted(setting, url))
        assert ready.mount is not None
        local = stack.enter_context(file_client(source))
        for client in (ready.client, local):
            client.open(1)
        _warm_up(ready.mount, ready.client, setting.scale.rows)
        local.scan(1, setting.scale.rows)
        yield source, ready.mount, {MOUNT: ready.client, LOCAL: local}


def _warm_up(mount: MountedReplica, client: Client, rows: int) -> None:
    """Scan until a scan makes no READ request."""
    for _ in range(WARM_UP_SCANS):
        before = _reads(mount)
        client.scan(1, rows)
        if _reads(mount) == before:
            return
    raise MountError(f"after {WARM_UP_SCANS} scans there are still READ requests")


def _reads(mount: MountedReplica) -> dict[str, int]:
    statistics = mount.statistics()
    return {name: statistics[name] for name in READS}


def _reads_told(before: dict[str, int], after: dict[str, int], when: str) -> str:
    counts = ", ".join(f"{after[name] - before[name]} of {name.removeprefix('reads_')}" for name in READS)
    return f"READ requests that reached the daemon {when}: {counts}."


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6
