"""Reads that the kernel's page cache misses and the mount's own does not, against the local file."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.hydration import wait_until_complete
from benchmarks.results import LOCAL, MOUNT, Comparison, Goal, Result, series
from benchmarks.setting import Setting
from benchmarks.subjects import can_hydrate, mounted

BLOCK = 4096
PIECE = 1 << 20
GOAL = Goal(0.6, at_least=True)


def uncached_reads(setting: Setting) -> tuple[Result, ...]:
    """Random blocks, and the whole file in order; nothing for a version that cannot hydrate."""
    if not can_hydrate():
        return ()
    blocks: dict[str, list[float]] = {MOUNT: [], LOCAL: []}
    whole: dict[str, list[float]] = {MOUNT: [], LOCAL: []}
    with mounted(setting, setting.file_url) as ready:
        assert ready.mount is not None
        wait_until_complete(ready.mount)
        subjects = {MOUNT: ready.mount.path, LOCAL: setting.database}
        for seed in range(setting.scale.warm_repeats):
            for name, path in subjects.items():
                blocks[name].append(_blocks_per_s(path, random.Random(seed), setting.scale.warm_lookups))
                whole[name].append(_megabytes_per_s(path))
    method = "Of a hydrated mount and of the primary's own file, after the kernel was told to forget the file's pages"
    comparisons = (Comparison(MOUNT, LOCAL, GOAL),)
    return (
        Result(
            title="Random reads that miss the kernel's cache",
            unit="per s",
            method=f"{method}: {setting.scale.warm_lookups:,} blocks of {BLOCK} bytes, without read-ahead.",
            series=series(blocks),
            comparisons=comparisons,
        ),
        Result(
            title="Sequential reads that miss the kernel's cache",
            unit="MB/s",
            method=f"{method}: the whole file in order, {PIECE >> 20} MiB a call.",
            series=series(whole),
            comparisons=comparisons,
        ),
    )


@contextmanager
def _forgotten(path: Path, advice: int) -> Iterator[int]:
    """A descriptor of a file of which the kernel has no pages."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, advice)
        yield fd
    finally:
        os.close(fd)


def _blocks_per_s(path: Path, chance: random.Random, count: int) -> float:
    places = [chance.randrange(path.stat().st_size // BLOCK) * BLOCK for _ in range(count)]
    with _forgotten(path, os.POSIX_FADV_RANDOM) as fd:
        started = time.perf_counter()
        for place in places:
            os.pread(fd, BLOCK, place)
        return count / (time.perf_counter() - started)


def _megabytes_per_s(path: Path) -> float:
    with _forgotten(path, os.POSIX_FADV_NORMAL) as fd:
        started, size = time.perf_counter(), 0
        while piece := os.pread(fd, PIECE, size):
            size += len(piece)
        return size / 1e6 / (time.perf_counter() - started)
