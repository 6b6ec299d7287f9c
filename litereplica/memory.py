"""The memory that this process may use. Limits on what a file or a store may claim follow from it.

Anybody who can write to a bucket chooses what it holds: sizes, page counts and numbers of objects are only claims. A
claim that would not fit into this machine is refused before memory is reserved for it.
"""

from __future__ import annotations

import contextlib
import os
from functools import cache
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@cache
def memory_bytes() -> int:
    """Return the machine's memory in bytes, or the limit of the container that this process runs in if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such limit: the word "max", or no cgroup
        return min(machine, int(_CGROUP_LIMIT.read_text()))
    return machine
