"""Our writer, as a command beside the benchmark; and what any process takes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from litereplica.testing.mounts import litereplica_binary

END_DEADLINE_S = 30
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def peak_memory(pid: int) -> int:
    """The most that a process has had resident, in bytes."""
    return _memory(pid, "VmHWM:")


def resident_memory(pid: int) -> int:
    """What a process has resident now, in bytes."""
    return _memory(pid, "VmRSS:")


def open_descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _memory(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@contextmanager
def replicating(database: Path, url: str, *, sync_interval: str) -> Iterator[int]:
    """Publish a database's changes during the block; yields the writer's process ID.

    The first snapshot is in the replica when the block begins.
    """
    command = [litereplica_binary(), "replicate", str(database), url]
    subprocess.run([*command, "--once"], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--sync-interval", sync_interval], stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(END_DEADLINE_S)
