"""A step of a follower that is killed at its first, second, third … change of the file system.

    python -m tests.restore.killed_follower URL DIRECTORY

Copies DIRECTORY/base, which holds `out.db` and what lies beside it, to DIRECTORY/1, DIRECTORY/2, …, and in each makes a
step in a process that kills itself before the first, second, … such call. Ends when a step got through.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from litereplica.ltxstore.store import open_ltx_store
from litereplica.restore.follow import Follower, position_of

CHANGES = (
    (os, "pwrite"),
    (os, "write"),
    (os, "fsync"),
    (os, "ftruncate"),
    (os, "unlink"),
    (os, "rename"),
    (Path, "unlink"),
    (Path, "rename"),
    (Path, "open"),
)


def step(url: str, path: Path, number: int) -> None:
    """One step, killed before the change of this number."""
    left = number

    def killing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    async def run() -> None:
        store = open_ltx_store(url)
        await Follower(store, path, position_of(path)).advance()
        await store.aclose()

    for owner, name in CHANGES:
        setattr(owner, name, killing(getattr(owner, name)))
    trio.run(run)


def main() -> None:
    url, directory = sys.argv[1], Path(sys.argv[2])
    number = 0
    status = 1
    while status:
        number += 1
        shutil.copytree(directory / "base", directory / str(number))
        child = os.fork()
        if child == 0:
            step(url, directory / str(number) / "out.db", number)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status


if __name__ == "__main__":
    main()
