"""The ways to query a replica that are compared, each as a context: from nothing to a client that can open it.

Every one starts cold: no page, index or connection of an earlier one is left on this side. The client's process runs
beforehand, so that starting an interpreter is in nobody's time.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial

from benchmarks.client import Client, file_client, vfs_client
from benchmarks.results import MOUNT, MOUNT_UNHYDRATED, RESTORE, VFS
from benchmarks.setting import Setting
from litereplica.testing.litestream import litestream_restore
from litereplica.testing.mounts import MountedReplica, litereplica_binary

POLL_INTERVAL = "1s"
"""Everybody's default."""
ANY_PROBLEM = "."
"""Warnings in the mount's log are no reason to end a run."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A client that can open the database, and what it took to get there, in seconds. `mount` if there is one."""

    client: Client
    seconds: float
    mount: MountedReplica | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """`prepare(setting, url)` makes the replica at `url` ready for a client."""

    name: str
    prepare: Callable[[Setting, str], AbstractContextManager[Ready]]


@contextmanager
def mounted(
    setting: Setting, url: str, *, options: Sequence[str] = (), poll_interval: str = POLL_INTERVAL
) -> Iterator[Ready]:
    """Mounted by the command, whose time is counted, daemon's start included."""
    directory = setting.fresh_directory()
    mount = MountedReplica(
        url,
        directory,
        poll_interval=poll_interval,
        options=options,
        expected_problems=[ANY_PROBLEM],
    )
    with file_client(mount.path) as client:
        started = time.perf_counter()
        with mount:
            seconds = time.perf_counter() - started
            try:
                yield Ready(client, seconds, mount)
            finally:
                client.close()
    shutil.rmtree(directory)


@contextmanager
def through_vfs(setting: Setting, url: str) -> Iterator[Ready]:
    """Litestream's VFS; loading the extension is not counted."""
    with vfs_client(url) as client:
        yield Ready(client, 0.0)


@contextmanager
def restored(setting: Setting, url: str) -> Iterator[Ready]:
    """Restored by Litestream, whose time is counted."""
    path = setting.fresh_directory() / "app.db"
    with file_client(path) as client:
        started = time.perf_counter()
        litestream_restore(url, path)
        yield Ready(client, time.perf_counter() - started)
    path.unlink()


def mounts() -> tuple[Subject, ...]:
    """The mount with its defaults; and, when it hydrates unless told not to, also without."""
    default = Subject(MOUNT, mounted)
    if not can_hydrate():
        return (default,)
    return default, Subject(MOUNT_UNHYDRATED, partial(mounted, options=["--no-hydrate"]))


@cache
def can_hydrate() -> bool:
    """Whether this version's mount has the option."""
    done = subprocess.run([litereplica_binary(), "mount", "--help"], capture_output=True, text=True, check=True)
    return "--no-hydrate" in done.stdout


PEER = Subject(VFS, through_vfs)
RESTORED = Subject(RESTORE, restored)
