"""Cold: what a replica costs that nobody has read yet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from benchmarks.results import MOUNT, MOUNT_UNHYDRATED, RESTORE, VFS, Comparison, Goal, Result, Series, series
from benchmarks.setting import Setting
from benchmarks.subjects import PEER, RESTORED, Ready, Subject, can_hydrate, mounts

FURTHER_CONNECTIONS = 5

Measure = Callable[[Ready, random.Random], list[float]]


def first_query(setting: Setting) -> tuple[Result, ...]:
    """From nothing to the answer of the first query, from SeaweedFS and from a directory."""

    def measure(ready: Ready, chance: random.Random) -> list[float]:
        return [ready.seconds + ready.client.open(_key(setting, chance))]

    subjects = (*mounts(), PEER, RESTORED)
    method = (
        "From nothing to the answer of one look-up by key. The mount's time is that of `litereplica mount`, the "
        "daemon's start included, and of the client's open and query; the VFS's that of open and query, without "
        "loading the extension; the restore's that of the command, open and query."
    )
    return (
        Result(
            title="Cold first query",
            unit="s",
            method=method,
            series=_series(setting, subjects, measure),
            comparisons=(Comparison(MOUNT, VFS, Goal(1.2)), Comparison(MOUNT, RESTORE, Goal(0.3))),
        ),
        Result(
            title="Cold first query, file://",
            unit="s",
            method="The same with a replica in a directory of this machine.",
            series=_series(setting, subjects, measure, replica=_local),
            comparisons=(Comparison(MOUNT, None, Goal(0.4)), Comparison(MOUNT, RESTORE)),
        ),
    )


def further_connections(setting: Setting) -> tuple[Result, ...]:
    """One more connection to what is open already, and its first query."""

    def measure(ready: Ready, chance: random.Random) -> list[float]:
        key = _key(setting, chance)
        ready.client.open(key)
        return [1000 * ready.client.open(key) for _ in range(FURTHER_CONNECTIONS)]

    return (
        Result(
            title="Every further connection",
            unit="ms",
            method=f"Open and the first connection's look-up by key once more, {FURTHER_CONNECTIONS} times.",
            series=_series(setting, (*mounts(), PEER), measure),
            comparisons=(Comparison(MOUNT, VFS, Goal(0.05)),),
        ),
    )


def random_lookups(setting: Setting) -> tuple[Result, ...]:
    """Look-ups by random keys, right after the first query."""
    count = setting.scale.lookups

    def measure(ready: Ready, chance: random.Random) -> list[float]:
        ready.client.open(_key(setting, chance))
        return [ready.client.lookups([_key(setting, chance) for _ in range(count)])]

    return (
        Result(
            title="Cold random look-ups",
            unit="s",
            method=f"{count} look-ups by random keys, one after the other, right after the first query.",
            series=_series(setting, (*mounts(), PEER), measure),
            comparisons=_faster_than_vfs(hydrated=2, otherwise=1),
        ),
    )


def scan(setting: Setting) -> tuple[Result, ...]:
    """A scan of neighbouring rows, right after the first query."""
    count = setting.scale.scanned_rows

    def measure(ready: Ready, chance: random.Random) -> list[float]:
        ready.client.open(1)
        first = chance.randint(1, setting.scale.rows - count)
        return [ready.client.scan(first, first + count - 1)]

    return (
        Result(
            title="Cold scan",
            unit="s",
            method=f"`sum(length(body))` over {count:,} rows in the order of their keys, right after the first query.",
            series=_series(setting, (*mounts(), PEER), measure, repeats=setting.scale.scan_repeats),
            comparisons=_faster_than_vfs(hydrated=40, otherwise=40),
        ),
    )


def _faster_than_vfs(*, hydrated: float, otherwise: float) -> tuple[Comparison, ...]:
    if not can_hydrate():
        return (Comparison(VFS, MOUNT, Goal(hydrated, at_least=True)),)
    return (
        Comparison(VFS, MOUNT, Goal(hydrated, at_least=True)),
        Comparison(VFS, MOUNT_UNHYDRATED, Goal(otherwise, at_least=True)),
    )


def _key(setting: Setting, chance: random.Random) -> int:
    return chance.randint(1, setting.scale.rows)


Replica = Callable[[Setting], AbstractContextManager[str]]


@contextmanager
def _distant(setting: Setting) -> Iterator[str]:
    with setting.distant(setting.direct_url) as (url, _):
        yield url


@contextmanager
def _local(setting: Setting) -> Iterator[str]:
    yield setting.file_url


def _series(
    setting: Setting,
    subjects: Sequence[Subject],
    measure: Measure,
    *,
    replica: Replica = _distant,
    repeats: int | None = None,
) -> tuple[Series, ...]:
    """Measure the subjects in turn; in one turn all of them are asked for the same keys."""
    samples: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for seed in range(setting.scale.repeats if repeats is None else repeats):
        for subject in subjects:
            with replica(setting) as url, subject.prepare(setting, url) as ready:
                samples[subject.name] += measure(ready, random.Random(seed))
    return series(samples)
