"""Memory that was needed for a moment is given back."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from litereplica.replica.malloc_tuning import tune_allocator

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

if "tuned" in sys.argv:
    tune_allocator()
del sys
before = resident()
bytearray(30 << 20)  # from here on glibc keeps what is smaller than this, unless it is told not to
large = [bytearray(b"x" * (2 << 20)) for _ in range(40)]
kept = bytearray(b"x" * (900 << 10))
del large
print(resident() - before)
"""


def grown(*arguments: str) -> int:
    run = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_freed_memory_goes_back_to_the_system() -> None:
    assert grown("tuned") < grown() - (8 << 20)
