"""What it costs to start the commands that run often, against an interpreter that imports what all of them need."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.results import Comparison, Goal, Result, series
from benchmarks.setting import Setting
from benchmarks.subjects import mounted
from litereplica.testing.mounts import litereplica_binary

INTERPRETER = "interpreter"
BARE = (sys.executable, "-c", "import json, socket, click")
ROUNDS_A_REPEAT = 3
LIMIT = 1.3
PROBE, PROBE_MS = "health", 100


def commands(setting: Setting) -> tuple[Result, ...]:
    """CPU time of short commands, one mount being there."""
    with mounted(setting, setting.file_url) as ready:
        assert ready.mount is not None
        mountpoint, binary = str(ready.mount.mountpoint), litereplica_binary()
        subjects = {
            INTERPRETER: BARE,
            "status": (binary, "status", mountpoint),
            PROBE: (binary, PROBE, mountpoint),
            "wait": (binary, "wait", mountpoint, "--txid", "1"),
            "umount": (binary, "umount", os.devnull),
            "ltx": (binary, "ltx", setting.file_url),
        }
        samples: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(setting.scale.repeats * ROUNDS_A_REPEAT):
            for name, command in subjects.items():
                samples[name].append(1000 * _cpu_s(command))
    return (
        Result(
            title="CPU time of short commands",
            unit="ms",
            method="The whole process. `status`, `health` and `wait` ask a mount for what it has at hand, `umount` "
            "finds that nothing is mounted there, `ltx` lists a replica in a directory; the interpreter imports json, "
            "socket and click.",
            series=series(samples),
            comparisons=(
                *(Comparison(name, INTERPRETER, Goal(LIMIT)) for name in subjects if name != INTERPRETER),
                Comparison(PROBE, None, Goal(PROBE_MS)),
            ),
        ),
    )


def _cpu_s(command: Sequence[str]) -> float:
    """Seconds of CPU that a command takes. Nothing else may end meanwhile that this process waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
